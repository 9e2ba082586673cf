"""`flask sandbox …`: the local Stripe's clock, cards and events."""

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import click

from app.errors import Conflict, StripeFailed
from app.extensions import settings
from app.services.customers import get_customer
from cli.output import Answer, Group, customer_argument

sandbox = Group("sandbox")


@sandbox.command("advance", "flask sandbox advance --days 31")
@click.option("--days", type=click.IntRange(0, 3660), default=0)
@click.option("--hours", type=click.IntRange(0, 100_000), default=0)
def advance(days: int, hours: int) -> Answer:
    """Move the local Stripe's clock on; renewals and trial ends happen on the way."""
    if not days and not hours:
        raise click.UsageError("Give --days or --hours.")
    answer = _call("advance", days=days, hours=hours)
    return Answer(
        {"now": answer["now"]}, [f"✅ {days} day(s) and {hours} hour(s) later at the local Stripe."]
    )


@sandbox.command("card", "flask sandbox card decline --customer ada@example.com")
@click.argument("outcome", type=click.Choice(["ok", "decline", "3ds", "none"]))
@customer_argument
def card(outcome: str, customer_id: str) -> Answer:
    """Let a customer's payments succeed, be declined, need authentication, or have no card."""
    _require_sandbox()
    stripe_id = get_customer(customer_id)["stripe_customer_id"]
    if stripe_id is None:
        raise Conflict(f"{customer_id} has no customer at Stripe yet: it has never checked out.")
    _call("set_card", customer=stripe_id, card=None if outcome == "none" else outcome)
    return Answer({"customerId": customer_id, "card": outcome}, [f"✅ Card of {customer_id}: {outcome}."])


@sandbox.command("deliver", "flask sandbox deliver --customer ada@example.com --again --order reverse")
@customer_argument(required=False)
@click.option("--event", help="One event by its id; without it those not yet delivered.")
@click.option("--times", type=click.IntRange(1, 100), default=1, show_default=True)
@click.option("--order", type=click.Choice(["time", "reverse", "random"]), default="time")
@click.option("--again", is_flag=True, help="Also those that were delivered already.")
def deliver(customer_id: str | None, event: str | None, times: int, order: str, again: bool) -> Answer:
    """Deliver events to this service now: late, repeated, in any order."""
    _require_sandbox()
    stripe_id = get_customer(customer_id)["stripe_customer_id"] if customer_id else None
    if customer_id and stripe_id is None:
        raise Conflict(f"{customer_id} has no customer at Stripe yet, and so no events.")
    sent = _call("deliver", event=event, customer=stripe_id, times=times, order=order, again=again)["result"]
    failed = sum(not 200 <= (one["status"] or 0) < 300 for one in sent)
    lines = [f"{one['event']}  {one['type']}: {one['status'] or one['error']}" for one in sent]
    return Answer(
        sent, [*lines, f"{len(sent)} event(s) delivered, {failed} failed."], exit_code=int(failed > 0)
    )


def _require_sandbox() -> str:
    base = settings.stripe_api_base
    if base is None or (urlsplit(base).hostname or "").endswith("stripe.com"):
        raise Conflict("STRIPE_API_BASE: not set; this is for the local sandbox, never for Stripe itself.")
    return base.rstrip("/")


def _call(command: str, **arguments: Any) -> dict[str, Any]:
    """The sandbox's answer: `result` and `now`. Raises StripeFailed with its reason."""
    request = urllib.request.Request(  # noqa: S310 - the setting is an http(s) URL
        f"{_require_sandbox()}/_sandbox/{command}",
        data=json.dumps(arguments).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as response:  # noqa: S310
            return dict(json.load(response))
    except urllib.error.HTTPError as error:
        reason = json.loads(error.read() or b"{}").get("error", {}).get("message", error.reason)
        raise StripeFailed(f"The sandbox refused: {reason}") from None
    except (OSError, ValueError) as error:
        raise StripeFailed(f"STRIPE_API_BASE: the sandbox does not answer: {error}") from None
