"""The life of a subscription: created, billed, renewed, changed, paused, ended.

https://docs.stripe.com/billing/subscriptions/overview
"""

from __future__ import annotations

import calendar
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from . import shapes
from .errors import card_declined, invalid
from .world import DAY, HOUR, Due, Obj, World, copied, due_rule, notes

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


def line(item: Obj, share: float = 1.0, *, start: int, proration: bool = False) -> Obj:
    """An invoice line for `share` of an item's period; a negative share is a credit."""
    price = item["price"]
    amount = round((price["unit_amount"] or 0) * item["quantity"] * share)
    what = "Unused time on" if share < 0 else "Remaining time on" if proration else ""
    return {
        "amount": amount,
        "description": f"{what} {item['quantity']} × {price['id']}".strip(),
        "end": item["current_period_end"],
        "item": item["id"],
        "price": price,
        "proration": proration,
        "quantity": item["quantity"],
        "start": start,
    }


def period_lines(items: Iterable[Obj], free: bool = False) -> list[Obj]:
    return [line(item, 0.0 if free else 1.0, start=item["current_period_start"]) for item in items]


def discounted(world: World, discounts: Iterable[tuple[str, int | None]], subtotal: int) -> int:
    """What (coupon, end) pairs leave of a subtotal."""
    total = subtotal
    for coupon_id, end in discounts:
        coupon = world.get("coupon", coupon_id)
        if end is not None and end <= world.now():
            continue
        if coupon["percent_off"]:
            total -= round(total * coupon["percent_off"] / 100)
        elif total > 0:
            total -= min(total, coupon["amount_off"] or 0)
    return total


def figures(world: World, sub: Obj, lines: list[Obj]) -> Obj:
    """Lines → subtotal, discount, total, the customer's balance before and after, amount due."""
    subtotal = sum(entry["amount"] for entry in lines)
    discounts = (world.get("discount", id) for id in sub["discounts"])
    pairs = [(d["source"]["coupon"], d["end"]) for d in discounts]
    total = discounted(world, pairs, subtotal)
    starting = payer(world, sub)["balance"]
    left = total + starting
    return {
        "lines": lines,
        "subtotal": subtotal,
        "discount": subtotal - total,
        "total": total,
        "starting_balance": starting,
        "ending_balance": min(left, 0),
        "due": max(left, 0),
    }


def payer(world: World, sub: Obj) -> Obj:
    """The customer, a deleted one too: its subscriptions may be brought back by hand."""
    return world.tables["customer"][sub["customer"]]


def card_pays(world: World, customer: str, amount: int = 1) -> bool:
    return amount == 0 or world.cards.get(customer) == "ok"


# -- invoices


def bill(world: World, sub: Obj, reason: str, lines: list[Obj], *, collect: bool = True) -> Obj:
    """A finalized invoice, paid if nothing is due or (with `collect`) if the card pays."""
    customer = payer(world, sub)
    sums = figures(world, sub, lines)
    number = f"{customer['invoice_prefix']}-{customer['next_invoice_sequence']:04}"
    invoice = world.add(shapes.invoice(world.now(), customer, sub, reason, sums, number))
    customer["next_invoice_sequence"] += 1
    customer["balance"] = sums["ending_balance"]
    customer["currency"] = sub["currency"]
    world.touch(customer)
    sub["latest_invoice"] = invoice["id"]
    world.emit("invoice.created", invoice)
    world.emit("invoice.finalized", invoice)
    if sums["discount"]:
        _use_up_discounts(world, sub)
    if sums["due"] == 0:
        mark_paid(world, invoice)
    elif collect:
        attempt(world, invoice)
    return invoice


def _use_up_discounts(world: World, sub: Obj) -> None:
    sub["discounts"] = [
        id
        for id in sub["discounts"]
        if world.get("coupon", world.get("discount", id)["source"]["coupon"])["duration"] != "once"
    ]


def attempt(world: World, invoice: Obj) -> bool:
    """Tries the customer's card once; true when the invoice is paid."""
    invoice["attempted"] = True
    invoice["attempt_count"] += 1
    if card_pays(world, invoice["customer"], invoice["amount_remaining"]):
        mark_paid(world, invoice)
        return True
    world.touch(invoice)
    world.emit("invoice.payment_failed", invoice)
    return False


def mark_paid(world: World, invoice: Obj) -> None:
    invoice["attempted"] = True
    invoice["status"] = "paid"
    invoice["amount_paid"] = invoice["amount_due"]
    invoice["amount_remaining"] = 0
    invoice["auto_advance"] = False
    invoice["next_payment_attempt"] = None
    invoice["status_transitions"]["paid_at"] = world.now()
    world.touch(invoice)
    world.emit("invoice.paid", invoice)
    world.emit("invoice.payment_succeeded", invoice)


def is_paid(world: World, sub: Obj) -> bool:
    """Whether the latest invoice is paid."""
    return bool(world.get("invoice", sub["latest_invoice"])["status"] == "paid")


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

    `wanted`: (price, quantity) pairs · `given`: metadata, description, trial_settings ·
    `discounts`: {coupon, promotion_code} · without `collect` it stays `incomplete` until
    `pay_latest`. Events: created (incomplete or trialing), the invoice's, updated (active).
    """
    now = world.now()
    sub = shapes.subscription(now, customer, wanted[0][0]["currency"], given or {})
    if trial_end:
        sub |= {"status": "trialing", "trial_start": now, "trial_end": trial_end}
        sub["billing_cycle_anchor"] = trial_end
    period = (now, trial_end) if trial_end else period_from(now, now, wanted[0][0])
    sub["items"]["data"] = [
        shapes.subscription_item(now, sub["id"], price, quantity, period) for price, quantity in wanted
    ]
    sub["discounts"] = [_redeem(world, sub, entry) for entry in discounts]
    world.add(sub)
    world.emit("customer.subscription.created", sub)
    with world.changing(sub):
        lines = period_lines(items_of(sub), free=bool(trial_end))
        bill(world, sub, "subscription_create", lines, collect=collect)
        if not trial_end and is_paid(world, sub):
            sub["status"] = "active"
    return sub


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
        dues.append(Due(sub["cancel_at"], lambda: cancel(world, sub)))
    if status == "incomplete":
        dues.append(Due(sub["created"] + INCOMPLETE_HOURS * HOUR, lambda: _expire(world, sub)))
    if status == "trialing" and sub["trial_end"]:
        dues.append(Due(sub["trial_end"], lambda: end_trial(world, sub)))
    if sub["pending_update"]:
        dues.append(Due(sub["pending_update"]["expires_at"], lambda: _drop_update(world, sub)))
    if sub["pause_collection"] and sub["pause_collection"].get("resumes_at"):
        dues.append(Due(sub["pause_collection"]["resumes_at"], lambda: _collect(world, sub)))
    if status == "past_due" and notes(sub).get("retry_at"):
        dues.append(Due(notes(sub)["retry_at"], lambda: _retry(world, sub)))
    if status in COLLECTING:
        dues.append(Due(period_end(sub), lambda: _renew(world, sub)))
    return min(dues, key=lambda due: due.time, default=None)


def _expire(world: World, sub: Obj) -> None:
    with world.changing(sub):
        sub["status"] = "incomplete_expired"
        sub["ended_at"] = world.now()
        invoice = world.get("invoice", sub["latest_invoice"])
        invoice["status"] = "void"
        world.touch(invoice)
        world.emit("invoice.voided", invoice)


def _drop_update(world: World, sub: Obj) -> None:
    with world.changing(sub, "customer.subscription.pending_update_expired"):
        sub["pending_update"] = None


def _collect(world: World, sub: Obj) -> None:
    with world.changing(sub):
        sub["pause_collection"] = None


def end_trial(world: World, sub: Obj) -> None:
    """To active, or past_due; without a card as `trial_settings.end_behavior` says."""
    without_card = sub["trial_settings"]["end_behavior"]["missing_payment_method"]
    if sub["customer"] not in world.cards and without_card == "cancel":
        cancel(world, sub)
    elif sub["customer"] not in world.cards and without_card == "pause":
        pause(world, sub, "trial_end_without_payment_method")
    else:
        with world.changing(sub):
            sub["trial_end"] = min(sub["trial_end"], world.now())
            _start_period(world, sub, world.now())
            _settle_status(world, sub, bill_period(world, sub, "subscription_cycle"))


def _start_period(world: World, sub: Obj, start: int, *, keep_anchor: bool = False) -> None:
    if not keep_anchor:
        sub["billing_cycle_anchor"] = start
    anchor = sub["billing_cycle_anchor"]
    set_period(sub, *period_from(start, anchor, items_of(sub)[0]["price"]))


def bill_period(world: World, sub: Obj, reason: str) -> Obj:
    """Invoices the present period and what proration has left over."""
    lines = [*notes(sub).pop("pending", []), *period_lines(items_of(sub))]
    return bill(world, sub, reason, lines, collect=sub["status"] != "unpaid")


def _settle_status(world: World, sub: Obj, invoice: Obj) -> None:
    """Active when the latest invoice is paid; else past_due with the first retry set."""
    if invoice["status"] == "paid":
        sub["status"] = "active"
        notes(sub).pop("retry_at", None)
        notes(sub).pop("retries", None)
    elif sub["status"] != "unpaid":
        sub["status"] = "past_due"
        notes(sub)["retries"] = 0
        _plan_retry(world, sub, invoice)


def _plan_retry(world: World, sub: Obj, invoice: Obj) -> None:
    done, days = notes(sub)["retries"], world.dunning.retry_days
    at = world.now() + days[done] * DAY if done < len(days) else None
    notes(sub)["retry_at"] = invoice["next_payment_attempt"] = at


def _renew(world: World, sub: Obj) -> None:
    with world.changing(sub):
        _start_period(world, sub, period_end(sub), keep_anchor=True)
        paused = sub["pause_collection"]
        if not paused:
            _settle_status(world, sub, bill_period(world, sub, "subscription_cycle"))
            return
        lines = period_lines(items_of(sub))
        invoice = bill(world, sub, "subscription_cycle", lines, collect=False)
        ends = {"void": "void", "mark_uncollectible": "uncollectible", "keep_as_draft": "draft"}
        if invoice["status"] != "paid":
            invoice["status"] = ends[paused["behavior"]]
            world.touch(invoice)


def _retry(world: World, sub: Obj) -> None:
    invoice = world.get("invoice", sub["latest_invoice"])
    if attempt(world, invoice):
        with world.changing(sub):
            _settle_status(world, sub, invoice)
        return
    notes(sub)["retries"] += 1
    _plan_retry(world, sub, invoice)
    if notes(sub)["retry_at"]:
        world.touch(sub)
    elif world.dunning.then == "canceled":
        cancel(world, sub, reason="payment_failed")
    else:
        with world.changing(sub):
            sub["status"] = world.dunning.then


def pay_latest(world: World, sub: Obj) -> None:
    """The customer pays the open invoice by hand; the subscription becomes active."""
    invoice = world.get("invoice", sub["latest_invoice"])
    if invoice["status"] != "open":
        raise invalid("Invoice is already paid" if is_paid(world, sub) else "Invoice is not open")
    mark_paid(world, invoice)
    with world.changing(sub):
        if sub["pending_update"]:
            _apply_pending(sub)
        if sub["status"] not in ENDED:
            _settle_status(world, sub, invoice)


# -- changes


def refuse_if_ended(sub: Obj) -> None:
    if sub["status"] in ENDED:
        raise invalid("A canceled subscription can only update its cancellation_details and metadata.")


def schedule_cancellation(world: World, sub: Obj, p: Obj) -> None:
    """`cancel_at_period_end` and `cancel_at`, inside a `changing` step of the caller."""
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
        raise invalid(
            f"The price specified ({id}) is inactive. This field only accepts active prices.", param
        )
    if not price["recurring"]:
        raise invalid(f"The price specified ({id}) is not recurring.", param)
    return copied(price)


def change_plan(world: World, sub: Obj, p: Obj) -> None:
    """`items`, `trial_end` and `billing_cycle_anchor` of an update, proration and payment included.

    Only an invoice made at once (`proration_behavior=always_invoice`, a trial ended now, a new
    anchor or interval) can be declined. A decline then means: `error_if_incomplete` 402 and nothing
    changed · `pending_if_incomplete` kept in `pending_update` · else changed and `past_due`.
    """
    if sub["status"] in ("incomplete", "paused"):
        raise invalid(f"You cannot update a subscription in `{sub['status']}` status this way.")
    now, old = world.now(), items_of(sub)
    new = changed_items(world, sub, p.get("items", []))
    ends_trial = sub["status"] == "trialing" and p.get("trial_end") == "now"
    in_trial = sub["status"] == "trialing" and not ends_trial
    restart = not in_trial and (
        ends_trial
        or p.get("billing_cycle_anchor", {}).get("type") == "now"
        or _interval(old[0]) != _interval(new[0])
    )
    lines: list[Obj] = []
    if not in_trial and not ends_trial and p.get("proration_behavior") != "none":
        lines = _prorations(now, old, [] if restart else new, all_of_old=restart)
    wanted = copied(sub)
    wanted["items"]["data"] = new
    if restart:
        _start_period(world, wanted, now)
    if isinstance(p.get("trial_end"), int):
        _extend_trial(world, wanted, p["trial_end"])
    if not restart and p.get("proration_behavior") != "always_invoice":
        notes(wanted).setdefault("pending", []).extend(lines)
        lines = []
    if restart:
        lines += [*notes(wanted).pop("pending", []), *period_lines(items_of(wanted))]
    if not lines:
        sub.update(wanted)
        return
    behavior = p.get("payment_behavior", "allow_incomplete")
    declined = not card_pays(world, sub["customer"], figures(world, wanted, lines)["due"])
    if declined and behavior == "error_if_incomplete":
        raise card_declined()
    if declined and behavior == "pending_if_incomplete":
        bill(world, sub, "subscription_update", lines)
        _keep_pending(world, sub, new)
        return
    if ends_trial:
        wanted["trial_end"] = now
    sub.update(wanted)
    collect = behavior != "default_incomplete"
    _settle_status(world, sub, bill(world, sub, "subscription_update", lines, collect=collect))


def _interval(item: Obj) -> tuple[str, int]:
    recurring = item["price"]["recurring"]
    return recurring["interval"], recurring["interval_count"]


def _prorations(now: int, old: list[Obj], new: list[Obj], *, all_of_old: bool) -> list[Obj]:
    """Credits for what is given up of the period, charges for what takes its place."""
    start, end = old[0]["current_period_start"], old[0]["current_period_end"]
    share = max(0.0, (end - now) / (end - start))
    same = {(it["id"], it["price"]["id"], it["quantity"]) for it in old} & {
        (it["id"], it["price"]["id"], it["quantity"]) for it in new
    }

    def lines(items: list[Obj], share: float) -> list[Obj]:
        return [
            line(it, share, start=now, proration=True)
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


def _keep_pending(world: World, sub: Obj, items: list[Obj]) -> None:
    sub["pending_update"] = {
        "billing_cycle_anchor": None,
        "expires_at": world.now() + INCOMPLETE_HOURS * HOUR,
        "subscription_items": items,
        "trial_end": None,
        "trial_from_plan": None,
    }


def _apply_pending(sub: Obj) -> None:
    sub["items"]["data"] = sub["pending_update"]["subscription_items"]
    sub["pending_update"] = None


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
        invoice = bill_period(world, sub, "subscription_update")
        if invoice["status"] == "paid" or not stays:
            _settle_status(world, sub, invoice)
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
    details: dict[str, Any] | None = None,
) -> None:
    """Ends it at once; `prorate` credits the rest of the period when `invoice_now` is set."""
    now = world.now()
    lines = notes(sub).pop("pending", [])
    if prorate and sub["status"] in COLLECTING:
        lines += _prorations(now, items_of(sub), [], all_of_old=True)
    if invoice_now and lines:
        bill(world, sub, "subscription_update", lines)
    sub["status"] = "canceled"
    sub["canceled_at"] = sub["canceled_at"] or now
    sub["ended_at"] = now
    sub["cancellation_details"] |= {"reason": reason, **(details or {})}
    world.touch(sub)
    world.emit("customer.subscription.deleted", sub)


def delete_customer(world: World, customer: Obj) -> None:
    """Deletes for good; its live subscriptions end at once."""
    for sub in world.every("subscription", customer=customer["id"]):
        if sub["status"] not in ENDED:
            cancel(world, sub)
    world.emit("customer.deleted", customer)
    customer["deleted"] = True
    world.cards.pop(customer["id"], None)
    world.touch(customer)
