"""`flask usage …`: what the instances report, against what was bought."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, Final

import click

from app.context import now
from app.db import Row
from app.entitlements import entitle
from app.schemas.usage import OverviewAnswer, UsageAnswer
from app.services import customers
from app.services import usage as usages
from cli.output import (
    DOUBLE_RULE,
    RULE,
    Group,
    as_csv,
    as_json,
    echo_csv,
    echo_fields,
    echo_json,
    echo_rows_json,
    echo_table,
    local_time,
    or_unlimited,
    percent,
)

usage = Group("usage", help="Usage: show, alerts, prune.")
OBSERVED: Final = {
    "sudden_drop": "fell to {active_devices} active devices",
    "shared_license": "began to use the license of others",
}
CHART_WIDTH: Final = 40
CHART_DAYS: Final = 31
REPORT_COLUMNS: Final = (
    ("Date", 20), ("Instance ID", 14), ("Active", 6), ("Total", 5), ("Utilization", 11),
)  # fmt: skip


@usage.command("show")
@click.option("--customer", "customer_id", metavar="CUSTOMER_ID", help="One customer, report by report.")
@click.option("--all", "everybody", is_flag=True, help="Every customer, summed up.")
@click.option("--days", type=click.IntRange(1, 400), default=7, show_default=True)
@as_json
@as_csv
def show(customer_id: str | None, everybody: bool, days: int, to_json: bool, to_csv: bool) -> None:
    """Show reports and figures of the last days.

    \b
    Examples:
      flask usage show --customer cust_abc123 --days 30
      flask usage show --all --csv > usage.csv
    """
    if (customer_id is None) == (not everybody):
        raise click.UsageError("Give either --customer or --all.")
    if customer_id is not None:
        _show_one(customer_id, days, to_json, to_csv)
    else:
        _show_all(days, to_json, to_csv)


def _show_one(customer_id: str, days: int, to_json: bool, to_csv: bool) -> None:
    found = usages.usage_of(customer_id, days=days, limit=None)
    summary, limit = found["summary"], found["device_limit"]
    reports = found["reports"]
    if to_json:
        echo_json(UsageAnswer().dump(found | {"customer_id": customer_id, "next_cursor": None}))
        return
    if to_csv:
        columns = ("reported_at", "instance_id", "active_devices", "total_devices")
        echo_csv(columns, ([row[name] for name in columns] for row in reports))
        return
    customer, subscriptions = customers.get_customer_with_subscriptions(customer_id)
    granted = entitle(customer, subscriptions, now())
    click.echo("Customer Information:")
    click.echo(DOUBLE_RULE)
    echo_fields(
        {
            "ID": customer_id,
            "Email": customer["email"],
            "Name": customer["name"],
            "Company": customer["company_name"],
        }
    )
    click.echo(DOUBLE_RULE)
    click.echo("\nSubscription Information:")
    click.echo(RULE)
    echo_fields(
        {
            "Plan": granted.plan.name.upper(),
            "Status": granted.status.upper(),
            "Device Limit": or_unlimited(limit),
            "Renewal Date": local_time(granted.period_end),
        }
    )
    click.echo(RULE)
    click.echo(f"\nUsage Reports (Last {days} Days):")
    if reports:
        echo_table(
            REPORT_COLUMNS,
            (_line(row, limit) for row in reports),
            right=("Active", "Total", "Utilization"),
        )
    else:
        click.echo(f"{RULE}\nNo usage reports yet.\n{RULE}")
    click.echo("\nSummary Statistics:")
    click.echo(RULE)
    _echo_summary(summary)
    for silent in found["silent_instances"]:
        click.echo(
            f"\n⚠️  Instance {silent['instance_id']} is silent since {local_time(silent['last_reported_at'])}."
        )
    _echo_observations(customer_id, days)
    click.echo(RULE)
    _echo_chart(customer_id, days, limit)


def _line(row: Row, limit: int | None) -> Sequence[Any]:
    used = percent(usages.utilization(row["active_devices"], limit))
    at = local_time(row["reported_at"], seconds=False)
    return at, row["instance_id"], row["active_devices"], row["total_devices"], used


def _echo_summary(summary: Row) -> None:
    echo_fields(
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
        click.echo(f"\n⚠️  WARNING: {percent(summary['utilization'])} of device limit used!")
        click.echo("    Consider upgrading to a higher plan.")


def _echo_observations(customer_id: str, days: int) -> None:
    """What went on record in these days and the figures do not tell."""
    recorded = usages.alerts(days=days, customer_id=customer_id)
    for alert in reversed(recorded):
        if alert["kind"] in OBSERVED:
            told = OBSERVED[alert["kind"]].format_map(alert)
            click.echo(f"\n⚠️  Instance {alert['instance_id']} {told}, {local_time(alert['created_at'])}.")


def _echo_chart(customer_id: str, days: int, limit: int | None) -> None:
    """Active devices per UTC day as bars; `┊` stands at the limit."""
    rows = usages.days_of([customer_id], days=days)[customer_id]
    if not rows:
        return
    active: dict[date, int] = {row["day"]: row["active"] for row in rows}
    first = max(min(active), max(active) - timedelta(days=CHART_DAYS - 1))
    top = max(limit or 0, 1, *(active[day] for day in active if day >= first))
    mark = None if limit is None else round(limit / top * CHART_WIDTH)
    newest = "" if first == min(active) else f", newest {CHART_DAYS}"
    click.echo(f"\nActive Devices per Day (limit {or_unlimited(limit)}{newest}):")
    click.echo(RULE)
    for offset in range((max(active) - first).days + 1):
        day = first + timedelta(days=offset)
        bar = list(("█" * round(active.get(day, 0) / top * CHART_WIDTH)).ljust(CHART_WIDTH + 1))
        if mark is not None:
            bar[mark] = "┊"
        click.echo(f"{day:%Y-%m-%d}  {''.join(bar)} {active.get(day, '-'):>8}")
    click.echo(RULE)


def _show_all(days: int, to_json: bool, to_csv: bool) -> None:
    lines = usages.overview(days=days)
    if to_json:
        echo_json(OverviewAnswer().dump({"customers": lines, "next_cursor": None}))
        return
    figures = (
        "current_active",
        "current_total",
        "utilization",
        "total_reports",
        "avg_active",
        "peak_active",
    )
    if to_csv:
        names = ("customer_id", "email", "name", "company_name", "plan", "status", "device_limit")
        echo_csv(
            (*names, *figures),
            ([line[n] for n in names] + [line["summary"][n] for n in figures] for line in lines),
        )
        return
    click.echo(f"Found {len(lines)} customer(s)")
    click.echo(DOUBLE_RULE)
    for line in lines:
        _echo_line(line, days)
    click.echo(DOUBLE_RULE)


def _echo_line(line: Row, days: int) -> None:
    summary = line["summary"]
    click.echo(f"\n{line['name'] or line['company_name'] or '-'} ({line['email']})")
    echo_fields(
        {
            "  Customer ID": line["customer_id"],
            "  Plan": line["plan"].upper(),
            "  Device Limit": or_unlimited(line["device_limit"]),
            "  Active": f"{summary['current_active']} devices",
            "  Total": f"{summary['current_total']} devices",
            "  Utilization": percent(summary["utilization"]),
            "  Reports": f"{summary['total_reports']} in last {days} days",
        },
        width=16,
    )
    if usages.usage_warning(summary["current_active"], line["device_limit"]):
        click.echo(f"  ⚠️  WARNING: {percent(summary['utilization'])} of limit used!")


@usage.command("alerts")
@click.option("--customer", "customer_id", metavar="CUSTOMER_ID")
@click.option("--days", type=click.IntRange(1, 400), default=30, show_default=True)
@as_json
@as_csv
def alerts(customer_id: str | None, days: int, to_json: bool, to_csv: bool) -> None:
    """List thresholds crossed, sudden drops, shared licenses, and instances silent for 48 hours.

    \b
    Example:
      flask usage alerts --days 7
    """
    rows = usages.alerts(days=days, customer_id=customer_id)
    names = ("created_at", "customer_id", "kind", "instance_id", "active_devices", "device_limit")
    if to_json:
        echo_rows_json(rows)
    elif to_csv:
        echo_csv(names, ([row[name] for name in names] for row in rows))
    else:
        columns = (
            ("Since", 23),
            ("Customer ID", 21),
            ("Kind", 14),
            ("Instance ID", 14),
            ("Active", 6),
            ("Limit", 0),
        )
        cells = ([local_time(row["created_at"]), *(row[name] for name in names[1:])] for row in rows)
        echo_table(columns, cells)


@usage.command("prune")
@click.option(
    "--older-than",
    "days",
    type=click.IntRange(max=36_500),
    required=True,
    metavar="DAYS",
    help="At least 90.",
)
@as_json
def prune(days: int, to_json: bool) -> None:
    """Delete reports older than that; whole months go at the cost of one.

    \b
    Example:
      flask usage prune --older-than 730
    """
    if days < 90:
        raise click.ClickException("Reports younger than 90 days are not pruned.")
    deleted = usages.prune(days)
    if to_json:
        echo_json({"deleted": deleted})
    else:
        click.echo(f"✅ {deleted} report(s) older than {days} days deleted.")
