"""The life of a subscription: created, billed, renewed, changed, paused, ended.

https://docs.stripe.com/billing/subscriptions/overview
"""

from __future__ import annotations

import calendar
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from . import invoices, shapes
from .errors import card_refused, invalid
from .invoices import payer
from .world import HOUR, Due, Obj, World, copied, due_rule, notes, public

ENDED = ("canceled", "incomplete_expired")
COLLECTING = ("active", "past_due", "unpaid")
INCOMPLETE_HOURS = 23


# -- periods and amounts


def add_interval(start: int, interval: str, count: int) -> int:
    """`start` plus so many days, weeks, months or years; the 31st becomes a month's last day."""
    at = datetime.fromtimestamp(start, UTC)
    if interval in ("day", "week"):
        return int((at + timedelta(days=count * (7 if interval == "week" else 1))).timestamp())
    months = at.month - 1 + count * (12 if interval == "year" else 1)
    year, month = at.year + months // 12, months % 12 + 1
    day = min(at.day, calendar.monthrange(year, month)[1])
    return int(at.replace(year=year, month=month, day=day).timestamp())


def period_from(start: int, anchor: int, price: Obj) -> tuple[int, int]:
    """The billing period that begins at `start`, its end aligned to the anchor."""
    recurring = price["recurring"]
    step = count = recurring["interval_count"]
    while (end := add_interval(anchor, recurring["interval"], count)) <= start:
        count += step
    return start, end


def items_of(sub: Obj) -> list[Obj]:
    found: list[Obj] = sub["items"]["data"]
    return found


def period_end(sub: Obj) -> int:
    end: int = items_of(sub)[0]["current_period_end"]
    return end


def set_period(sub: Obj, start: int, end: int) -> None:
    for item in items_of(sub):
        item["current_period_start"], item["current_period_end"] = start, end


def period_lines(world: World, items: Iterable[Obj], free: bool = False) -> list[Obj]:
    share = 0.0 if free else 1.0
    return [
        shapes.subscription_line(item, _name(world, item), share, item["current_period_start"])
        for item in items
    ]


def _name(world: World, item: Obj) -> str:
    return str(world.tables["product"][item["price"]["product"]]["name"])


def discounted(world: World, discounts: Iterable[tuple[str, int | None]], subtotal: int) -> int:
    """What (coupon, end) pairs leave of a subtotal."""
    total = subtotal
    for coupon, end in discounts:
        if end is None or end > world.now():
            total -= invoices.discount_amount(world.get("coupon", coupon), total)
    return total


# -- what a subscription invoices


def blank(
    world: World, sub: Obj, reason: str, lines: Iterable[Obj], items: Iterable[Obj] = (), auto: bool = False
) -> Obj:
    """An invoice of the subscription, not yet in the account."""
    names = ("automatic_tax", "collection_method", "days_until_due", "discounts")
    given = {name: sub[name] for name in names} | {"auto_advance": auto}
    customer = payer(world, sub)
    return invoices.draft(world, customer, sub["currency"], reason, given, lines=lines, items=items, sub=sub)


def bill(
    world: World,
    sub: Obj,
    reason: str,
    lines: Iterable[Obj],
    items: Iterable[Obj] = (),
    *,
    collect: bool = True,
) -> Obj:
    """An invoice that is final at once, paid if nothing is due or (with `collect`) if the card pays."""
    invoice = blank(world, sub, reason, lines, items)
    _record(world, sub, invoice, items)
    invoices.close(world, invoice)
    world.emit("invoice.created", invoice)
    world.emit("invoice.finalized", invoice)
    if invoice["amount_due"] == 0:
        invoices.mark_paid(world, invoice)
    elif collect:
        invoices.attempt(world, invoice)
    return invoice


def draft_period(world: World, sub: Obj, reason: str) -> Obj:
    """A draft for the present period and what waits; in an hour it is finalized and collected."""
    paused = sub["pause_collection"] and sub["pause_collection"]["behavior"] == "keep_as_draft"
    items = waiting(world, sub)
    auto = not paused and sub["status"] != "unpaid"
    invoice = blank(world, sub, reason, period_lines(world, items_of(sub)), items, auto)
    _record(world, sub, invoice, items)
    world.emit("invoice.created", invoice)
    return invoice


def waiting(world: World, sub: Obj) -> list[Obj]:
    return invoices.pending_items(world, sub["customer"], sub["currency"], sub["id"])


def _record(world: World, sub: Obj, invoice: Obj, items: Iterable[Obj]) -> None:
    invoices.record(world, invoice, items)
    sub["latest_invoice"] = invoice["id"]
    if invoice["total_discount_amounts"]:
        sub["discounts"] = [id for id in sub["discounts"] if _lasts(world, id)]


def _lasts(world: World, discount: str) -> bool:
    coupon = world.get("coupon", world.get("discount", discount)["source"]["coupon"])
    return bool(coupon["duration"] != "once")


def is_paid(world: World, sub: Obj) -> bool:
    """Whether the latest invoice is paid."""
    return bool(world.get("invoice", sub["latest_invoice"])["status"] == "paid")


@due_rule("invoice")
def invoice_due(world: World, invoice: Obj) -> Due | None:
    if invoice["status"] == "draft" and invoice.get("automatically_finalizes_at"):
        return Due(invoice["automatically_finalizes_at"], lambda: _advance(world, invoice))
    if invoice["status"] != "open":
        return None
    if invoice["collection_method"] == "send_invoice":
        late = notes(invoice).get("late")
        return None if late else Due(invoice["due_date"], lambda: _is_late(world, invoice))
    if invoice["next_payment_attempt"]:
        return Due(invoice["next_payment_attempt"], lambda: collect(world, invoice))
    return None


def _advance(world: World, invoice: Obj) -> None:
    """What happens to a draft by itself: finalized, then charged, or let go while collection is paused."""
    sub = _live_subscription(world, invoice)
    invoices.finalize(world, invoice)
    paused = sub and sub["pause_collection"]
    if paused and invoice["status"] == "open":
        invoice["status"] = {"mark_uncollectible": "uncollectible"}.get(paused["behavior"], "void")
        world.touch(invoice)
    elif invoice["status"] == "open" and invoice["collection_method"] == "charge_automatically":
        collect(world, invoice)
    elif invoice["status"] == "paid":
        follow(world, invoice)


def _is_late(world: World, invoice: Obj) -> None:
    notes(invoice)["late"] = True
    follow(world, invoice)


def collect(world: World, invoice: Obj) -> None:
    """One attempt at the card, with what it means for the subscription."""
    invoices.attempt(world, invoice)
    follow(world, invoice)


def pay(world: World, invoice: Obj, *, by_card: bool = True) -> None:
    """The invoice is paid by hand: an open one, a draft, one that was given up."""
    if invoice["status"] == "draft":
        invoices.finalize(world, invoice)
    elif invoice["status"] not in ("open", "uncollectible"):
        paid = invoice["status"] == "paid"
        raise invalid("Invoice is already paid" if paid else "Invoice is not open")
    if invoice["status"] != "paid":
        invoices.mark_paid(world, invoice, by_card=by_card)
    follow(world, invoice)


def pay_latest(world: World, sub: Obj) -> None:
    """The customer pays the newest open invoice by hand; the subscription becomes active."""
    ours = [
        i
        for i in world.every("invoice", customer=sub["customer"])
        if invoices.subscription_of(i) == sub["id"]
    ]
    still_open = [invoice for invoice in ours if invoice["status"] == "open"]
    pay(world, still_open[-1] if still_open else world.get("invoice", sub["latest_invoice"]))


def _live_subscription(world: World, invoice: Obj) -> Obj | None:
    """The one whose life an invoice decides; one made by hand decides nothing."""
    if invoice["billing_reason"] == "manual":
        return None
    sub = world.find("subscription", invoices.subscription_of(invoice) or "")
    return None if sub is None or sub["status"] in ENDED else sub


def follow(world: World, invoice: Obj) -> None:
    """The subscription after a payment or a failure of one of its invoices."""
    sub = _live_subscription(world, invoice)
    if sub is None:
        return
    given_up = invoice["auto_advance"] and not invoice["next_payment_attempt"]
    charged = invoice["collection_method"] == "charge_automatically"
    if invoice["status"] == "paid":
        with world.changing(sub):
            if notes(sub).get("update_invoice") == invoice["id"]:
                _apply_pending(sub)
            owes = world.get("invoice", sub["latest_invoice"])["status"] == "open"
            if sub["status"] in ("incomplete", "past_due", "unpaid") and not owes:
                sub["status"] = "active"
    elif charged and given_up and world.dunning.then == "canceled":
        cancel(world, sub, reason="payment_failed")
    elif sub["status"] in COLLECTING:
        with world.changing(sub):
            sub["status"] = world.dunning.then if charged and given_up else "past_due"


def _settle(sub: Obj, invoice: Obj) -> None:
    """Active or past_due, by an invoice that was collected at once."""
    if sub["status"] != "unpaid" or invoice["status"] == "paid":
        sub["status"] = "active" if invoice["status"] == "paid" else "past_due"


# -- beginning


def create(
    world: World,
    customer: str,
    wanted: list[tuple[Obj, int]],
    given: Obj | None = None,
    *,
    trial_end: int | None = None,
    discounts: Iterable[Obj] = (),
    collect: bool = True,
) -> Obj:
    """A new subscription and its first invoice.

    `wanted`: (price, quantity) pairs · `given`: see `shapes.subscription` · `discounts`: {coupon,
    promotion_code} · without `collect` it stays `incomplete` until `pay_latest`. Events: created
    (incomplete or trialing), the invoice's, updated (active). With `send_invoice` it is active at
    once and the invoice a draft.
    """
    now = world.now()
    refuse_other_currency(world, customer, wanted[0][0]["currency"])
    sub = shapes.subscription(now, customer, wanted[0][0]["currency"], given or {})
    if trial_end:
        sub |= {"status": "trialing", "trial_start": now, "trial_end": trial_end}
        sub["billing_cycle_anchor"] = trial_end
    period = (now, trial_end) if trial_end else period_from(now, now, wanted[0][0])
    sub["items"]["data"] = [
        shapes.subscription_item(now, sub["id"], price, quantity, period) for price, quantity in wanted
    ]
    sub["test_clock"] = payer(world, sub)["test_clock"]
    sub["discounts"] = [_redeem(world, sub, entry) for entry in discounts]
    world.add(sub)
    world.emit("customer.subscription.created", sub)
    with world.changing(sub):
        if sub["collection_method"] == "send_invoice":
            sub["status"] = "trialing" if trial_end else "active"
            if not trial_end:
                draft_period(world, sub, "subscription_create")
            return sub
        lines = period_lines(world, items_of(sub), free=bool(trial_end))
        bill(world, sub, "subscription_create", lines, collect=collect)
        if not trial_end and is_paid(world, sub):
            sub["status"] = "active"
    return sub


def refuse_other_currency(world: World, customer: str, currency: str) -> None:
    """One customer has live subscriptions and waiting items of one currency only."""
    live = [s for s in world.every("subscription", customer=customer) if s["status"] not in ENDED]
    for obj in [*live, *world.every("invoiceitem", customer=customer, invoice=None)]:
        if obj["currency"] != currency:
            raise invalid(
                "You cannot combine currencies on a single customer. This customer has an active "
                "subscription, subscription schedule, discount, quote, or invoice item with currency "
                f"{obj['currency']}."
            )


def _redeem(world: World, sub: Obj, entry: Obj) -> str:
    """Counts a redemption and gives the id of the new discount."""
    coupon_id, promotion_id = entry.get("coupon"), entry.get("promotion_code")
    if promotion_id:
        promotion = world.get("promotion_code", promotion_id)
        promotion["times_redeemed"] += 1
        coupon_id = promotion["promotion"]["coupon"]
        world.touch(promotion)
        if promotion["times_redeemed"] == promotion["max_redemptions"]:
            promotion["active"] = False
    coupon = world.get("coupon", str(coupon_id))
    coupon["times_redeemed"] += 1
    if coupon["times_redeemed"] == coupon["max_redemptions"]:
        coupon["valid"] = False
    world.touch(coupon)
    months = coupon["duration_in_months"]
    end = add_interval(world.now(), "month", months) if months else None
    found = world.add(shapes.discount(world.now(), coupon["id"], promotion_id, sub, end))
    return str(found["id"])


# -- what happens by itself


@due_rule("subscription")
def next_due(world: World, sub: Obj) -> Due | None:
    """The earliest thing to come; at the same second a cancellation comes before a renewal."""
    status = sub["status"]
    if status in ENDED:
        return None
    dues = []
    if sub["cancel_at"]:
        dues.append(Due(sub["cancel_at"], lambda: cancel(world, sub, period_ends=True)))
    if status == "incomplete":
        dues.append(Due(sub["created"] + INCOMPLETE_HOURS * HOUR, lambda: _expire(world, sub)))
    if status == "trialing" and sub["trial_end"]:
        dues.append(Due(sub["trial_end"], lambda: end_trial(world, sub)))
    if sub["pending_update"]:
        dues.append(Due(sub["pending_update"]["expires_at"], lambda: _drop_update(world, sub)))
    if sub["pause_collection"] and sub["pause_collection"].get("resumes_at"):
        dues.append(Due(sub["pause_collection"]["resumes_at"], lambda: _collect(world, sub)))
    if status in COLLECTING:
        dues.append(Due(period_end(sub), lambda: _renew(world, sub)))
    return min(dues, key=lambda due: due.time, default=None)


def _expire(world: World, sub: Obj) -> None:
    with world.changing(sub):
        sub["status"] = "incomplete_expired"
        sub["ended_at"] = world.now()
        invoices.void(world, world.get("invoice", sub["latest_invoice"]))


def _drop_update(world: World, sub: Obj) -> None:
    with world.changing(sub, "customer.subscription.pending_update_expired"):
        sub["pending_update"] = None
        invoices.void(world, world.get("invoice", notes(sub).pop("update_invoice")))


def _collect(world: World, sub: Obj) -> None:
    with world.changing(sub):
        sub["pause_collection"] = None


def end_trial(world: World, sub: Obj) -> None:
    """To active, with a draft of the first payment; without a card as `trial_settings.end_behavior` says."""
    without_card = sub["trial_settings"]["end_behavior"]["missing_payment_method"]
    if sub["customer"] not in world.cards and without_card == "cancel":
        cancel(world, sub)
    elif sub["customer"] not in world.cards and without_card == "pause":
        pause(world, sub, "trial_end_without_payment_method")
    else:
        with world.changing(sub):
            sub["trial_end"] = min(sub["trial_end"], world.now())
            sub["status"] = "active"
            _start_period(world, sub, world.now())
            draft_period(world, sub, "subscription_cycle")


def _start_period(world: World, sub: Obj, start: int, *, keep_anchor: bool = False) -> None:
    if not keep_anchor:
        sub["billing_cycle_anchor"] = start
    anchor = sub["billing_cycle_anchor"]
    set_period(sub, *period_from(start, anchor, items_of(sub)[0]["price"]))


def _renew(world: World, sub: Obj) -> None:
    with world.changing(sub):
        _next_phase(world, sub)
        _start_period(world, sub, period_end(sub), keep_anchor=True)
        draft_period(world, sub, "subscription_cycle")


def _next_phase(world: World, sub: Obj) -> None:
    """The planned price of a schedule from this renewal on; at the one after, it lets go."""
    schedule = world.find("subscription_schedule", sub["schedule"] or "")
    if schedule is None:
        return
    planned = schedule["phases"][-1]
    if schedule["current_phase"]["start_date"] == planned["start_date"]:
        release(world, schedule)
        return
    schedule["current_phase"] = {"start_date": planned["start_date"], "end_date": planned["end_date"]}
    price = copied(world.get("price", planned["items"][0]["price"]))
    items_of(sub)[0].update(price=price, plan=shapes.plan(price))
    world.touch(schedule)
    world.emit("subscription_schedule.updated", schedule)


def release(world: World, schedule: Obj) -> None:
    """Detaches a schedule: the subscription goes on as it is."""
    if schedule["status"] not in ("active", "not_started"):
        raise invalid(f"You cannot release a subscription schedule in `{schedule['status']}` status.")
    sub = world.get("subscription", schedule["subscription"])
    now = world.now()
    schedule.update(status="released", released_at=now, released_subscription=sub["id"], subscription=None)
    schedule["current_phase"] = None
    world.touch(schedule)
    world.emit("subscription_schedule.released", schedule)
    sub["schedule"] = None


# -- changes


def refuse_if_ended(sub: Obj) -> None:
    if sub["status"] in ENDED:
        raise invalid("A canceled subscription can only update its cancellation_details and metadata.")


def schedule_cancellation(world: World, sub: Obj, p: Obj) -> None:
    """`cancel_at_period_end` and `cancel_at`, inside a `changing` step of the caller."""
    if sub["schedule"] and {"cancel_at_period_end", "cancel_at"} & set(p):
        raise invalid(
            f"The subscription is managed by the subscription schedule `{sub['schedule']}`, and updating "
            "any cancelation behavior directly is not allowed. Please update the schedule instead."
        )
    if "cancel_at_period_end" in p and "cancel_at" in p:
        raise invalid("Received both cancel_at_period_end and cancel_at parameters. Please pass in only one.")
    if p.get("cancel_at_period_end"):
        sub["cancel_at_period_end"] = True
        _schedule(world, sub, period_end(sub))
    elif ("cancel_at_period_end" in p and sub["cancel_at_period_end"]) or p.get("cancel_at") == "":
        _unschedule(sub)
    elif "cancel_at" in p:
        at = period_end(sub) if isinstance(p["cancel_at"], str) else p["cancel_at"]
        if at <= world.now():
            raise invalid("`cancel_at` must be in the future", "cancel_at")
        sub["cancel_at_period_end"] = False
        _schedule(world, sub, at)


def _schedule(world: World, sub: Obj, at: int) -> None:
    sub["cancel_at"] = at
    sub["canceled_at"] = world.now()
    sub["cancellation_details"]["reason"] = "cancellation_requested"


def _unschedule(sub: Obj) -> None:
    sub["cancel_at_period_end"] = False
    sub["cancel_at"] = sub["canceled_at"] = None
    sub["cancellation_details"]["reason"] = None


def changed_items(world: World, sub: Obj, changes: list[Obj]) -> list[Obj]:
    """The items after `items[…]` of an update; a new price sets the quantity to 1 unless given."""
    items = [copied(item) for item in items_of(sub)]
    for i, change in enumerate(changes):
        item = next((it for it in items if it["id"] == change.get("id")), None)
        if "id" in change and item is None:
            raise invalid(f"Invalid subscription item: {change['id']}", f"items[{i}][id]", "resource_missing")
        if change.get("deleted"):
            items = [it for it in items if it is not item]
            continue
        price = None
        if "price" in change:
            price = recurring_price(world, change["price"], f"items[{i}][price]")
            if price["currency"] != sub["currency"]:
                raise invalid(
                    f"The price specified supports currencies of `{price['currency']}`. This doesn't match "
                    f"the expected currency: `{sub['currency']}`.",
                    f"items[{i}][price]",
                )
            if any(it is not item and it["price"]["id"] == price["id"] for it in items):
                raise invalid(
                    "Cannot add multiple subscription items with the same plan: " + price["id"],
                    f"items[{i}][price]",
                )
        if item is None and price:
            first = items_of(sub)[0]
            period = (first["current_period_start"], first["current_period_end"])
            quantity = change.get("quantity", 1)
            items.append(shapes.subscription_item(world.now(), sub["id"], price, quantity, period))
        elif item is not None:
            if price and price["id"] != item["price"]["id"]:
                item |= {"price": price, "plan": shapes.plan(price), "quantity": 1}
            item["quantity"] = change.get("quantity", item["quantity"])
            item["metadata"] = shapes.metadata(item["metadata"], change.get("metadata"))
        else:
            raise invalid("Missing required param: items[price].", "items", "parameter_missing")
    if not items:
        raise invalid("A subscription must have at least one active plan.", "items")
    return items


def recurring_price(world: World, id: str, param: str) -> Obj:
    """An active recurring price, or the refusal Stripe gives; a copy, as items embed it."""
    price = world.get("price", id, param)
    if not price["active"]:
        raise invalid("The price specified is inactive. This field only accepts active prices.", param)
    if not price["recurring"]:
        raise invalid(f"The price specified ({id}) is not recurring.", param)
    return copied(price)


def show_price(world: World, price: Obj) -> None:
    """Subscription items show their price as it is now: archived, without its lookup key …"""
    for sub in world.every("subscription"):
        for item in items_of(sub):
            if item["price"]["id"] == price["id"]:
                item.update(price=copied(public(price)), plan=shapes.plan(price))


class Plan(NamedTuple):
    """What an update comes to: the subscription after it, lines for it, waiting items that go with
    them, and whether they are invoiced at once."""

    wanted: Obj
    lines: list[Obj]
    items: list[Obj]
    at_once: bool


def planned_change(world: World, sub: Obj, p: Obj) -> Plan:
    """`items`, `trial_end`, `billing_cycle_anchor` of an update, thought through; changes nothing.

    At once: `proration_behavior=always_invoice`, a trial ended now, a new anchor or interval. Of
    these the first leaves waiting items to the renewal.
    """
    if sub["status"] in ("incomplete", "paused"):
        raise invalid(f"You cannot update a subscription in `{sub['status']}` status this way.")
    now, old = world.now(), items_of(sub)
    new = changed_items(world, sub, p.get("items") or [])
    ends_trial = sub["status"] == "trialing" and p.get("trial_end") == "now"
    in_trial = sub["status"] == "trialing" and not ends_trial
    anchor = p.get("billing_cycle_anchor")
    asked = anchor == "now" or (isinstance(anchor, dict) and anchor.get("type") == "now")
    restart = not in_trial and (ends_trial or asked or _interval(old[0]) != _interval(new[0]))
    lines: list[Obj] = []
    if not in_trial and not ends_trial and p.get("proration_behavior") != "none":
        at = p.get("proration_date", now)
        kept = [] if restart else new
        lines = _prorations(world, at, old, kept, all_of_old=restart, percent_off=_percent_off(world, sub))
    wanted = copied(sub)
    wanted["items"]["data"] = new
    if restart:
        _start_period(world, wanted, now)
        lines += period_lines(world, items_of(wanted))
    if ends_trial:
        wanted["trial_end"] = now
    if isinstance(p.get("trial_end"), int):
        _extend_trial(world, wanted, p["trial_end"])
    only_this = not restart and bool(lines) and p.get("proration_behavior") == "always_invoice"
    return Plan(wanted, lines, [] if only_this else waiting(world, sub), restart or only_this)


def change_plan(world: World, sub: Obj, p: Obj) -> None:
    """An update with proration and payment; see `planned_change`.

    A refused card means: `error_if_incomplete` an error and nothing changed ·
    `pending_if_incomplete` kept in `pending_update` · else changed and `past_due`.
    """
    wanted, lines, items, at_once = planned_change(world, sub, p)
    if not at_once:
        sub.update(wanted)
        invoices.keep_for_next(world, sub, lines)
        return
    behavior = p.get("payment_behavior", "allow_incomplete")
    card = world.cards.get(sub["customer"])
    charged = sub["collection_method"] == "charge_automatically"
    due = blank(world, wanted, "subscription_update", lines, items)["amount_due"] if charged else 0
    declined = bool(due) and card != "ok" and behavior != "default_incomplete"
    if declined and (card is None or behavior == "error_if_incomplete"):
        raise card_refused(card)
    if declined and behavior == "pending_if_incomplete":
        invoice = bill(world, sub, "subscription_update", lines, items)
        _keep_pending(world, sub, wanted, invoice)
        return
    sub.update(wanted)
    collected = charged and behavior != "default_incomplete"
    invoice = bill(world, sub, "subscription_update", lines, items, collect=collected)
    if charged:
        _settle(sub, invoice)


def preview(world: World, sub: Obj, p: Obj) -> Obj:
    """The invoice that an update would make at once, else the next renewal's."""
    wanted, lines, items, at_once = planned_change(world, sub, p)
    if not at_once:
        _start_period(world, wanted, period_end(wanted), keep_anchor=True)
        lines += period_lines(world, items_of(wanted))
    return blank(world, wanted, "upcoming", lines, items)


def _interval(item: Obj) -> tuple[str, int]:
    recurring = item["price"]["recurring"]
    return recurring["interval"], recurring["interval_count"]


def _percent_off(world: World, sub: Obj) -> float:
    """What running discounts take; prorations have it in their amounts."""
    left = 1.0
    for id in sub["discounts"]:
        discount = world.get("discount", id)
        coupon = world.get("coupon", discount["source"]["coupon"])
        if coupon["percent_off"] and (discount["end"] is None or discount["end"] > world.now()):
            left *= 1 - coupon["percent_off"] / 100
    return 100 * (1 - left)


def _prorations(
    world: World, now: int, old: list[Obj], new: list[Obj], *, all_of_old: bool, percent_off: float = 0
) -> list[Obj]:
    """Credits for what is given up of the period, charges for what takes its place."""
    start, end = old[0]["current_period_start"], old[0]["current_period_end"]
    share = min(1.0, max(0.0, (end - now) / (end - start)))
    same = {(it["id"], it["price"]["id"], it["quantity"]) for it in old} & {
        (it["id"], it["price"]["id"], it["quantity"]) for it in new
    }

    def lines(items: list[Obj], share: float) -> list[Obj]:
        return [
            shapes.subscription_line(
                it, _name(world, it), share, now, proration=True, percent_off=percent_off
            )
            for it in items
            if all_of_old or (it["id"], it["price"]["id"], it["quantity"]) not in same
        ]

    return [*lines(old, -share), *lines(new, share)]


def _extend_trial(world: World, sub: Obj, trial_end: int) -> None:
    if trial_end <= world.now():
        raise invalid("Invalid timestamp: must be an integer Unix timestamp in the future")
    sub |= {"status": "trialing", "trial_end": trial_end, "billing_cycle_anchor": trial_end}
    sub["trial_start"] = sub["trial_start"] or world.now()
    set_period(sub, world.now(), trial_end)


def _keep_pending(world: World, sub: Obj, wanted: Obj, invoice: Obj) -> None:
    notes(sub).update(wanted=wanted, update_invoice=invoice["id"])
    sub["pending_update"] = {
        "billing_cycle_anchor": None,
        "expires_at": world.now() + INCOMPLETE_HOURS * HOUR,
        "subscription_items": items_of(wanted),
        "trial_end": None,
        "trial_from_plan": None,
    }


def _apply_pending(sub: Obj) -> None:
    wanted = notes(sub).pop("wanted")
    del notes(sub)["update_invoice"]
    names = ("billing_cycle_anchor", "items", "trial_end")
    sub.update({name: wanted[name] for name in names}, pending_update=None)


def pause(world: World, sub: Obj, why: str = "pause_requested") -> None:
    """Status `paused` (not `pause_collection`): no service, no invoices until resumed."""
    refuse_if_ended(sub)
    with world.changing(sub):
        sub["status"] = "paused"
        sub["status_details"] = {
            "paused": {
                "subscription": {"type": why},
                "transitioned_at": world.now(),
                "type": "subscription",
            }
        }
    world.emit("customer.subscription.paused", sub)


def resume(world: World, sub: Obj, behavior: str = "resume_on_payment_attempt") -> None:
    """Back from `paused`, with a new period billed now."""
    if sub["status"] != "paused":
        raise invalid(f"You cannot resume a subscription in `{sub['status']}` status; it must be `paused`.")
    stays = behavior == "resume_on_payment_success"
    with world.changing(sub):
        _start_period(world, sub, world.now())
        lines = period_lines(world, items_of(sub))
        invoice = bill(world, sub, "subscription_update", lines, waiting(world, sub))
        if invoice["status"] == "paid" or not stays:
            _settle(sub, invoice)
            sub.pop("status_details", None)
    if sub["status"] != "paused":
        world.emit("customer.subscription.resumed", sub)


def cancel(
    world: World,
    sub: Obj,
    *,
    reason: str = "cancellation_requested",
    prorate: bool = False,
    invoice_now: bool = False,
    period_ends: bool = False,
    details: dict[str, Any] | None = None,
) -> None:
    """Ends it. At once: `invoice_now` bills what waits for this subscription, with `prorate` less the
    rest of the period; else waiting prorations go and other items wait on. When the period ends, a
    last draft takes all that waits. Open invoices are not collected any more.

    https://docs.stripe.com/api/subscriptions/cancel
    """
    now = world.now()
    items = waiting(world, sub)
    mine = [item for item in items if invoices.subscription_of(item) == sub["id"]]
    if period_ends and items:
        last = blank(world, sub, "subscription_cycle", [], items, auto=True)
        _record(world, sub, last, items)
        world.emit("invoice.created", last)
    elif invoice_now:
        off = _percent_off(world, sub)
        credited = prorate and sub["status"] in COLLECTING
        lines = (
            _prorations(world, now, items_of(sub), [], all_of_old=True, percent_off=off) if credited else []
        )
        if lines or mine:
            bill(world, sub, "subscription_update", lines, mine)
    else:
        for item in mine:
            if item["proration"]:
                item["deleted"] = True
                world.touch(item)
    for invoice in world.every("invoice", customer=sub["customer"], status="open"):
        if invoices.subscription_of(invoice) == sub["id"]:
            invoices.set_auto_advance(world, invoice, on=False)
            world.touch(invoice)
    sub["status"] = "canceled"
    sub["canceled_at"] = sub["canceled_at"] or now
    sub["ended_at"] = now
    sub["pending_update"] = None
    sub["cancellation_details"] |= {"reason": reason, **(details or {})}
    schedule = world.find("subscription_schedule", sub["schedule"] or "")
    if schedule:
        schedule.update(status="canceled", canceled_at=now, current_phase=None)
        world.touch(schedule)
    world.touch(sub)
    world.emit("customer.subscription.deleted", sub)


def delete_customer(world: World, customer: Obj) -> None:
    """Deletes for good; its live subscriptions end at once."""
    for sub in world.every("subscription", customer=customer["id"]):
        if sub["status"] not in ENDED:
            cancel(world, sub)
    for invoice in world.every("invoice", customer=customer["id"], status="draft"):
        invoices.set_auto_advance(world, invoice, on=False)
        world.touch(invoice)
    world.emit("customer.deleted", customer)
    customer["deleted"] = True
    world.cards.pop(customer["id"], None)
    world.touch(customer)
