"""Usage reports: taking them in, and what they sum up to."""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import psycopg2

from app.context import now
from app.db import Cursor, Row
from app.entitlements import entitle
from app.errors import Conflict, DomainError, Forbidden, NotFound, Unavailable
from app.extensions import db
from app.licenses import Token
from app.observe import REPORTS
from app.queries import usage
from app.services.customers import get_customer_with_subscriptions, subscriptions_of
from app.services.licenses import current_license, is_current, require_serving

SILENT_AFTER: Final = timedelta(hours=48)
IN_USE_WITHIN: Final = timedelta(days=7)
DROP_FROM: Final = 10
"""Below this many active devices a fall is everyday; at or above it, losing half is worth a look."""

OTHER_FIGURES: Final = (
    "This instance reported other figures for this time. Send a correction under a new time."
)
DELETED: Final = "This report was deleted in this moment. Send it again."
RETRY_MONTH_SECONDS: Final = 60
FIGURES: Final = ("active_devices", "total_devices")
FIGURES_OF_A_WINDOW: Final = (
    "total_reports",
    "avg_active",
    "peak_active",
    "current_active",
    "current_total",
)
log = logging.getLogger(__name__)
_months: dict[tuple[int, int], float] = {}


def receive_report(report: dict[str, Any], presented: Token | None) -> tuple[dict[str, Any], bool]:
    """Store a report: the answer, and whether it is new. `jti` is the license presented, if one was.

    Raises Conflict when the same (customer, instance, time) was reported with other figures,
    Unauthorized or Forbidden when the license is not on record, or revoked.
    """
    jti = presented.jti if presented else None
    _prepare_month(report["reported_at"])
    since = now() - IN_USE_WITHIN
    with db.statement() as cur:
        row = usage.insert_usage_report(cur, report | {"jti": jti, "since": since})
        row = require_serving(row, report["customer_id"], presented, renewing=True)
        is_new = row["id"] is not None
        stored = {"id": row["id"], "created_at": row["created_at"]} if is_new else _first(cur, report)
        answer = {**report, **stored, "last_reported_at": row["last_reported_at"]}
        _add_entitlement(answer, row, jti)
        if is_new:
            _watch(cur, answer, row, since)
        else:
            _judge_anew([report], since)
    REPORTS.labels("accepted" if is_new else "duplicate").inc()
    return answer, is_new


def _first(cur: Cursor, report: dict[str, Any]) -> Row:
    """The stored report with this key, if the figures are the same; else Conflict."""
    stored = _stored(cur, [report]).get(_key(report))
    if stored is None:
        raise Unavailable(DELETED)
    if _differs(report, stored):
        REPORTS.labels("conflict").inc()
        raise Conflict(OTHER_FIGURES)
    return stored


def _differs(report: Row, stored: Row) -> bool:
    return any(stored[name] != report[name] for name in FIGURES)


def _add_entitlement(answer: dict[str, Any], row: Row, jti: str | None) -> None:
    """Add what the customer may use, and the license that an instance with an old one should take."""
    device_limit = row["device_limit"]
    if jti is None:
        device_limit = _entitled(row)["device_limit"]
    elif row["current_jti"] != jti or not is_current(row):
        try:
            current = current_license(answer["customer_id"])
            device_limit = current["device_limit"]
            if current["jti"] != jti:
                answer["license"] = current["token"]
        except DomainError as error:  # revoked in this moment, or no key to sign with: the report is stored
            log.warning("no license for a report that was taken in: %s", error.message)
            device_limit = _entitled(row)["device_limit"]
    used = answer["active_devices"]
    answer["device_limit"] = device_limit
    answer["utilization"] = utilization(used, device_limit)
    answer["over_limit"] = device_limit is not None and used > device_limit
    warning = usage_warning(used, device_limit) or usage_warning(
        used + int(row["others_active"]), device_limit
    )
    if warning:
        answer["warning"] = warning


def _entitled(row: Row) -> Row:
    """The row with what its customer may use now: as the current license says, else derived anew."""
    if is_current(row):
        return row
    return _derived(row, *get_customer_with_subscriptions(row["customer_id"]))


def _derived(row: Row, customer: Row, subscriptions: Sequence[Row]) -> Row:
    granted = entitle(customer, subscriptions, now())
    return row | {
        "plan": granted.plan.name, "status": granted.status, "device_limit": granted.device_limit,
    }  # fmt: skip


def _watch(cur: Cursor, answer: dict[str, Any], row: Row, since: datetime) -> None:
    """Put on record what an operator should see: a threshold crossed, a sudden drop, a shared license."""
    customer_id, used, limit = answer["customer_id"], answer["active_devices"], answer["device_limit"]
    last_at, at = row["last_reported_at"], answer["reported_at"]
    if last_at is None and row["other_instances"]:
        _record(cur, "shared_license", answer, limit)
    if last_at is not None and at > last_at and _is_drop(row["last_active"], used):
        _record(cur, "sudden_drop", answer, limit)
    if at < since or (last_at is not None and at < last_at):
        return
    others = int(row["others_active"])
    before = others + (row["last_active"] if last_at is not None and last_at >= since else 0)
    standing: Row | None = row | {"active": others + used}
    if row["other_instances"] or last_at is None or last_at < since:
        # Another instance may have reported in the same moment, unseen by either: add up once more.
        standing = _standing(cur, customer_id, since)
    if standing is not None:
        _judge_level(standing, limit, before)


def _standing(cur: Cursor, customer_id: str, since: datetime) -> Row | None:
    """What a customer uses and may use; None when it was erased in this moment."""
    return next(iter(usage.select_usage_standings(cur, [customer_id], since)), None)


def _judge_anew(reports: Iterable[Row], since: datetime) -> None:
    """For reports that come again: the first time may have been cut off between storing and judging."""
    for standing in _standings(reports, since).values():
        _judge_level(standing, _entitled(standing)["device_limit"], standing["active"])


def _record(cur: Cursor, kind: str, report: Mapping[str, Any], device_limit: int | None) -> None:
    usage.insert_usage_alert(
        cur,
        report["customer_id"],
        kind=kind,
        instance_id=report["instance_id"],
        active_devices=report["active_devices"],
        device_limit=device_limit,
    )


def _is_drop(before: int, active: int) -> bool:
    return before >= DROP_FROM and active * 2 <= before


def _judge_level(standing: Row, limit: int | None, before: int) -> None:
    """Bring the threshold on record up to date; `before` is what was in use before the report."""
    level = standing["level"]
    below_before = usage_level(before, limit) < level
    if usage_level(standing["active"], limit) == level and (
        level == 0 or (limit == standing["level_limit"] and not below_before)
    ):
        return
    customer_id = standing["customer_id"]
    with db.transaction() as cur:
        held = usage.lock_usage_level(cur, customer_id, limit)
        since = now() - IN_USE_WITHIN
        present = _standing(cur, customer_id, since)
        if present is None:
            return
        active, limit = present["active"], _entitled(present)["device_limit"]
        armed_from = held["level"]
        if _is_more(limit, held["device_limit"]):
            armed_from = 0
        elif held["changed_at"] < since:
            # An instance that fell silent left the sum without a report that could have told.
            armed_from = min(armed_from, usage_level(before, limit))
        reached = usage_level(active, limit)
        usage.update_usage_level(cur, customer_id, level=reached, device_limit=limit)
        for threshold in (80, 100):
            if armed_from < threshold <= reached:
                usage.insert_usage_alert(
                    cur, customer_id, kind=f"threshold_{threshold}", instance_id=None,
                    active_devices=active, device_limit=limit,
                )  # fmt: skip


def _is_more(limit: int | None, than: int | None) -> bool:
    return than is not None and (limit is None or limit > than)


def receive_batch(items: Sequence[dict[str, Any] | DomainError], caller: str | None) -> list[dict[str, Any]]:
    """Store many reports, each on its own: a result per item, in order.

    An item is a report, or the error it was refused with; a result is as the API has it. `caller` is the
    customer whose license was presented; None is an operator, who may report for everybody.
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
    _count_results(results)
    return results


def _store_batch(good: dict[int, dict[str, Any]], results: list[dict[str, Any]]) -> None:
    since = now() - IN_USE_WITHIN
    before = _standings(good.values(), since)
    for index, report in list(good.items()):
        if report["customer_id"] not in before:
            results[index] = _failure(index, NotFound(f"There is no customer {report['customer_id']}."))
            del good[index]
    if not good:
        return
    reports = list(good.values())
    for moment in {(at.year, at.month): at for at in (report["reported_at"] for report in reports)}.values():
        _prepare_month(moment)
    with db.transaction() as cur:
        new = {_key(row): row for row in usage.insert_usage_reports(cur, reports)}
        stored = _stored(cur, [report for report in reports if _key(report) not in new])
        newest = _newest_by_instance(new.values())
        known = usage.select_instances_by_key(cur, newest) if newest else []
        if newest:
            usage.upsert_instances(cur, newest)
    unused = set(new)
    for index, report in good.items():
        key = _key(report)
        first = new.get(key) or stored.get(key)
        if first is None:
            results[index] = _failure(index, Unavailable(DELETED))
        else:
            results[index] = _result(index, report, first, is_new=key in unused)
        unused.discard(key)
    if newest:
        _watch_batch(newest, known, before, since)
    if stored:
        _judge_anew(stored.values(), since)


def _standings(reports: Iterable[Row], since: datetime) -> dict[str, Row]:
    """What each customer of these reports uses and may use; without those that do not exist."""
    wanted = sorted({report["customer_id"] for report in reports})
    with db.statement() as cur:
        return {row["customer_id"]: row for row in usage.select_usage_standings(cur, wanted, since)}


def _stored(cur: Cursor, reports: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
    """The stored reports with the keys of these, which are all there unless somebody deletes them.

    A month's partition that is made in this very moment may take them out of a statement's sight, once.
    """
    found: dict[tuple[Any, ...], Row] = {}
    for _ in range(2):
        missing = [report for report in reports if _key(report) not in found]
        if missing:
            found |= {_key(row): row for row in usage.select_usage_reports_by_key(cur, missing)}
    return found


def _result(index: int, report: Row, stored: Row, *, is_new: bool) -> dict[str, Any]:
    if _differs(report, stored):
        return _failure(index, Conflict(OTHER_FIGURES))
    return {"index": index, "status": 201 if is_new else 200, "reportId": stored["id"]}


def _newest_by_instance(reports: Iterable[Row]) -> list[Row]:
    by_time = sorted(reports, key=itemgetter("reported_at"))
    return list({(row["customer_id"], row["instance_id"]): row for row in by_time}.values())


def _watch_batch(
    newest: Sequence[Row], known: Sequence[Row], before: dict[str, Row], since: datetime
) -> None:
    """The same as `_watch`, by the newest of the reports of each instance."""
    last = {(row["customer_id"], row["instance_id"]): row for row in known}
    instances = {customer_id: standing["instances"] for customer_id, standing in before.items()}
    standings = _standings(newest, since)
    for customer_id, reports in groupby(sorted(newest, key=_key), key=itemgetter("customer_id")):
        if customer_id not in standings:
            continue  # erased in this moment
        standing = standings[customer_id]
        limit = _entitled(standing)["device_limit"]
        with db.statement() as cur:
            for report in reports:
                previous = last.get((customer_id, report["instance_id"]))
                if previous is None:
                    if instances[customer_id]:
                        _record(cur, "shared_license", report, limit)
                    instances[customer_id] += 1
                elif report["reported_at"] > previous["last_reported_at"] and _is_drop(
                    previous["active_devices"], report["active_devices"]
                ):
                    _record(cur, "sudden_drop", report, limit)
        _judge_level(standing, limit, before[customer_id]["active"])


def _count_results(results: Iterable[dict[str, Any]]) -> None:
    outcomes = Counter(
        {201: "accepted", 200: "duplicate"}.get(result["status"], "rejected") for result in results
    )
    for outcome, count in outcomes.items():
        REPORTS.labels(outcome).inc(count)


def _failure(index: int, error: DomainError) -> dict[str, Any]:
    return {
        "index": index,
        "status": error.code,
        "errors": error.errors or {"json": [error.message]},
    }


def _key(row: Mapping[str, Any]) -> tuple[str, str, datetime]:
    return row["customer_id"], row["instance_id"], row["reported_at"]


def usage_of(
    customer_id: str,
    *,
    days: int,
    limit: int | None,
    before: tuple[datetime, int] | None = None,
    presented: Token | None = None,
) -> dict[str, Any]:
    """One customer's reports (newest first), figures and silent instances over the last `days` × 24 h.

    `jti` is the license presented, if one was; raises what `check_presented` does.
    """
    since, silent_before = now() - timedelta(days=days), now() - SILENT_AFTER
    silent: list[Row] = []
    with db.statement() as cur:
        found = usage.select_usage_of(
            cur,
            customer_id,
            jti=presented.jti if presented else None,
            since=since,
            silent_before=silent_before,
        )
        row = require_serving(found, customer_id, presented)
        reports = usage.select_usage_reports(cur, customer_id, since=since, limit=limit, before=before)
        if row["any_silent"]:
            silent = usage.select_silent_instances(cur, customer_id=customer_id, before=silent_before)
    row = _entitled(row)
    return {
        "plan": row["plan"],
        "device_limit": row["device_limit"],
        "reports": reports,
        "summary": summarize(row),
        "silent_instances": silent,
    }


def overview(*, days: int, limit: int | None = None, after: int | None = None) -> list[Row]:
    """A page of customers (or all) with what each may use and its figures over the last `days` × 24 h."""
    with db.statement() as cur:
        rows = usage.select_usage_overview(cur, since=now() - timedelta(days=days), limit=limit, after=after)
    outdated = [row for row in rows if not is_current(row)]
    of = subscriptions_of(outdated) if outdated else {}
    lines = [_derived(row, row, of[row["customer_id"]]) if row["customer_id"] in of else row for row in rows]
    return [line | {"summary": summarize(line)} for line in lines]


def summarize(row: Row) -> dict[str, Any]:
    """The summary of the API: the figures of a row against its device limit."""
    used, device_limit = row["current_active"], row["device_limit"]
    return {
        **{name: row[name] for name in FIGURES_OF_A_WINDOW},
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
    """Delete reports older than that, whole months by dropping their partition: how many.

    Step by step, each by itself, so that reports keep coming in meanwhile; broken off, it goes on next time.
    """
    cutoff = now() - timedelta(days=older_than_days)
    with db.statement() as cur:
        months = usage.select_usage_partitions(cur, cutoff)
        deleted = sum(usage.drop_usage_partition(cur, month) for month in months)
        deleted += usage.delete_usage_reports(cur, cutoff)
        usage.delete_instances(cur, cutoff)
    return deleted


def _prepare_month(moment: datetime) -> None:
    """Make sure, once per process and month, that its partition is there, and the next one ahead of time.

    Where that fails (a backup holds the table, or the role may not create) the default partition takes
    the reports, until a later try moves them.
    """
    at = moment.astimezone(UTC)
    month, tried = (at.year, at.month), _months
    if time.monotonic() < tried.get(month, 0.0):
        return
    tried[month] = time.monotonic() + RETRY_MONTH_SECONDS
    with db.statement() as cur:
        try:
            for needed in (at, (at.replace(day=1) + timedelta(days=32)).replace(day=1)):
                usage.ensure_usage_partition(cur, needed)
        except psycopg2.Error as error:
            log.warning("no partition for %d-%02d yet: %s", *month, str(error).partition("\n")[0])
            return
    tried[month] = math.inf
