"""Invoices: drafted, added up, finalized, charged; and the items that wait for one.

What a payment means for a subscription is in `billing.follow`.
https://docs.stripe.com/invoicing/overview
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from . import shapes
from .errors import invalid
from .world import DAY, HOUR, Obj, World, notes

FINALIZES_AFTER = HOUR
TAX_PERCENT = 20  # wherever the customer's address has a country


def payer(world: World, obj: Obj) -> Obj:
    """The customer, a deleted one too: its invoices stay."""
    return world.tables["customer"][obj["customer"]]


def subscription_of(obj: Obj) -> str | None:
    """Of an invoice or an invoice item."""
    parent = obj["parent"]
    return str(parent["subscription_details"]["subscription"]) if parent else None


# -- amounts


def discount_amount(coupon: Obj, base: int) -> int:
    """What a coupon takes off an amount."""
    if coupon["percent_off"]:
        return shapes.rounded(Decimal(base) * Decimal(str(coupon["percent_off"])) / 100)
    return min(base, coupon["amount_off"] or 0) if base > 0 else 0


def total_up(world: World, invoice: Obj) -> None:
    """Lines → discounts, taxes, totals, and what the customer's balance leaves due."""
    lines = invoice["lines"]["data"]
    for line in lines:
        line["discount_amounts"], line["taxes"] = [], []
    discounts = [_spread(world, id, invoice) for id in invoice["discounts"]]
    taxes = _taxes(world, invoice)
    subtotal = sum(line["amount"] for line in lines)
    added = sum(tax["amount"] for tax in taxes if tax["tax_behavior"] == "exclusive")
    total = subtotal - sum(discount["amount"] for discount in discounts) + added
    starting = payer(world, invoice)["balance"]
    due = max(total + starting, 0)
    invoice["lines"]["total_count"] = len(lines)
    invoice.update(
        amount_due=due,
        amount_remaining=due,
        starting_balance=starting,
        subtotal=subtotal,
        total=total,
        total_discount_amounts=[discount for discount in discounts if discount["amount"]],
        total_excluding_tax=total - sum(tax["amount"] for tax in taxes),
        total_taxes=taxes,
    )


def _spread(world: World, id: str, invoice: Obj) -> Obj:
    """Takes a discount off the discountable lines, each by its share."""
    discount = world.get("discount", id)
    lines = [line for line in invoice["lines"]["data"] if line["discountable"]]
    base = sum(_net(line) for line in lines)
    over = discount["end"] is not None and discount["end"] <= invoice["created"]
    amount = 0 if over else discount_amount(world.get("coupon", discount["source"]["coupon"]), base)
    left = amount
    for line in lines if amount else ():
        part = left if line is lines[-1] else shapes.rounded(Decimal(amount) * _net(line) / base)
        line["discount_amounts"].append({"amount": part, "discount": id})
        left -= part
    return {"amount": amount, "discount": id}


def _net(line: Obj) -> int:
    return int(line["amount"] - sum(entry["amount"] for entry in line["discount_amounts"]))


def _taxes(world: World, invoice: Obj) -> list[Obj]:
    """The taxes of the lines, summed by behavior; none unless `automatic_tax` is on."""
    automatic = invoice["automatic_tax"]
    if not automatic["enabled"]:
        return []
    located = is_located(payer(world, invoice))
    automatic.update(provider="stripe", status="complete" if located else "requires_location_inputs")
    sums: dict[str, Obj] = {}
    for line in invoice["lines"]["data"]:
        tax = line_tax(_net(line), _tax_behavior(world, line), located=located)
        line["taxes"] = [tax]
        total = sums.setdefault(tax["tax_behavior"], {**tax, "amount": 0, "taxable_amount": 0})
        total["amount"] += tax["amount"]
        total["taxable_amount"] += tax["taxable_amount"]
    return list(sums.values())


def is_located(customer: Obj) -> bool:
    return bool((customer["address"] or {}).get("country"))


def line_tax(net: int, behavior: str, *, located: bool) -> Obj:
    rate = TAX_PERCENT if located else 0
    if behavior == "inclusive":
        taxable = shapes.rounded(Decimal(net * 100) / (100 + rate))
        tax = net - taxable
    else:
        taxable, tax = net, shapes.rounded(Decimal(net * rate) / 100)
    return {
        "amount": tax,
        "tax_behavior": behavior,
        "tax_rate_details": {"tax_rate": "txr_sandbox"},
        "taxability_reason": "standard_rated" if located else "not_collecting",
        "taxable_amount": taxable,
        "type": "tax_rate_details",
    }


def _tax_behavior(world: World, line: Obj) -> str:
    """Of the invoice item, else of the price."""
    details = line["parent"][line["parent"]["type"]]
    item = world.find("invoiceitem", details["invoice_item"] or "")
    own = notes(item).get("tax_behavior") if item else None
    named = line["pricing"] and line["pricing"]["price_details"]
    price = world.find("price", named["price"]) if named else None
    known = own or (price["tax_behavior"] if price else None)
    return "inclusive" if known == "inclusive" else "exclusive"


# -- items that wait


def pending_items(world: World, customer: str, currency: str, sub: str | None = None) -> list[Obj]:
    """Items without an invoice; with `sub`, without another subscription's."""
    waiting = world.every("invoiceitem", customer=customer, invoice=None, currency=currency)
    return [item for item in waiting if sub is None or subscription_of(item) in (None, sub)]


def keep_for_next(world: World, sub: Obj, lines: Iterable[Obj]) -> None:
    """Proration lines become pending items of the subscription."""
    for line in lines:
        details = line["parent"]["subscription_item_details"]
        parent = {
            "subscription_details": {name: details[name] for name in ("subscription", "subscription_item")},
            "type": "subscription_details",
        }
        given = {**line, "parent": parent, "proration": True}
        item = world.add(shapes.invoice_item(world.now(), payer(world, sub), given))
        world.emit("invoiceitem.created", item)


# -- from draft to paid


def draft(
    world: World,
    customer: Obj,
    currency: str,
    reason: str,
    given: Obj,
    *,
    lines: Iterable[Obj] = (),
    items: Iterable[Obj] = (),
    sub: Obj | None = None,
) -> Obj:
    """An invoice that nobody has seen yet (a preview stays so); see `record`.

    `given`: see `shapes.invoice` · `lines`: of `shapes.subscription_line` · `items`: invoice items.
    """
    invoice = shapes.invoice(world.now(), customer, currency, reason, given, sub)
    notes(invoice)["days_until_due"] = given.get("days_until_due")
    for line in [*map(shapes.item_line, items), *lines]:
        put_line(invoice, line)
    total_up(world, invoice)
    return invoice


def put_line(invoice: Obj, line: Obj) -> None:
    line["invoice"] = invoice["id"]
    invoice["lines"]["data"].append(line)


def record(world: World, invoice: Obj, items: Iterable[Obj] = ()) -> None:
    """Takes a draft into the account; `items` are on it now. With `auto_advance` its hour begins."""
    for item in items:
        item["invoice"] = invoice["id"]
        world.touch(item)
    if invoice["auto_advance"]:
        set_auto_advance(world, invoice)
    world.add(invoice)


def set_auto_advance(world: World, invoice: Obj, on: bool = True) -> None:
    invoice["auto_advance"] = on
    if invoice["status"] == "draft":
        at = world.now() + FINALIZES_AFTER if on else None
        invoice["automatically_finalizes_at"] = at
        charged = invoice["collection_method"] == "charge_automatically"
        invoice["next_payment_attempt"] = at if charged else None
    elif not on:
        invoice["next_payment_attempt"] = None


def close(world: World, invoice: Obj) -> None:
    """Draft → open, with its number; takes from the customer's balance. Says nothing yet."""
    total_up(world, invoice)
    customer, now = payer(world, invoice), world.now()
    left = invoice["total"] + invoice["starting_balance"]
    url = f"{world.base_url}/invoice/{invoice['id']}"
    invoice.update(
        automatically_finalizes_at=None,
        effective_at=now,
        ending_balance=min(left, 0),
        hosted_invoice_url=url,
        invoice_pdf=f"{url}/pdf",
        next_payment_attempt=None,
        number=f"{customer['invoice_prefix']}-{customer['next_invoice_sequence']:04}",
        status="open",
    )
    if invoice["collection_method"] == "send_invoice" and not invoice["due_date"]:
        invoice["due_date"] = now + (notes(invoice)["days_until_due"] or 0) * DAY
    invoice["status_transitions"]["finalized_at"] = now
    customer["next_invoice_sequence"] += 1
    customer["balance"] = invoice["ending_balance"]
    customer["currency"] = invoice["currency"]
    world.touch(customer)
    world.touch(invoice)


def finalize(world: World, invoice: Obj) -> None:
    """Draft → open, or paid when nothing is due."""
    need_draft(invoice)
    close(world, invoice)
    world.emit("invoice.finalized", invoice)
    if invoice["amount_due"] == 0:
        mark_paid(world, invoice)


def need_draft(invoice: Obj) -> None:
    if invoice["status"] != "draft":
        raise invalid("This invoice is no longer editable", "invoice", "invoice_not_editable")


def card_of(world: World, invoice: Obj) -> str | None:
    """The card is the subscription's, as after Checkout: other invoices name it, or have none."""
    is_named = invoice["default_payment_method"] or subscription_of(invoice)
    return world.cards.get(invoice["customer"]) if is_named else None


def attempt(world: World, invoice: Obj) -> bool:
    """Tries the customer's card once; true when the invoice is paid, else with the next attempt set."""
    invoice["attempted"] = True
    invoice["attempt_count"] += 1
    card = card_of(world, invoice)
    if card == "ok" or not invoice["amount_remaining"]:
        mark_paid(world, invoice)
        return True
    tries, days = invoice["attempt_count"] - 1, world.dunning.retry_days
    again = invoice["auto_advance"] and tries < len(days)
    invoice["next_payment_attempt"] = world.now() + days[tries] * DAY if again else None
    world.touch(invoice)
    world.emit("invoice.payment_failed", invoice)
    if card == "3ds":
        world.emit("invoice.payment_action_required", invoice)
    return False


def mark_paid(world: World, invoice: Obj, *, by_card: bool = True) -> None:
    if invoice["amount_due"] and by_card:
        notes(invoice)["charge"] = world.add(shapes.charge(world.now(), invoice))["id"]
    invoice.update(
        attempted=True,
        status="paid",
        amount_paid=invoice["amount_due"],
        amount_remaining=0,
        auto_advance=False,
        next_payment_attempt=None,
    )
    invoice["status_transitions"]["paid_at"] = world.now()
    world.touch(invoice)
    world.emit("invoice.paid", invoice)
    world.emit("invoice.payment_succeeded", invoice)


def void(world: World, invoice: Obj) -> None:
    if invoice["status"] not in ("open", "uncollectible"):
        raise invalid("You can only pass in open or uncollectible invoices.", "invoice")
    invoice.update(status="void", next_payment_attempt=None, auto_advance=False)
    invoice["status_transitions"]["voided_at"] = world.now()
    world.touch(invoice)
    world.emit("invoice.voided", invoice)
