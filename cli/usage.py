"""`flask usage …`: what the instances report, against what was bought."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, timedelta
from typing import Final, TextIO

import click

from app.context import now
from app.db import Row
from app.entitlements import entitle
from app.services import customers
from app.services import usage as usages
from cli.customer import identity
from cli.output import (
    DOUBLE_RULE,
    RULE,
    Answer,
    Column,
    Group,
    Table,
    confirm,
    customer_argument,
    dump,
    fields,
    is_terminal,
    local_time,
    or_unlimited,
    percent,
    progress,
    yes_option,
)

usage = Group("usage")
OBSERVED: Final = {
    "sudden_drop": "fell to {active_devices} active devices",
    "shared_license": "began to use the license of others",
}
BARS: Final = "▁▂▃▄▅▆▇█"
CHART_WIDTH: Final = 40
CHART_DAYS: Final = 31
LINE: Final = (
    "customer_id", "email", "name", "company_name", "plan", "status", "device_limit", "current_active",
    "current_total", "utilization", "total_reports", "avg_active", "peak_active",
)  # fmt: skip


@usage.command(
    "show",
    "flask usage show --customer cust_abc123 --days 30",
    "flask usage show --all --csv > usage.csv",
    csv=True,
)
@customer_argument(required=False)
@click.option("--all", "everybody", is_flag=True, help="Every customer, summed up.")
@click.option("--days", type=click.IntRange(1, 400), default=7, show_default=True)
@click.option("--reports", "each", is_flag=True, help="Each report, also of more than 31 days.")
def show(customer_id: str | None, everybody: bool, days: int, each: bool) -> Answer:
    """Show reports and figures of the last days."""
    if (customer_id is None) == (not everybody):
        raise click.UsageError("Give either --customer or --all.")
    if customer_id is None:
        lines = usages.overview(days=days)
        data: Row = {"customers": lines, "next_cursor": None}
        return Answer(
            lambda: dump("usage:OverviewAnswer", data),
            _screen_of_all(lines, days),
            csv=(LINE, _with_figures(lines)),
        )
    found = usages.usage_of(customer_id, days=days, limit=None)
    data = found | {"customer_id": customer_id, "next_cursor": None}
    return Answer(
        lambda: dump("usage:UsageAnswer", data),
        _screen(customer_id, found, days, each or days <= CHART_DAYS),
        csv=(("reported_at", "instance_id", "active_devices", "total_devices"), found["reports"]),
    )


def _screen(customer_id: str, found: Row, days: int, each: bool) -> Iterator[str | Table]:
    customer, subscriptions = customers.get_customer_with_subscriptions(customer_id)
    granted, limit = entitle(customer, subscriptions, now()), found["device_limit"]
    entitled = {
        "Plan": granted.plan.name.upper(),
        "Status": granted.status.upper(),
        "Device Limit": or_unlimited(limit),
        "Renewal Date": local_time(granted.period_end),
    }
    yield f"Customer Information:\n{DOUBLE_RULE}\n{fields(identity(customer))}\n{DOUBLE_RULE}\n"
    yield f"Subscription Information:\n{RULE}\n{fields(entitled)}\n{RULE}\n"
    yield f"Usage Reports (Last {days} Days):"
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
    if per_day:
        yield from _chart(per_day, limit)


def _reports(reports: Iterable[Row], limit: int | None) -> Table:
    columns = [
        Column("Date", lambda row: local_time(row["reported_at"], seconds=False), 20),
        Column("Instance ID", "instance_id", 14, is_id=True),
        Column("Active", "active_devices", 6, right=True), Column("Total", "total_devices", 5, right=True),
        _utilization("active_devices", limit),
    ]  # fmt: skip
    return Table(columns, reports)


def _days(per_day: Sequence[Row], limit: int | None) -> Table:
    columns = [
        Column("Day (UTC)", "day", 20), Column("Reports", "reports", 14, right=True),
        Column("Active", "active", 6, right=True), _utilization("active", limit),
    ]  # fmt: skip
    return Table(columns, reversed(per_day))


def _utilization(active: str, limit: int | None) -> Column:
    return Column("Utilization", lambda row: percent(usages.utilization(row[active], limit)), 11, right=True)


def _summary(summary: Row) -> str:
    figures = {
        "Total Reports": summary["total_reports"],
        "Avg Active": f"{summary['avg_active']:.1f} devices",
        "Peak Active": f"{summary['peak_active']} devices",
        "Current Active": f"{summary['current_active']} devices",
        "Current Total": f"{summary['current_total']} devices",
        "Limit": or_unlimited(summary["limit"], " devices"),
        "Remaining": or_unlimited(summary["remaining"], " devices"),
    }
    text = fields(figures)
    if usages.usage_warning(summary["current_active"], summary["limit"]):
        used = percent(summary["utilization"])
        text += f"\n\n⚠️  WARNING: {used} of device limit used!\n    Consider upgrading to a higher plan."
    return text


def _charted(per_day: Sequence[Row]) -> dict[date, int | None]:
    """Active devices of each of the newest days up to the last report; None for a day without reports."""
    active: dict[date, int] = {row["day"]: row["active"] for row in per_day}
    newest = max(active)
    ages = range(min((newest - min(active)).days, CHART_DAYS - 1), -1, -1)
    return {day: active.get(day) for day in (newest - timedelta(days=age) for age in ages)}


def _chart(per_day: Sequence[Row], limit: int | None) -> Iterator[str]:
    """Active devices per UTC day as bars; `┊` stands at the limit."""
    active = _charted(per_day)
    top = max(limit or 0, 1, *(count or 0 for count in active.values()))
    newest = "" if per_day[0]["day"] in active else f", newest {CHART_DAYS}"
    yield f"\nActive Devices per Day (limit {or_unlimited(limit)}{newest}):\n{RULE}"
    for day, count in active.items():
        bar = list(("█" * round((count or 0) / top * CHART_WIDTH)).ljust(CHART_WIDTH + 1))
        if limit is not None:
            bar[round(limit / top * CHART_WIDTH)] = "┊"
        yield f"{day:%Y-%m-%d}  {''.join(bar)} {'-' if count is None else count:>8}"
    yield RULE


def _sparkline(per_day: Sequence[Row], limit: int | None) -> str:
    """One character a day, the highest one at the limit or above; a dot for a day without reports."""
    active = _charted(per_day)
    top = limit or max(count or 0 for count in active.values()) or 1
    return "".join("·" if count is None else BARS[min(7, count * 7 // top)] for count in active.values())


def _with_figures(lines: Sequence[Row]) -> list[Row]:
    return [{name: (line | line["summary"])[name] for name in LINE} for line in lines]


def _screen_of_all(lines: Sequence[Row], days: int) -> Iterator[str]:
    yield f"Found {len(lines)} customer(s)\n{DOUBLE_RULE}"
    # Elsewhere the text is the seed's, which scripts may read.
    ids = [line["customer_id"] for line in lines] if is_terminal(sys.stdout) else []
    per_day = usages.days_of(ids, days=days)
    for line in lines:
        summary, used = line["summary"], percent(line["summary"]["utilization"])
        yield f"\n{line['name'] or line['company_name'] or '-'} ({line['email']})"
        figures = {
            "Customer ID": line["customer_id"],
            "Plan": line["plan"].upper(),
            "Device Limit": or_unlimited(line["device_limit"]),
            "Active": f"{summary['current_active']} devices",
            "Total": f"{summary['current_total']} devices",
            "Utilization": used,
            "Reports": f"{summary['total_reports']} in last {days} days",
        }
        yield fields(figures, width=16, indent="  ")
        if per_day.get(line["customer_id"]):
            yield f"  Per Day:      {_sparkline(per_day[line['customer_id']], line['device_limit'])}"
        if usages.usage_warning(summary["current_active"], line["device_limit"]):
            yield f"  ⚠️  WARNING: {used} of limit used!"
    yield DOUBLE_RULE


@usage.command("top", "flask usage top --over 100", csv=True)
@click.option(
    "--over", type=click.IntRange(0, 1000), default=80, show_default=True, metavar="PERCENT",
    help="From this utilization on.",
)  # fmt: skip
def top(over: int) -> Answer:
    """List who is near or over the device limit, worst first."""
    rows = _with_figures(usages.top(over / 100))
    columns = [
        Column("Customer ID", "customer_id", 21, is_id=True),
        Column("Plan", lambda row: row["plan"].upper(), 12),
        Column("Active", "current_active", 6, right=True), Column("Limit", "device_limit", 5, right=True),
        Column("Utilization", lambda row: percent(row["utilization"]), 11, right=True),
        Column("Email", "email"), Column("Name", lambda row: row["name"] or row["company_name"]),
    ]  # fmt: skip
    return Answer(rows, [Table(columns, rows)], csv=(LINE, rows))


@usage.command("alerts", "flask usage alerts --days 7 --kind silent", csv=True)
@customer_argument(required=False)
@click.option("--kind", type=click.Choice(list(usages.ALERTS)), help="Only these.")
@click.option("--days", type=click.IntRange(1, 400), default=30, show_default=True)
def alerts(customer_id: str | None, kind: str | None, days: int) -> Answer:
    """List thresholds crossed, sudden drops, shared licenses, and instances silent for 48 hours."""
    rows = usages.alerts(days=days, customer_id=customer_id, kind=kind)
    names = (
        "created_at", "customer_id", "kind", "instance_id", "active_devices", "device_limit", "email",
        "name", "company_name",
    )  # fmt: skip
    columns = [
        Column("Since", "created_at", 23), Column("Customer ID", "customer_id", 21, is_id=True),
        Column("Kind", "kind", 14, is_id=True), Column("Instance ID", "instance_id", 14, is_id=True),
        Column("Active", "active_devices", 6), Column("Limit", "device_limit", 5),
        Column("Name", lambda row: row["name"] or row["company_name"] or row["email"]),
    ]  # fmt: skip
    return Answer(rows, [Table(columns, rows)], csv=(names, rows))


@usage.command("import", "flask usage import history.csv")
@click.argument("file", type=click.File(encoding="utf-8-sig", errors="surrogateescape"))
def import_(file: TextIO) -> Answer:
    """Take older reports in from a CSV file; good lines go in, bad ones are named and make it exit 1.

    \b
    Header: customer_id,instance_id,active_devices,total_devices,timestamp
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


@usage.command("prune", "flask usage prune --older-than 730")
@click.option(
    "--older-than", "days", type=click.IntRange(max=36_500), required=True, metavar="DAYS",
    help="At least 90.",
)  # fmt: skip
@yes_option
def prune(days: int, yes: bool) -> Answer:
    """Delete reports older than that; whole months go at the cost of one."""
    if days < 90:
        raise click.ClickException("Reports younger than 90 days are not pruned.")
    if not yes:
        count = usages.prunable(days)
        confirm(f"Delete {count} report(s) of all customers older than {days} days for good?", yes=yes)
    deleted = usages.prune(days)
    return Answer({"deleted": deleted}, [f"✅ {deleted} report(s) older than {days} days deleted."])
