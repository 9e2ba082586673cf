"""Customers in and out."""

from marshmallow import fields, validate

from app.entitlements import KNOWN_STATUSES
from app.plans import PLANS
from app.schemas.base import Address, CamelSchema, InputSchema, Instant, Text, no_default
from app.schemas.paging import PageQuery
from app.schemas.subscriptions import NULLABLE, OPTIONAL, SubscriptionSchema

_ABOUT_EMAIL = {"description": "Unique, whatever the letter case", "example": "ada@example.com"}
_ABOUT_NAME = {"description": "The person", "example": "Ada Lovelace"}
_ABOUT_COMPANY = {"description": "Shown in the license instead of the name", "example": "Engines Ltd"}
_ABOUT_PLAN = {"description": "Begins the one trial of this plan; trial mode if absent"}


class NewCustomerRequest(InputSchema):
    aliases = {"company": "companyName"}

    email = Address(required=True, metadata=_ABOUT_EMAIL)
    name = Text(metadata=_ABOUT_NAME, **OPTIONAL)
    companyName = Text(attribute="company_name", metadata=_ABOUT_COMPANY, **OPTIONAL)
    plan = fields.String(validate=validate.OneOf(list(PLANS)), metadata=_ABOUT_PLAN, **OPTIONAL)


class UpdateCustomerRequest(InputSchema):
    """What is absent stays; null clears name or company."""

    aliases = {"company": "companyName"}

    email = Address(metadata=_ABOUT_EMAIL)
    name = Text(allow_none=True, metadata=_ABOUT_NAME)
    companyName = Text(attribute="company_name", allow_none=True, metadata=_ABOUT_COMPANY)


class CustomersQuery(PageQuery):
    """`plan` and `status` are those of the subscription that is shown."""

    email = Text(max_length=254, load_default=no_default)
    q = Text(load_default=no_default, metadata={"description": "A part of email, name, company or id"})
    plan = fields.String(validate=validate.OneOf([*PLANS, "unknown"]), load_default=no_default)
    status = fields.String(validate=validate.OneOf(sorted(KNOWN_STATUSES)), load_default=no_default)


class CustomerSchema(CamelSchema):
    customer_id = fields.String(required=True)
    email = fields.String(required=True)
    name = fields.String(**NULLABLE)
    company_name = fields.String(**NULLABLE)
    stripe_customer_id = fields.String(metadata={"description": "null until it has one there"}, **NULLABLE)
    created_at = Instant(required=True)
    updated_at = Instant(required=True)
    subscription = fields.Nested(
        SubscriptionSchema, metadata={"description": "The one that counts"}, **NULLABLE
    )


class NewCustomerAnswer(CustomerSchema):
    license = fields.String(required=True, metadata={"description": "The first license, a JWT"})


class CustomersPage(CamelSchema):
    customers = fields.List(fields.Nested(CustomerSchema), required=True)
    next_cursor = fields.String(metadata={"description": "null on the last page"}, **NULLABLE)
