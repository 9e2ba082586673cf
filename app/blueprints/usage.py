"""Usage over HTTP."""

from typing import Any

from flask import Response
from marshmallow import ValidationError

from app.api import Blueprint
from app.auth import admin, caller, own, require_own
from app.db import Row
from app.encoding import json_answer
from app.errors import DomainError, invalid
from app.idempotency import idempotent
from app.schemas.paging import DaysQuery, ReportsQuery, cursor, cut
from app.schemas.usage import (
    BatchAnswer,
    NewReport,
    OverviewAnswer,
    ReportAnswer,
    Reports,
    UsageAnswer,
    read_report,
)
from app.services import usage

blp = Blueprint("usage", __name__, url_prefix="/api/usage", description="What their instances report")
_report_answer = ReportAnswer()


@blp.route("/report", methods=["POST"], errors=(404, 409))
@own(allow_expired=True, checked_by_query=True)
@idempotent
@blp.arguments(
    NewReport,
    description="The figures may also stand under `metrics`, in snake_case, and as agents for devices.",
)
@blp.response(201, ReportAnswer)
@blp.alt_response(200, schema=ReportAnswer, description="The same report was stored before")
def report(body: dict[str, Any]) -> Response:
    """Take in a usage report, and renew the license if need be"""
    require_own(body["customer_id"])
    taken, is_new = usage.receive_report(body, caller().license)
    return json_answer(_report_answer.dump(taken), 201 if is_new else 200)


@blp.route("/reports", methods=["POST"])
@own(allow_expired=True)
@idempotent
@blp.arguments(Reports)
@blp.response(200, BatchAnswer)
def report_batch(body: dict[str, Any]) -> Response:
    """Take in up to 1000 reports, each on its own, and renew the license if need be"""
    items = [_report_or_error(item) for item in body["reports"]]
    return json_answer(usage.receive_batch(items, caller().license), 200)


@blp.route("/<customer_id>", methods=["GET"])
@own(checked_by_query=True)
@blp.arguments(ReportsQuery, location="query")
@blp.response(200, UsageAnswer)
def show(query: dict[str, Any], customer_id: str) -> Row:
    """Reports, newest first, and what they sum up to"""
    found = usage.usage_of(
        customer_id,
        days=query["days"],
        limit=query["limit"] + 1,
        before=query["cursor"],
        presented=caller().license,
    )
    page, more = cut(found["reports"], query["limit"])
    return found | {
        "customer_id": customer_id,
        "reports": page,
        "next_cursor": cursor(page[-1]["reported_at"], page[-1]["id"]) if more else None,
    }


@blp.route("", methods=["GET"])
@admin
@blp.arguments(DaysQuery, location="query")
@blp.response(200, OverviewAnswer)
def list_usage(query: dict[str, Any]) -> Row:
    """The figures of every customer"""
    rows = usage.overview(days=query["days"], limit=query["limit"] + 1, after=query["cursor"])
    page, more = cut(rows, query["limit"])
    return {"customers": page, "next_cursor": cursor(page[-1]["id"]) if more else None}


def _report_or_error(item: Any) -> dict[str, Any] | DomainError:
    try:
        return read_report(item)
    except ValidationError as error:
        return invalid("json", error.messages)
