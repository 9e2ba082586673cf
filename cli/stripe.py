"""`flask stripe …` and `flask webhook …`: keep the database at Stripe's state."""

from datetime import timedelta

import click

from app.context import now
from app.extensions import db
from app.queries import audit
from app.queries import events as event_rows
from app.queries.stripe import insert_ignored
from app.stripe_objects import is_identifier
from cli.output import (
    Answer,
    Column,
    Group,
    Table,
    confirm,
    customer_argument,
    hint,
    load,
    progress,
    yes_option,
)

stripe_group = Group("stripe")
webhook = Group("webhook")


@stripe_group.command("setup", "flask stripe setup --webhook-url https://billing.example.com/webhooks/stripe")
@click.option("--webhook-url", help="Also make the webhook endpoint with this address.")
def setup(webhook_url: str | None) -> Answer:
    """Make products, prices and the webhook endpoint at Stripe, or find them; print the .env lines."""
    from app.services.stripe_setup import set_up

    lines, notes = set_up(load("webhooks:EndpointRequest", url=webhook_url)["url"])
    for note in notes:
        hint(note)
    return Answer({"env": lines, "notes": notes}, [f"{name}={value}" for name, value in lines.items()])


@stripe_group.command(
    "sync", "flask stripe sync --dry-run", "flask stripe sync --ignore prod_SupportContract"
)
@customer_argument(required=False)
@click.option("--dry-run", is_flag=True, help="Change nothing; exit 1 when something differs.")
@click.option(
    "--ignore", "ignored", multiple=True, metavar="STRIPE_ID",
    help="Never again name this payer (a subscription, customer, price or product at Stripe).",
)  # fmt: skip
def sync(customer_id: str | None, dry_run: bool, ignored: tuple[str, ...]) -> Answer:
    """Fetch Stripe's state, print what differs and mend it.

    Exit 1 when something could not be mended, is not found at Stripe, or pays without getting a license.
    """
    from app.services.stripe_reconcile import sync_all, sync_one

    if ignored and (dry_run or not all(map(is_identifier, ignored))):
        raise click.UsageError("--ignore takes ids of Stripe's and remembers them: not with --dry-run.")
    if ignored:
        with db.transaction("stripe.ignore") as cur:
            for stripe_id in ignored:
                insert_ignored(cur, stripe_id)
                audit.insert_audit(cur, "stripe.ignore", customer_id=None, subject=stripe_id)
    if customer_id:
        report = sync_one(customer_id, dry_run=dry_run)
    else:
        with progress("Comparing") as advance:
            report = sync_all(dry_run=dry_run, progress=advance)
    lines = [f"{d.customer_id}  {d.subject}: {d.ours} → {d.stripes}" for d in report.differences]
    lines.append(f"{len(report.differences)} difference(s) {'found' if dry_run else 'mended'}.")
    for subscription_id, reason in report.payers.items():
        lines.append(f"⚠️  {subscription_id}: {reason}")
    for stripe_id, reason in report.missing.items():
        lines.append(f"⚠️  {stripe_id} {reason}; nothing was changed")
    for failing, reason in report.failed.items():
        lines.append(f"❌ {failing} could not be mended: {reason}")
    open_ends = report.failed or report.payers or report.missing
    return Answer(report.as_dict, lines, exit_code=1 if open_ends or (dry_run and report.differences) else 0)


@webhook.command("list", "flask webhook list --failed")
@click.option("--failed", is_flag=True, help="Only those that failed.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
def list_events(failed: bool, limit: int) -> Answer:
    """List the events that Stripe sent, newest first."""
    with db.statement() as cur:
        rows = event_rows.select_events(cur, limit=limit, failed=failed)
    columns = [
        Column("Received", "received_at", 23), Column("Event ID", "event_id", 30, is_id=True),
        Column("Type", "type", 36), Column("Outcome", "outcome", 8),
        Column("Error or note", lambda row: row["error"] or row["note"]),
    ]  # fmt: skip
    return Answer(rows, [Table(columns, rows)])


@webhook.command("replay", "flask webhook replay evt_1Abc")
@click.argument("event_id")
def replay(event_id: str) -> Answer:
    """Follow an event once more: fetch the present state of its customer."""
    from app.services.stripe_events import replay_event

    outcome = replay_event(event_id)
    return Answer({"event_id": event_id, "outcome": outcome}, [f"✅ {event_id}: {outcome}"])


@webhook.command("prune", "flask webhook prune --older-than 90")
@click.option(
    "--older-than", "days", type=click.IntRange(min=30), required=True, metavar="DAYS",
    help="At least 30, as long as Stripe keeps them itself.",
)  # fmt: skip
@yes_option
def prune(days: int, yes: bool) -> Answer:
    """Remove old events; those that failed stay."""
    older_than = now() - timedelta(days=days)
    with db.statement() as cur:
        count = event_rows.count_events(cur, older_than)
    confirm(f"Remove {count} event(s) received more than {days} days ago?", yes=yes)
    with db.transaction() as cur:
        removed = event_rows.delete_events(cur, older_than)
        audit.insert_audit(
            cur, "webhook.prune", customer_id=None, subject="stripe_events", note={"removed": removed}
        )
    return Answer({"removed": removed}, [f"✅ Removed {removed} event(s)."])
