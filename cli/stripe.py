"""`flask stripe …` and `flask webhook …`: keeping the database where Stripe is."""

import sys

import click

from app.extensions import db
from app.queries import events as event_rows
from app.schemas.webhooks import EndpointRequest
from app.services import stripe_sync
from app.services.stripe_setup import set_up
from cli.output import (
    Group,
    as_json,
    echo_json,
    echo_rows_json,
    echo_table,
    hint,
    load,
    local_time,
)

stripe_group = Group("stripe", help="Stripe: set up an account, sync with it.")
webhook = Group("webhook", help="Stripe's events: list, replay.")


@stripe_group.command("setup")
@click.option("--webhook-url", help="Also make the webhook endpoint with this address.")
@as_json
def setup(webhook_url: str | None, to_json: bool) -> None:
    """Make products, prices and the webhook endpoint at Stripe, or find them; print the .env lines.

    \b
    Example:
      flask stripe setup --webhook-url https://billing.example.com/webhooks/stripe
    """
    lines, notes = set_up(load(EndpointRequest(), url=webhook_url)["url"])
    for note in notes:
        hint(note)
    if to_json:
        echo_json(lines)
        return
    for name, value in lines.items():
        click.echo(f"{name}={value}")


@stripe_group.command("sync")
@click.option("--customer", "customer_id", metavar="CUSTOMER_ID", help="Only this one.")
@click.option("--dry-run", is_flag=True, help="Change nothing; exit 1 when something differs.")
@as_json
def sync(customer_id: str | None, dry_run: bool, to_json: bool) -> None:
    """Fetch the truth from Stripe, print what differs and mend it; exit 1 when some could not be.

    \b
    Example:
      flask stripe sync --dry-run
    """
    failed: dict[str, str] = {}
    if customer_id:
        found = stripe_sync.sync_one(customer_id, dry_run=dry_run)
    else:
        with click.progressbar(
            length=0, label="Comparing", file=sys.stderr, hidden=not sys.stderr.isatty()
        ) as bar:

            def progress(done: int, ahead: int) -> None:
                bar.length = (bar.length or 0) + ahead
                bar.update(done)

            found, failed = stripe_sync.sync_all(dry_run=dry_run, progress=progress)
    if to_json:
        echo_rows_json(
            [
                {
                    "customer_id": d.customer_id,
                    "subject": d.subject,
                    "ours": d.ours,
                    "stripes": d.stripes,
                }
                for d in found
            ]
        )
    else:
        for d in found:
            click.echo(f"{d.customer_id}  {d.subject}: {d.ours} → {d.stripes}")
        verb = "found" if dry_run else "mended"
        click.echo(f"{len(found)} difference(s) {verb}.")
    for failing, reason in failed.items():
        hint(f"⚠️  {failing} could not be mended: {reason}")
    if failed or (dry_run and found):
        raise click.exceptions.Exit(1)


@webhook.command("list")
@click.option("--failed", is_flag=True, help="Only those that failed.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@as_json
def list_events(failed: bool, limit: int, to_json: bool) -> None:
    """List the events Stripe sent, newest first.

    \b
    Example:
      flask webhook list --failed
    """
    with db.statement() as cur:
        rows = event_rows.select_events(cur, limit=limit, failed=failed)
    if to_json:
        echo_rows_json(rows)
        return
    columns = (("Received", 23), ("Event ID", 30), ("Type", 36), ("Outcome", 8), ("Error", 0))
    echo_table(
        columns,
        ((local_time(r["received_at"]), r["event_id"], r["type"], r["outcome"], r["error"]) for r in rows),
    )


@webhook.command("replay")
@click.argument("event_id")
@as_json
def replay(event_id: str, to_json: bool) -> None:
    """Follow an event once more: fetch the present state of its customer.

    \b
    Example:
      flask webhook replay evt_1Abc
    """
    outcome = stripe_sync.replay_event(event_id)
    if to_json:
        echo_json({"eventId": event_id, "outcome": outcome})
    else:
        click.echo(f"✅ {event_id}: {outcome}")
