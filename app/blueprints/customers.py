"""Customers over HTTP."""

from typing import Any

from app.api import Blueprint
from app.auth import admin, caller, own
from app.db import Cursor, Row
from app.extensions import db
from app.idempotency import idempotent
from app.queries import customers
from app.schemas.customers import (
    CustomerChanges,
    CustomerSchema,
    CustomersPage,
    CustomersQuery,
    NewCustomer,
    NewCustomerAnswer,
)
from app.schemas.paging import cursor, cut
from app.schemas.subscriptions import PortalAnswer, PortalRequest
from app.services.customers import create_customer, describe_many, describe_one, update_customer
from app.services.subscriptions import open_portal

blp = Blueprint("customers", __name__, url_prefix="/api/customers", description="Who the customers are")


@blp.route("", methods=["POST"], errors=(409,))
@admin
@idempotent(in_transaction=True)
@blp.arguments(NewCustomer)
@blp.response(201, NewCustomerAnswer)
def create(body: dict[str, Any], cur: Cursor) -> Row:
    """Add a customer, with a running trial and its license"""
    customer, license_row = create_customer(cur, **body)
    return customer | {"license": license_row["token"]}


@blp.route("", methods=["GET"])
@admin
@blp.arguments(CustomersQuery, location="query")
@blp.response(200, CustomersPage)
def list_customers(query: dict[str, Any]) -> Row:
    """List customers, oldest first"""
    with db.statement() as cur:
        rows = customers.select_customers(
            cur, limit=query["limit"] + 1, after=query["cursor"], email=query["email"]
        )
    page, more = cut(rows, query["limit"])
    return {"customers": describe_many(page), "next_cursor": cursor(page[-1]["id"]) if more else None}


@blp.route("/<customer_id>", methods=["GET"])
@own(checked_by_query=True)
@blp.response(200, CustomerSchema)
def show(customer_id: str) -> Row:
    """Show a customer"""
    return describe_one(customer_id, caller().license)


@blp.route("/<customer_id>", methods=["PATCH"], errors=(409, 502))
@admin
@blp.arguments(CustomerChanges)
@blp.response(200, CustomerSchema)
def update(body: dict[str, Any], customer_id: str) -> Row:
    """Change a customer's email, name or company"""
    return update_customer(customer_id, body)


@blp.route("/<customer_id>/portal", methods=["POST"], errors=(409, 502))
@own()
@blp.arguments(PortalRequest)
@blp.response(201, PortalAnswer)
def portal(body: dict[str, Any], customer_id: str) -> Row:
    """Open Stripe's billing portal"""
    return {"url": open_portal(customer_id, body["return_url"])}
