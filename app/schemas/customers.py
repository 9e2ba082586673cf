"""Customers in and out."""

from marshmallow import fields, validate

from app.plans import PLANS
from app.schemas.base import Address, CamelSchema, InputSchema, Instant, Text, no_default
from app.schemas.paging import PageQuery
from app.schemas.subscriptions import SubscriptionSchema


class NewCustomer(InputSchema):
    """`plan` begins the one trial of that plan."""

    aliases = {"company": "companyName"}

    email = Address(required=True)
    name = Text(allow_none=True, load_default=None)
    companyName = Text(attribute="company_name", allow_none=True, load_default=None)
    plan = fields.String(validate=validate.OneOf(list(PLANS)), load_default=None)


class CustomerChanges(InputSchema):
    """What is absent stays; null clears name or company."""

    aliases = {"company": "companyName"}

    email = Address()
    name = Text(allow_none=True)
    companyName = Text(attribute="company_name", allow_none=True)


class CustomersQuery(PageQuery):
    email = Text(max_length=254, load_default=no_default)


class CustomerSchema(CamelSchema):
    customer_id = fields.String(required=True)
    email = fields.String(required=True)
    name = fields.String(required=True, allow_none=True)
    company_name = fields.String(required=True, allow_none=True)
    stripe_customer_id = fields.String(required=True, allow_none=True)
    created_at = Instant(required=True)
    updated_at = Instant(required=True)
    subscription = fields.Nested(SubscriptionSchema, required=True, allow_none=True)


class NewCustomerAnswer(CustomerSchema):
    license = fields.String(required=True)


class CustomersPage(CamelSchema):
    customers = fields.List(fields.Nested(CustomerSchema), required=True)
    next_cursor = fields.String(required=True, allow_none=True)
