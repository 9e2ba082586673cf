"""Usage reports: taking them in, and what they sum up to."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from app.db import Cursor, Row
from app.entitlements import entitle
from app.errors import Conflict, DomainError, Forbidden, NotFound, Unauthorized
from app.observe import REPORTS
from app.parts import now, parts
from app.queries import customers, usage
from app.services.customers import get_customer, subscriptions_of
from app.services.licenses import current_license, entitlement_of

SILENT_AFTER: Final = timedelta(hours=48)
IN_USE_WITHIN: Final = timedelta(days=7)
DROP_FROM: Final = 10
"""Below this many active devices a fall is everyday; at or above it, losing half is worth a look."""

KEY: Final = ("customer_id", "instance_id", "reported_at")
FIGURES: Final = ("active_devices", "total_devices")


def receive_report(report: dict[str, Any], jti: str | None) -> tuple[dict[str, Any], bool]:
    """Store a report: the answer, and whether it is new. `jti` is the license presented, if one was.

    Raises Conflict when the same (customer, instance, time) was reported with other figures,
    Unauthorized or Forbidden when the license is not on record, or revoked.
    """
    with parts().db.statement() as cur:
        _prepare_month(cur, report["reported_at"])
        since = now() - IN_USE_WITHIN
        row = usage.insert_usage_report(cur, report | {"jti": jti, "since": since})
        _refuse(row, report["customer_id"], jti)
        assert row is not None
        if row["id"] is None:
            answer = {**report, **_first(cur, report), "last_reported_at": row["last_reported_at"]}
            return _with_entitlement(cur, answer, row, jti), False
        answer = {
            **report,
            "id": row["id"],
            "created_at": row["created_at"],
            "last_reported_at": row["last_reported_at"],
        }
        _with_entitlement(cur, answer, row, jti)
        _watch(cur, answer, row)
    REPORTS.labels("accepted").inc()
    return answer, True


def _refuse(row: Row | None, customer_id: str, jti: str | None) -> None:
    if row is None or (row["erased_at"] and jti is None):
        raise NotFound(f"There is no customer {customer_id}.")
    if jti is not None:
        if row["erased_at"] or not row["license_known"]:
            raise Unauthorized("This license is not on record.")
        if row["license_revoked_at"]:
            raise Forbidden("This license is revoked.")


def _first(cur: Cursor, report: dict[str, Any]) -> Row:
    """The stored report with this key, if the figures are the same; else Conflict."""
    stored = usage.select_usage_reports_by_key(cur, [report])[0]
    if any(stored[name] != report[name] for name in FIGURES):
        REPORTS.labels("conflict").inc()
        raise Conflict(
            "This instance reported other figures for this time. Send a correction under a new time."
        )
    REPORTS.labels("duplicate").inc()
    return stored


def _with_entitlement(cur: Cursor, answer: dict[str, Any], row: Row, jti: str | None) -> dict[str, Any]:
    """Add what the customer may use, and the license that an instance with an old one should take."""
    device_limit = row["device_limit"]
    current = row["current_jti"]
    if current is None or row["recheck"] or now() >= row["renews_at"]:
        device_limit, current, token = _derive(cur, answer["customer_id"], issue=jti is not None)
        if token and current != jti:
            answer["license"] = token
    elif jti is not None and current != jti:
        answer["license"] = current_license(answer["customer_id"])["token"]
    used = answer["active_devices"]
    answer["device_limit"] = device_limit
    answer["utilization"] = utilization(used, device_limit)
    answer["over_limit"] = device_limit is not None and used > device_limit
    warning = usage_warning(used, device_limit) or usage_warning(
        used + int(row["others_active"]), device_limit
    )
    if warning:
        answer["warning"] = warning
    return answer


def _derive(cur: Cursor, customer_id: str, *, issue: bool) -> tuple[int | None, str | None, str | None]:
    """(device limit, current jti, token) when the current license does not tell them."""
    if issue:
        fresh = current_license(customer_id)
        return fresh["device_limit"], fresh["jti"], fresh["token"]
    customer = get_customer(customer_id)
    return entitlement_of(cur, customer, now()).device_limit, None, None


def _watch(cur: Cursor, answer: dict[str, Any], row: Row) -> None:
    """Put on record what an operator should see: a threshold crossed, a sudden drop, a shared license."""
    customer_id, used, limit = (
        answer["customer_id"],
        answer["active_devices"],
        answer["device_limit"],
    )
    last_at, last_active = row["last_reported_at"], row["last_active"]
    seen = {"instance_id": answer["instance_id"], "active_devices": used, "device_limit": limit}
    if last_at is None and row["other_instances"]:
        usage.insert_usage_alert(cur, customer_id, kind="shared_license", **seen)
    if (
        last_at is not None
        and answer["reported_at"] > last_at
        and last_active >= DROP_FROM
        and used * 2 <= last_active
    ):
        usage.insert_usage_alert(cur, customer_id, kind="sudden_drop", **seen)
    if last_at is not None and answer["reported_at"] < last_at:
        return
    total = used + int(row["others_active"])
    if row["other_instances"]:
        # Another instance may have reported in the same moment, unseen by either: add up once more.
        total = usage.select_current_active(cur, customer_id, now() - IN_USE_WITHIN)
    level = usage_level(total, limit)
    if level != row["level"]:
        usage.upsert_usage_level(cur, customer_id, level=level, active_devices=total, device_limit=limit)


def receive_batch(items: Sequence[dict[str, Any] | DomainError], caller: str | None) -> list[dict[str, Any]]:
    """Store many reports, each on its own: a result per item, in order.

    An item is a report, or the error it was refused with. `caller` is the customer whose license was
    presented; None is an operator, who may report for everybody.
    """
    results: list[dict[str, Any]] = [{} for _ in items]
    good: dict[int, dict[str, Any]] = {}
    for index, item in enumerate(items):
        if isinstance(item, DomainError):
            results[index] = _failure(index, item)
        elif caller is not None and item["customer_id"] != caller:
            results[index] = _failure(index, Forbidden("This license is for another customer."))
        else:
            good[index] = item
    if good:
        _store_batch(good, results)
    return results


def _store_batch(good: dict[int, dict[str, Any]], results: list[dict[str, Any]]) -> None:
    with parts().db.transaction() as cur:
        wanted = sorted({report["customer_id"] for report in good.values()})
        known = {
            row["customer_id"]
            for row in customers.select_customers_by_id(cur, wanted)
            if not row["erased_at"]
        }
        for index, report in list(good.items()):
            if report["customer_id"] not in known:
                results[index] = _failure(index, NotFound(f"There is no customer {report['customer_id']}."))
                del good[index]
        reports = list(good.values())
        if not reports:
            return
        for moment in {
            report["reported_at"].strftime("%Y%m"): report["reported_at"] for report in reports
        }.values():
            _prepare_month(cur, moment)
        fresh = {_key(row): row for row in usage.insert_usage_reports(cur, reports)}
        usage.upsert_instances(cur, list(fresh.values()) or reports)
        missing = [report for report in reports if _key(report) not in fresh]
        stored = (
            {_key(row): row for row in usage.select_usage_reports_by_key(cur, missing)} if missing else {}
        )
        first_use = set(fresh)
        for index, report in good.items():
            row = fresh.get(_key(report)) or stored[_key(report)]
            if any(row[name] != report[name] for name in FIGURES):
                results[index] = _failure(index, Conflict("Other figures are stored for this time."))
                continue
            is_new = _key(report) in first_use
            first_use.discard(_key(report))
            results[index] = {
                "index": index,
                "status": 201 if is_new else 200,
                "report_id": row["id"],
            }
        for customer_id in sorted(known):
            _update_level(cur, customer_id)
    _count_results(results)


def _update_level(cur: Cursor, customer_id: str) -> None:
    customer = customers.select_customer(cur, customer_id)
    if customer is None:
        return
    limit = entitlement_of(cur, customer, now()).device_limit
    total = usage.select_current_active(cur, customer_id, now() - IN_USE_WITHIN)
    level = usage_level(total, limit)
    usage.upsert_usage_level(cur, customer_id, level=level, active_devices=total, device_limit=limit)


def _count_results(results: Iterable[dict[str, Any]]) -> None:
    for result in results:
        outcome = {201: "accepted", 200: "duplicate"}.get(result["status"], "rejected")
        REPORTS.labels(outcome).inc()


def _failure(index: int, error: DomainError) -> dict[str, Any]:
    return {
        "index": index,
        "status": error.code,
        "errors": error.errors or {"json": [error.message]},
    }


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def usage_of(
    customer_id: str, *, days: int, limit: int | None, before: tuple[datetime, int] | None = None
) -> dict[str, Any]:
    """One customer's reports (newest first), figures and silent instances over the last `days` × 24 h."""
    customer = get_customer(customer_id)
    since = now() - timedelta(days=days)
    with parts().db.statement() as cur:
        entitlement = entitlement_of(cur, customer, now())
        reports = usage.select_usage_reports(cur, customer_id, since=since, limit=limit, before=before)
        figures = usage.select_usage_summaries(cur, [customer_id], since)
        silent = usage.select_silent_instances(cur, customer_id=customer_id, before=now() - SILENT_AFTER)
    return {
        "customer": customer,
        "entitlement": entitlement,
        "reports": reports,
        "summary": summarize(figures[0] if figures else None, entitlement.device_limit),
        "silent_instances": silent,
    }


def overview(page: list[Row], *, days: int) -> list[dict[str, Any]]:
    """The figures of each customer of a page, over the last `days` × 24 h."""
    since = now() - timedelta(days=days)
    rows = subscriptions_of(page)
    with parts().db.statement() as cur:
        found = {row["customer_id"]: row for row in usage.select_usage_summaries(cur, list(rows), since)}
    lines = []
    for customer in page:
        entitlement = entitle(customer, rows[customer["customer_id"]], now())
        lines.append(
            customer
            | {
                "plan": entitlement.plan.name,
                "status": entitlement.status,
                "device_limit": entitlement.device_limit,
                "summary": summarize(found.get(customer["customer_id"]), entitlement.device_limit),
            }
        )
    return lines


def summarize(figures: Row | None, device_limit: int | None) -> dict[str, Any]:
    """The summary of the API from the summed figures; None: nothing was reported."""
    figures = figures or dict.fromkeys(
        ("total_reports", "avg_active", "peak_active", "current_active", "current_total"), 0
    )
    used = figures["current_active"]
    return {
        **{
            name: figures[name]
            for name in (
                "total_reports",
                "avg_active",
                "peak_active",
                "current_active",
                "current_total",
            )
        },
        "limit": device_limit,
        "remaining": None if device_limit is None else max(0, device_limit - used),
        "utilization": utilization(used, device_limit),
    }


def utilization(active: int, device_limit: int | None) -> float | None:
    """Active devices ÷ limit, as a ratio; None when unlimited."""
    return None if device_limit is None else active / device_limit


def usage_level(active: int, device_limit: int | None) -> int:
    """The threshold reached: 0, 80 or 100 (percent)."""
    if device_limit is None or active * 100 < 80 * device_limit:
        return 0
    return 80 if active < device_limit else 100


def usage_warning(active: int, device_limit: int | None) -> str | None:
    """A sentence from 80 % on."""
    if usage_level(active, device_limit) == 0:
        return None
    assert device_limit is not None
    return f"{active / device_limit:.1%} of the device limit is in use ({active} of {device_limit})."


def prune(older_than_days: int) -> int:
    """Delete reports older than that, whole months by dropping their partition: how many."""
    cutoff = now() - timedelta(days=older_than_days)
    with parts().db.transaction() as cur:
        return usage.drop_usage_partitions(cur, cutoff) + usage.delete_usage_reports(cur, cutoff)


_months_ready: set[tuple[int, int]] = set()


def _prepare_month(cur: Cursor, moment: datetime) -> None:
    """Once per process and month: its partition and the next one. Without them the default one takes all."""
    at = moment.astimezone(UTC)
    if (at.year, at.month) in _months_ready:
        return
    for needed in (at, (at.replace(day=1) + timedelta(days=32)).replace(day=1)):
        usage.ensure_usage_partition(cur, needed)
    _months_ready.add((at.year, at.month))
