"""Usage reports: taking them in, and what they sum up to."""

import csv
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg2
from flask import current_app

from app.context import now
from app.db import Cursor, Row
from app.entitlements import entitle
from app.errors import Conflict, DomainError, Forbidden, Invalid, NotFound, Unavailable, invalid
from app.extensions import db
from app.licenses import Token
from app.queries import audit, subscriptions, usage
from app.services.licenses import current_license, is_current, is_older, require_serving

IMPORT_BATCH: Final = 1000
PARTITIONS_PAUSE_SECONDS: Final = 60
SILENT_AFTER: Final = timedelta(hours=48)
IN_USE_WITHIN: Final = timedelta(days=7)
ALERTS: Final = ("threshold_80", "threshold_100", "sudden_drop", "shared_license", "silent")
CSV_COLUMNS: Final = ("customer_id", "instance_id", "active_devices", "total_devices", "timestamp")
FIGURES: Final = ("total_reports", "avg_active", "peak_active", "current_active", "current_total")
OUTCOMES: Final = {201: "accepted", 200: "duplicate"}
log = logging.getLogger(__name__)


def receive_report(report: Row, presented: Token | None) -> tuple[dict[str, Any], bool]:
    """Store a report: the answer, and whether it is new. `presented`: the license that came with it.

    Raises Conflict when the same (customer, instance, time) was reported with other figures, and what
    `require_serving` does.
    """
    rows = _store([report], presented)
    row = require_serving(rows[0] if rows else None, report["customer_id"], presented, renewing=True)
    [status] = row["statuses"]
    _count(OUTCOMES.get(status, "rejected"), 1)
    if status not in OUTCOMES:
        raise _not_stored(status)
    answer = report | _with_license(row, presented)
    used, limit = row["in_use"], answer["device_limit"]
    answer |= {
        "id": row["ids"][0],
        "created_at": row["created_at"],
        "last_reported_at": row["last_reported_at"],
        "utilization": utilization(used, limit),
        "over_limit": limit is not None and used > limit,
    }
    warning = usage_warning(used, limit)
    return (answer | {"warning": warning} if warning else answer), status == 201


def receive_batch(items: Sequence[Row | DomainError], presented: Token | None) -> dict[str, Any]:
    """Store many reports, each on its own: a result per item, in order, as the API has it.

    An item is a report, or the error that it was refused with. Without `presented` an operator reports, who
    may do so for everybody.
    """
    errors: dict[int, DomainError] = {}
    reports: dict[int, Row] = {}
    for index, item in enumerate(items):
        if isinstance(item, DomainError):
            errors[index] = item
        elif presented is not None and item["customer_id"] != presented.customer_id:
            errors[index] = Forbidden("This license is for another customer.")
        else:
            reports[index] = item
    positions = list(reports)
    rows = {row["customer_id"]: row for row in _store(list(reports.values()), presented)} if reports else {}
    results: dict[int, dict[str, Any]] = {}
    for row in rows.values():
        outcomes_of = zip(row["positions"] or (), row["ids"] or (), row["statuses"] or (), strict=True)
        for position, report_id, status in outcomes_of:
            index = positions[position]
            if status in OUTCOMES:
                results[index] = {"index": index, "status": status, "reportId": report_id}
            else:
                errors[index] = _not_stored(status)
    for index, report in reports.items():
        if index not in results and index not in errors:
            errors[index] = _why_not(rows.get(report["customer_id"]), report["customer_id"], presented)
    for index, error in errors.items():
        why = error.errors or {"json": [error.message]}
        results[index] = {"index": index, "status": error.code, "errors": why}
    outcomes = Counter(OUTCOMES.get(result["status"], "rejected") for result in results.values())
    for outcome, count in outcomes.items():
        _count(outcome, count)
    answer = {
        "accepted": outcomes["accepted"],
        "duplicates": outcomes["duplicate"],
        "rejected": outcomes["rejected"],
        "results": [results[index] for index in range(len(items))],
    }
    own = rows.get(presented.customer_id) if presented else None
    token = _with_license(own, presented).get("license") if own and own["statuses"] else None
    return answer | {"license": token} if token else answer


def _store(reports: Sequence[Row], presented: Token | None) -> list[Row]:
    """A row per customer, see `queries.usage.store_usage_reports`."""
    with db.statement() as cur:
        rows = usage.store_usage_reports(cur, reports, presented, now() - IN_USE_WITHIN)
    if any(row["unplaced"] for row in rows):
        _ensure_partitions()
    return rows


def _ensure_partitions() -> None:
    """Make the months that are missing; where that fails (a backup reads the table), not again at once.

    What is stored waits in the default partition meanwhile.
    """
    extensions = current_app.extensions
    if time.monotonic() < extensions.get("billing.partitions_paused_until", 0):
        return
    try:
        with db.statement() as cur:
            if usage.ensure_usage_partitions(cur):
                return
        reason = "the table is in use"
    except (DomainError, psycopg2.Error) as error:
        reason = str(error).partition("\n")[0]
    extensions["billing.partitions_paused_until"] = time.monotonic() + PARTITIONS_PAUSE_SECONDS
    log.warning("no partition for the usage reports of a month yet: %s", reason)


def _not_stored(status: int) -> DomainError:
    if status == 409:
        return Conflict(
            "Other figures were reported for this instance and time. Send a correction with a new time."
        )
    return Unavailable("This report was deleted at the same time. Send it again.")


def _why_not(row: Row | None, customer_id: str, presented: Token | None) -> DomainError:
    try:
        require_serving(row, customer_id, presented, renewing=True)
    except DomainError as error:
        return error
    return Unavailable("The license changed at the same time. Send it again.")


def _with_license(row: Row, presented: Token | None) -> dict[str, Any]:
    """The device limit of now and, where the license presented is no longer the current one, that."""
    if presented and not (row["jti"] == presented.jti and is_current(row) and not is_older(row, presented)):
        try:
            current = current_license(row["customer_id"], presented)
        except DomainError as error:  # the report is stored all the same
            log.warning("no license for a report that was stored: %s", error.message)
        else:
            renewed = {} if current["jti"] == presented.jti else {"license": current["token"]}
            return {"device_limit": current["device_limit"], **renewed}
    if is_current(row):
        return {"device_limit": row["device_limit"]}
    with db.statement() as cur:
        return {"device_limit": _entitled(cur, row)["device_limit"]}


def _entitled(cur: Cursor, row: Row) -> Row:
    """The row with plan, status and device limit of now: as the current license says, else derived again."""
    if is_current(row):
        return row
    found = subscriptions.select_customer_with_subscriptions(cur, row["customer_id"])
    return row | _granted(*found) if found else row


def _granted(customer: Row, rows: Sequence[Row]) -> Row:
    granted = entitle(customer, rows, now())
    return {"plan": granted.plan.name, "status": granted.status, "device_limit": granted.device_limit}


def usage_of(
    customer_id: str,
    *,
    days: int,
    limit: int | None,
    before: tuple[datetime, int] | None = None,
    presented: Token | None = None,
) -> dict[str, Any]:
    """One customer's reports (newest first), figures and silent instances over the last `days` × 24 h.

    Raises what `require_serving` does.
    """
    since, silent_before = now() - timedelta(days=days), now() - SILENT_AFTER
    jti = presented.jti if presented else None
    with db.statement() as cur:
        found = usage.select_usage_of(cur, customer_id, jti=jti, since=since)
        row = _entitled(cur, require_serving(found, customer_id, presented))
        return {
            "plan": row["plan"],
            "device_limit": row["device_limit"],
            "reports": usage.select_usage_reports(cur, customer_id, since=since, limit=limit, before=before),
            "summary": _summary(row),
            "silent_instances": usage.select_silent_instances(
                cur, customer_id=customer_id, before=silent_before
            ),
        }


def overview(*, days: int, limit: int | None = None, after: int | None = None) -> list[Row]:
    """A page of customers (or all) with what each may use and its figures over the last `days` × 24 h."""
    with db.statement() as cur:
        rows = usage.select_usage_overview(cur, since=now() - timedelta(days=days), limit=limit, after=after)
        outdated = {row["customer_id"]: row for row in rows if not is_current(row)}
        of: dict[str, list[Row]] = {customer_id: [] for customer_id in outdated}
        for subscription in subscriptions.select_subscriptions(cur, list(of)) if of else ():
            of[subscription["customer_id"]].append(subscription)
    for customer_id, row in outdated.items():
        row.update(_granted(row, of[customer_id]))
    return [row | {"summary": _summary(row)} for row in rows]


def top(over: float, *, days: int = 7) -> list[Row]:
    """The lines of `overview` at or over this utilization (a ratio), worst first; none that has no limit."""
    limited = [line for line in overview(days=days) if line["device_limit"] is not None]
    lines = [line for line in limited if line["summary"]["utilization"] >= over]
    return sorted(lines, key=lambda line: -line["summary"]["utilization"])


def days_of(customer_ids: Sequence[str], *, days: int) -> dict[str, list[Row]]:
    """Per customer {day, active, reports} for each UTC day with a report, oldest first."""
    found: dict[str, list[Row]] = {customer_id: [] for customer_id in customer_ids}
    with db.statement() as cur:
        for row in usage.select_usage_days(cur, customer_ids, now() - timedelta(days=days)):
            found[row["customer_id"]].append(row)
    return found


def alerts(*, days: int, customer_id: str | None = None, kind: str | None = None) -> list[Row]:
    """What an operator should look at, newest first: ALERTS of the last days, and every silent instance."""
    with db.statement() as cur:
        return usage.select_usage_alerts(
            cur,
            customer_id=customer_id,
            kind=kind,
            since=now() - timedelta(days=days),
            now=now(),
            in_use_within=IN_USE_WITHIN,
            silent_after=SILENT_AFTER,
        )


def silent_instances(customer_id: str | None = None) -> list[Row]:
    """The instances that have not reported for 48 hours, of one customer or of all, longest first."""
    with db.statement() as cur:
        return usage.select_silent_instances(cur, customer_id=customer_id, before=now() - SILENT_AFTER)


def _summary(row: Row) -> dict[str, Any]:
    """The summary of the API: the figures of a row against its device limit."""
    used, limit = row["current_active"], row["device_limit"]
    return {
        **{name: row[name] for name in FIGURES},
        "limit": limit,
        "remaining": None if limit is None else max(0, limit - used),
        "utilization": utilization(used, limit),
    }


def utilization(active: int, device_limit: int | None) -> float | None:
    """Active devices ÷ limit, as a ratio; None when unlimited."""
    return None if device_limit is None else active / device_limit


def usage_warning(active: int, device_limit: int | None) -> str | None:
    """A sentence from 80 % on."""
    if device_limit is None or active * 100 < 80 * device_limit:
        return None
    return f"{active / device_limit:.1%} of the device limit is in use ({active} of {device_limit})."


def _count(outcome: str, reports: int) -> None:
    from app.observe import REPORTS  # prometheus_client, which most console commands do without

    REPORTS.labels(outcome).inc(reports)


def import_csv(file: Iterable[str]) -> Iterator[Row]:
    """Take older history in: per line {line, status, message?}, status as in a batch. No bound on the age.

    Raises Invalid for another header than CSV_COLUMNS, in any order. Ends with a line that is not CSV.
    """
    reader = csv.reader(file)
    items: dict[int, Row | DomainError] = {}
    try:
        header = next(reader, [])
        if sorted(header) != sorted(CSV_COLUMNS):
            raise Invalid(f"Line 1: expected the columns {','.join(CSV_COLUMNS)}, not {','.join(header)}.")
        for cells in reader:
            if cells:
                items[reader.line_num] = _read_line(header, cells)
            if len(items) == IMPORT_BATCH:
                yield from _import_batch(items)
                items = {}
    except csv.Error as error:
        items[reader.line_num] = Invalid(f"{error}; nothing after it was read")
    yield from _import_batch(items)


def _read_line(header: Sequence[str], cells: Sequence[str]) -> Row | DomainError:
    from marshmallow import ValidationError  # which most console commands do without

    from app.schemas.usage import read_report

    if len(cells) != len(header):
        return Invalid(f"{len(cells)} cells instead of {len(header)}")
    report: dict[str, Any] = dict(zip(header, cells, strict=True))
    for name in ("active_devices", "total_devices"):
        if report[name].isascii() and report[name].isdigit() and len(report[name]) < 10:
            report[name] = int(report[name])
    try:
        return read_report(report, back=None)
    except ValidationError as error:
        return invalid("csv", error.messages)


def _import_batch(items: dict[int, Row | DomainError]) -> Iterator[Row]:
    results = receive_batch(list(items.values()), None)["results"]
    for line, result in zip(items, results, strict=True):
        errors = result.get("errors", {})
        found = errors.get("csv") or errors.get("json") or {}
        texts = (
            [f"{name}: {' '.join(said)}" for name, said in found.items()]
            if isinstance(found, dict)
            else found
        )
        yield {"line": line, "status": result["status"], "message": " ".join(texts) or None}


def retire_instance(customer_id: str, instance_id: str) -> None:
    """Take an instance that will not come back out of every current figure, until it reports again."""
    with db.transaction() as cur:
        if not usage.retire_instance(cur, customer_id, instance_id, now()):
            raise NotFound(f"{customer_id} has no instance {instance_id}.")
        audit.insert_audit(cur, "instance.retire", customer_id=customer_id, subject=instance_id)


def prunable(older_than_days: int) -> int:
    """How many reports are older than that."""
    with db.statement() as cur:
        return usage.count_usage_reports(cur, now() - timedelta(days=older_than_days))


def prune(older_than_days: int) -> int:
    """Delete reports older than that, whole months by dropping their partition: how many.

    Step by step, each by itself, so that reports keep coming in meanwhile; broken off, it goes on next time.
    """
    cutoff = now() - timedelta(days=older_than_days)
    with db.statement() as cur:
        months = usage.select_usage_partitions(cur, cutoff)
        deleted = sum(usage.drop_usage_partition(cur, month) for month in months)
        deleted += usage.delete_usage_reports(cur, cutoff)
        usage.delete_instances(cur, cutoff)
    with db.transaction() as cur:
        note = {"deleted": deleted, "older_than_days": older_than_days}
        audit.insert_audit(cur, "usage.prune", customer_id=None, subject="usage_reports", note=note)
    return deleted
