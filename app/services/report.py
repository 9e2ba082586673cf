"""The state of the business: what `flask report` shows and the business gauges of /metrics."""

from typing import Any

from app.context import now
from app.encoding import camel_case
from app.extensions import db
from app.queries import overage, report
from app.services import usage


def business_report(*, names: bool = False) -> dict[str, Any]:
    """Customers, revenue and what needs attention; amounts in the currency's smallest unit, per interval.

    With `names` also `details`: the customers behind each number, as `email (id)`.
    """
    at = now()
    with db.statement() as cur:
        counts = report.select_customer_counts(cur, at, names=names)
        revenue = report.select_revenue(cur, names=names)
        attention = report.select_attention(cur, at, names=names)
        owed = overage.select_overage_totals(cur)
    silent = usage.silent_instances()
    paid = [row for row in revenue if row["status"] == "active"]
    past_due = [row for row in revenue if row["status"] == "past_due"]
    found: dict[str, Any] = {
        "customers": _columns(counts, "plan", "status", "count"),
        "revenue": _columns(paid, "plan", "interval", "currency", "amount"),
        "pastDue": _columns(past_due, "plan", "interval", "currency", "amount"),
        **{camel_case(kind): row["count"] for kind, row in attention.items()},
        "silentInstances": {"count": len(silent), "customers": len({row["customer_id"] for row in silent})},
        "overage": {
            "deviceDays": sum(row["device_days"] for row in owed),
            "amount": sum(row["amount"] for row in owed),
        },
    }
    if names:
        found["details"] = {
            "customers": _columns(counts, "plan", "status", "customers"),
            "revenue": _columns(paid, "plan", "interval", "customers"),
            "pastDue": _columns(past_due, "plan", "interval", "customers"),
            **{camel_case(kind): row["customers"] or [] for kind, row in attention.items()},
            "silentInstances": [f"{row['instance_id']} ({row['customer_id']})" for row in silent],
            "overage": [f"{row['customer_id']}: {row['device_days']} device-days" for row in owed],
        }
    return found


def _columns(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{name: row[name] for name in names} for row in rows]
