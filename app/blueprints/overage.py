"""Overage over HTTP."""

from datetime import date
from typing import Any

from app.api import Blueprint
from app.auth import own
from app.db import Row
from app.errors import NotFound
from app.schemas.overage import BillingAnswer, EvidenceAnswer, PeriodQuery
from app.services.overage import billing_of, evidence_of

blp = Blueprint("overage", __name__, url_prefix="/api/usage", description="Devices above the included ones")


@blp.route("/<customer_id>/billing", methods=["GET"])
@own()
@blp.arguments(PeriodQuery, location="query")
@blp.response(200, BillingAnswer)
def show(query: dict[str, Any], customer_id: str) -> Row:
    """The overage of a paid period: each day, and what is or will be billed"""
    return billing_of(customer_id, query["period"])


@blp.route("/<customer_id>/billing/<day>", methods=["GET"])
@own()
@blp.response(200, EvidenceAnswer)
def show_day(customer_id: str, day: str) -> Row:
    """A day with the reports that made it"""
    try:
        found = date.fromisoformat(day)
        if str(found) != day:  # 20261103 and 2026-W45-2 are read too
            raise ValueError
    except ValueError:
        raise NotFound("There is no such day. Write it like 2026-11-03.") from None
    return evidence_of(customer_id, found)
