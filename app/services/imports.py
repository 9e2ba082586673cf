"""Customers from a CSV file."""

import csv
from collections.abc import Iterable, Iterator
from typing import Any, Final

from marshmallow import ValidationError

from app.errors import Conflict, DomainError, Invalid, NotFound
from app.extensions import db, stripe
from app.queries import customers
from app.schemas.customers import NewCustomerRequest
from app.services.checkout import adopt_stripe_customer
from app.services.customers import create_customer

COLUMNS: Final = ("email", "name", "company", "plan", "stripe_customer_id")


def import_customers(file: Iterable[str], *, dry_run: bool = False) -> Iterator[dict[str, Any]]:
    """For each line: line, email, outcome (created, linked, exists, failed), customer_id and message.

    `linked`: created, linked to its customer at Stripe and synced. Who is there already is left as it is.
    The header is line 1. Raises Invalid for a header that is not one. Ends with a line that is not CSV.
    """
    reader = csv.DictReader(file, strict=True)
    seen: set[str] = set()
    try:
        header = reader.fieldnames or []
        if "email" not in header or not set(header) <= set(COLUMNS) or len(set(header)) < len(header):
            raise Invalid(f"Line 1: expected the column email and any of {', '.join(COLUMNS[1:])}.")
        for cells in reader:
            email = (cells["email"] or "").strip()
            result = {"line": reader.line_num, "email": email, "customer_id": None, "message": None}
            try:
                result |= _import_customer(cells, email.lower() in seen, dry_run)
            except DomainError as error:
                result |= {"outcome": "failed", "message": error.message}
            seen.add(email.lower())
            yield result
    except csv.Error as error:
        message = f"{error}; nothing after it was read"
        no_one = {"email": "", "customer_id": None}
        yield {"line": reader.line_num + 1, "outcome": "failed", "message": message} | no_one


def _import_customer(cells: dict[str | Any, Any], is_repeated: bool, dry_run: bool) -> dict[str, Any]:
    if None in cells:
        raise Invalid("More cells than columns.")
    given = {name: cell.strip() for name, cell in cells.items() if cell and cell.strip()}
    stripe_id = given.pop("stripe_customer_id", None)
    try:
        wanted = NewCustomerRequest().load(given)
    except ValidationError as error:
        messages: Any = error.messages
        raise Invalid("; ".join(f"{name}: {texts[0]}" for name, texts in messages.items())) from None
    with db.statement() as cur:
        there = customers.find_customer(cur, wanted["email"])
        owner = customers.select_customer_by_stripe_id(cur, stripe_id) if stripe_id else None
    if there or is_repeated:
        customer_id = there["customer_id"] if there else None
        return {"outcome": "exists", "customer_id": customer_id, "message": "is there already"}
    if owner:
        raise Conflict(f"{stripe_id} is linked to {owner['customer_id']} already.")
    if stripe_id and (stripe.retrieve_customer(stripe_id) or {"deleted": True}).get("deleted"):
        raise NotFound(f"Stripe has no customer {stripe_id}.")
    outcome = "linked" if stripe_id else "created"
    if dry_run:
        return {"outcome": outcome}
    with db.transaction() as cur:
        customer_id = create_customer(cur, **wanted)[0]["customer_id"]
    try:
        if stripe_id:
            adopt_stripe_customer(customer_id, stripe_id)
    except DomainError as error:
        message = f"created, but not linked to {stripe_id}: {error.message}"
        return {"outcome": "failed", "customer_id": customer_id, "message": message}
    return {"outcome": outcome, "customer_id": customer_id}
