"""`flask usage …`: what the instances report, against what was bought."""

import sys
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any, Final, TextIO

import click

from app.context import now
from app.db import Row
from app.entitlements import entitle
from app.services import customers
from app.services import usage as usages
from cli.output import (
    DOUBLE_RULE,
    RULE,
    Answer,
    Column,
    Group,
    Table,
    confirm,
    customer_argument,
    fields,
    local_time,
    or_unlimited,
    percent,
    progress,
    yes_option,
)

usage = Group("usage")
days_option = click.option("--days", type=click.IntRange(1, 400), default=7, show_default=True)
OBSERVED: Final = {
    "sudden_drop": "fell to {active_devices} active devices",
    "shared_license": "began to use the license of others",
}
BARS: Final = "▁▂▃▄▅▆▇█"
CHART_WIDTH: Final = 40
CHART_DAYS: Final = 31
FIGURES: Final = (
    "current_active", "current_total", "utilization", "total_reports", "avg_active", "peak_active",
)  # fmt: skip
LINE: Final = ("customer_id", "email", "name", "company_name", "plan", "status", "device_limit")


@usage.command("show", csv=True)
@customer_argument(required=False)
@click.option("--all", "everybody", is_flag=True, help="Every customer, summed up.")
@days_option
@click.option("--reports", "each", is_flag=True, help="Each report, also of more than 31 days.")
def show(customer_id: str | None, everybody: bool, days: int, each: bool) -> Answer:
    """Show reports and figures of the last days.

    \b
    Examples:
      flask usage show --customer cust_abc123 --days 30
      flask usage show --all --csv > usage.csv
    """
    if (customer_id is None) == (not everybody):
        raise click.UsageError("Give either --customer or --all.")
    if customer_id is None:
        return _all(days)
    return _one(customer_id, days, each=each or days <= CHART_DAYS)


def _one(customer_id: str, days: int, *, each: bool) -> Answer:
    found = usages.usage_of(customer_id, days=days, limit=None)

    def as_api() -> Any:
        from app.schemas.usage import UsageAnswer

        return UsageAnswer().dump(found | {"customer_id": customer_id, "next_cursor": None})

    columns = ("reported_at", "instance_id", "active_devices", "total_devices")
    return Answer(as_api, _screen(customer_id, found, days, each), csv=(columns, found["reports"]))


def _screen(customer_id: str, found: Row, days: int, each: bool) -> Iterator[str | Table]:
    customer, subscriptions = customers.get_customer_with_subscriptions(customer_id)
    granted, limit = entitle(customer, subscriptions, now()), found["device_limit"]
    yield f"Customer Information:\n{DOUBLE_RULE}"
    yield fields(
        {
            "ID": customer_id,
            "Email": customer["email"],
            "Name": customer["name"],
            "Company": customer["company_name"],
        }
    )
    yield f"{DOUBLE_RULE}\n\nSubscription Information:\n{RULE}"
    yield fields(
        {
            "Plan": granted.plan.name.upper(),
            "Status": granted.status.upper(),
            "Device Limit": or_unlimited(limit),
            "Renewal Date": local_time(granted.period_end),
        }
    )
    yield f"{RULE}\n\nUsage Reports (Last {days} Days):"
    per_day = usages.days_of([customer_id], days=days)[customer_id]
    if not found["reports"]:
        yield f"{RULE}\nNo usage reports yet.\n{RULE}"
    elif each:
        yield _reports(found["reports"], limit)
    else:
        yield _days(per_day, limit)
    yield f"\nSummary Statistics:\n{RULE}\n{_summary(found['summary'])}"
    for silent in found["silent_instances"]:
        since = local_time(silent["last_reported_at"])
        yield f"\n⚠️  Instance {silent['instance_id']} is silent since {since}."
    for alert in reversed(usages.alerts(days=days, customer_id=customer_id)):
        if alert["kind"] in OBSERVED:
            observed = OBSERVED[alert["kind"]].format_map(alert)
            yield f"\n⚠️  Instance {alert['instance_id']} {observed}, {local_time(alert['created_at'])}."
    yield RULE
    yield from _chart(per_day, limit)


def _reports(reports: Sequence[Row], limit: int | None) -> Table:
    return Table(
        [
            Column("Date", 20), Column("Instance ID", 14, is_id=True), Column("Active", 6, right=True),
            Column("Total", 5, right=True), Column("Utilization", 11, right=True),
        ],
        (
            (
                local_time(row["reported_at"], seconds=False), row["instance_id"], row["active_devices"],
                row["total_devices"], percent(usages.utilization(row["active_devices"], limit)),
            )
            for row in reports
        ),
    )  # fmt: skip


def _days(per_day: Sequence[Row], limit: int | None) -> Table:
    return Table(
        [
            Column("Day (UTC)", 20), Column("Reports", 14, right=True), Column("Active", 6, right=True),
            Column("Utilization", 11, right=True),
        ],
        (
            (row["day"], row["reports"], row["active"], percent(usages.utilization(row["active"], limit)))
            for row in reversed(per_day)
        ),
    )  # fmt: skip


def _summary(summary: Row) -> str:
    text = fields(
        {
            "Total Reports": summary["total_reports"],
            "Avg Active": f"{summary['avg_active']:.1f} devices",
            "Peak Active": f"{summary['peak_active']} devices",
            "Current Active": f"{summary['current_active']} devices",
            "Current Total": f"{summary['current_total']} devices",
            "Limit": or_unlimited(summary["limit"], " devices"),
            "Remaining": or_unlimited(summary["remaining"], " devices"),
        }
    )
    if usages.usage_warning(summary["current_active"], summary["limit"]):
        used = percent(summary["utilization"])
        text += f"\n\n⚠️  WARNING: {used} of device limit used!\n    Consider upgrading to a higher plan."
    return text


def _chart(per_day: Sequence[Row], limit: int | None) -> Iterator[str]:
    """Active devices per UTC day as bars; `┊` stands at the limit."""
    active: dict[date, int] = {row["day"]: row["active"] for row in per_day}
    if not active:
        return
    first = max(min(active), max(active) - timedelta(days=CHART_DAYS - 1))
    top = max(limit or 0, 1, *(active[day] for day in active if day >= first))
    mark = None if limit is None else round(limit / top * CHART_WIDTH)
    newest = "" if first == min(active) else f", newest {CHART_DAYS}"
    yield f"\nActive Devices per Day (limit {or_unlimited(limit)}{newest}):\n{RULE}"
    for offset in range((max(active) - first).days + 1):
        day = first + timedelta(days=offset)
        bar = list(("█" * round(active.get(day, 0) / top * CHART_WIDTH)).ljust(CHART_WIDTH + 1))
        if mark is not None:
            bar[mark] = "┊"
        yield f"{day:%Y-%m-%d}  {''.join(bar)} {active.get(day, '-'):>8}"
    yield RULE


def _all(days: int) -> Answer:
    lines = usages.overview(days=days)

    def as_api() -> Any:
        from app.schemas.usage import OverviewAnswer

        return OverviewAnswer().dump({"customers": lines, "next_cursor": None})

    return Answer(as_api, _screen_of_all(lines, days), csv=_as_csv(lines))


def _as_csv(lines: Sequence[Row]) -> tuple[Sequence[str], Iterator[Row]]:
    return (*LINE, *FIGURES), (line | line["summary"] for line in lines)


def _screen_of_all(lines: Sequence[Row], days: int) -> Iterator[str]:
    yield f"Found {len(lines)} customer(s)\n{DOUBLE_RULE}"
    # Elsewhere the text is the seed's, which scripts may read.
    ids = [line["customer_id"] for line in lines] if sys.stdout.isatty() else []
    per_day = usages.days_of(ids, days=days)
    for line in lines:
        summary, used = line["summary"], percent(line["summary"]["utilization"])
        yield f"\n{line['name'] or line['company_name'] or '-'} ({line['email']})"
        yield fields(
            {
                "Customer ID": line["customer_id"],
                "Plan": line["plan"].upper(),
                "Device Limit": or_unlimited(line["device_limit"]),
                "Active": f"{summary['current_active']} devices",
                "Total": f"{summary['current_total']} devices",
                "Utilization": used,
                "Reports": f"{summary['total_reports']} in last {days} days",
            },
            width=16,
            indent="  ",
        )
        if per_day.get(line["customer_id"]):
            yield f"  Per Day:      {_sparkline(per_day[line['customer_id']], line['device_limit'])}"
        if usages.usage_warning(summary["current_active"], line["device_limit"]):
            yield f"  ⚠️  WARNING: {used} of limit used!"
    yield DOUBLE_RULE


def _sparkline(per_day: Sequence[Row], limit: int | None) -> str:
    """One character a day, the highest one at the limit or above; a dot for a day without reports."""
    active: dict[date, int] = {row["day"]: row["active"] for row in per_day}
    top = limit or max(active.values()) or 1
    first = max(min(active), max(active) - timedelta(days=CHART_DAYS - 1))
    week = (first + timedelta(days=n) for n in range((max(active) - first).days + 1))
    return "".join(BARS[min(7, active[day] * 7 // top)] if day in active else "·" for day in week)


@usage.command("top", csv=True)
@click.option(
    "--over", type=click.IntRange(0, 1000), default=80, show_default=True, metavar="PERCENT",
    help="From this utilization on.",
)  # fmt: skip
def top(over: int) -> Answer:
    """List who is near or over the device limit, worst first.

    \b
    Example:
      flask usage top --over 100
    """
    lines = usages.top(over / 100)
    columns = [
        Column("Customer ID", 21, is_id=True), Column("Plan", 12), Column("Active", 6, right=True),
        Column("Limit", 5, right=True), Column("Utilization", 11, right=True), Column("Email"),
        Column("Name"),
    ]  # fmt: skip
    cells = [
        (
            line["customer_id"], line["plan"].upper(), line["summary"]["current_active"],
            line["device_limit"], percent(line["summary"]["utilization"]), line["email"],
            line["name"] or line["company_name"],
        )
        for line in lines
    ]  # fmt: skip
    data = [{name: line[name] for name in LINE} | {n: line["summary"][n] for n in FIGURES} for line in lines]
    return Answer(data, [Table(columns, cells)], csv=_as_csv(lines))


@usage.command("alerts", csv=True)
@customer_argument(required=False)
@click.option("--kind", type=click.Choice(list(usages.ALERTS)), help="Only these.")
@click.option("--days", type=click.IntRange(1, 400), default=30, show_default=True)
def alerts(customer_id: str | None, kind: str | None, days: int) -> Answer:
    """List thresholds crossed, sudden drops, shared licenses, and instances silent for 48 hours.

    \b
    Example:
      flask usage alerts --days 7 --kind silent
    """
    rows = usages.alerts(days=days, customer_id=customer_id, kind=kind)
    names = (
        "created_at", "customer_id", "kind", "instance_id", "active_devices", "device_limit", "email",
        "name", "company_name",
    )  # fmt: skip
    columns = [
        Column("Since", 23), Column("Customer ID", 21, is_id=True), Column("Kind", 14, is_id=True),
        Column("Instance ID", 14, is_id=True), Column("Active", 6), Column("Limit", 5), Column("Name"),
    ]  # fmt: skip
    cells = [
        (
            local_time(row["created_at"]), row["customer_id"], row["kind"], row["instance_id"],
            row["active_devices"], row["device_limit"], row["name"] or row["company_name"] or row["email"],
        )
        for row in rows
    ]  # fmt: skip
    return Answer(rows, [Table(columns, cells)], csv=(names, rows))


@usage.command("import")
@click.argument("file", type=click.File(encoding="utf-8-sig", errors="surrogateescape"))
def import_(file: TextIO) -> Answer:
    """Take older reports in from a CSV file; good lines go in, bad ones are named and make it exit 1.

    \b
    Header: customer_id,instance_id,active_devices,total_devices,timestamp
    Example:
      flask usage import history.csv
    """
    results = []
    with progress("Importing") as advance:
        for result in usages.import_csv(file):
            results.append(result)
            advance(1, 1)
    refused = [result for result in results if result["message"]]
    accepted = sum(result["status"] == 201 for result in results)
    duplicates = len(results) - accepted - len(refused)
    text = [f"❌ Line {result['line']}: {result['message']}" for result in refused]
    text.append(f"{accepted} report(s) imported, {duplicates} there before, {len(refused)} refused.")
    data = {"accepted": accepted, "duplicates": duplicates, "rejected": refused}
    return Answer(data, text, exit_code=1 if refused else 0)


@usage.command("prune")
@click.option(
    "--older-than", "days", type=click.IntRange(max=36_500), required=True, metavar="DAYS",
    help="At least 90.",
)  # fmt: skip
@yes_option
def prune(days: int, yes: bool) -> Answer:
    """Delete reports older than that; whole months go at the cost of one.

    \b
    Example:
      flask usage prune --older-than 730
    """
    if days < 90:
        raise click.ClickException("Reports younger than 90 days are not pruned.")
    if not yes:
        question = (
            f"Delete {usages.prunable(days)} report(s) of all customers older than {days} days for good?"
        )
        confirm(question, yes=yes)
    deleted = usages.prune(days)
    return Answer({"deleted": deleted}, [f"✅ {deleted} report(s) older than {days} days deleted."])
