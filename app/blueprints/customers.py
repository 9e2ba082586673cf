"""Customers over HTTP."""

from typing import Any

from app.api import Blueprint
from app.auth import admin, caller, own
from app.db import Cursor, Row
from app.idempotency import idempotent
from app.schemas import customers as schemas
from app.schemas.paging import cursor, cut
from app.schemas.subscriptions import InvoicesAnswer, InvoicesQuery, PortalAnswer, PortalRequest
from app.services import checkout, customers

blp = Blueprint("customers", __name__, url_prefix="/api/customers", description="Who the customers are")


@blp.route("", methods=["POST"], errors=(409,))
@admin
@idempotent(in_transaction=True)
@blp.arguments(schemas.NewCustomerRequest)
@blp.response(201, schemas.NewCustomerAnswer)
def create(body: dict[str, Any], cur: Cursor) -> Row:
    """Add a customer, with a running trial and its license"""
    customer, license_row = customers.create_customer(cur, **body)
    return customer | {"license": license_row["token"]}


@blp.route("", methods=["GET"])
@admin
@blp.arguments(schemas.CustomersQuery, location="query")
@blp.response(200, schemas.CustomersPage)
def list_customers(query: dict[str, Any]) -> Row:
    """List customers, oldest first"""
    limit, after = query.pop("limit"), query.pop("cursor")
    page, more = cut(customers.list_customers(limit=limit + 1, after=after, **query), limit)
    return {"customers": page, "next_cursor": cursor(page[-1]["id"]) if more else None}


@blp.route("/<customer_id>", methods=["GET"])
@own(checked_by_query=True)
@blp.response(200, schemas.CustomerSchema)
def show(customer_id: str) -> Row:
    """Show a customer"""
    return customers.describe_one(customer_id, caller().license)


@blp.route("/<customer_id>", methods=["PATCH"], errors=(409, 502))
@admin
@blp.arguments(schemas.UpdateCustomerRequest)
@blp.response(200, schemas.CustomerSchema)
def update(body: dict[str, Any], customer_id: str) -> Row:
    """Change a customer's email, name or company"""
    return customers.update_customer(customer_id, body)


@blp.route("/<customer_id>/invoices", methods=["GET"], errors=(409, 502))
@own()
@blp.arguments(InvoicesQuery, location="query")
@blp.response(200, InvoicesAnswer)
def list_invoices(query: dict[str, Any], customer_id: str) -> Row:
    """List Stripe's invoices, newest first"""
    return {"invoices": checkout.list_invoices(customer_id, **query)}


@blp.route("/<customer_id>/portal", methods=["POST"], errors=(409, 502))
@own()
@blp.arguments(PortalRequest)
@blp.response(201, PortalAnswer)
def open_portal(body: dict[str, Any], customer_id: str) -> Row:
    """Open Stripe's billing portal"""
    return {"url": checkout.open_portal(customer_id, **body)}
