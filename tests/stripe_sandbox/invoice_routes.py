"""The calls of `/v1` about money: invoices, invoice items, charges, disputes, schedules."""

from __future__ import annotations

from decimal import Decimal

from . import billing, invoices, shapes
from .errors import Refusal, card_refused, invalid
from .params import check_length
from .routes import PAGING, equal_to, page, page_of, retrieval, route
from .world import Obj, World, notes

retrieval("invoices", "invoice", "InvoiceRetrieveParams")
retrieval("invoiceitems", "invoiceitem", "InvoiceItemRetrieveParams")
retrieval("charges", "charge", "ChargeRetrieveParams")
retrieval("disputes", "dispute", "DisputeRetrieveParams")
retrieval("subscription_schedules", "subscription_schedule", "SubscriptionScheduleRetrieveParams")


# -- invoices


@route("GET", "/v1/invoices", "InvoiceListParams", PAGING + " collection_method customer status subscription")
def list_invoices(world: World, p: Obj) -> Obj:
    wanted = equal_to(p, "collection_method", "customer", "status")

    def keep(obj: Obj) -> bool:
        return wanted(obj) and p.get("subscription") in (None, invoices.subscription_of(obj))

    return page(world, "invoice", p, "invoices", keep)


@route("GET", "/v1/invoices/<id>/lines", "InvoiceLineItemListParams", "ending_before limit starting_after")
def list_lines(world: World, p: Obj, id: str) -> Obj:
    lines = world.get("invoice", id)["lines"]["data"]
    return page_of({line["id"]: line for line in reversed(lines)}, "line_item", p, f"invoices/{id}/lines")


CREATE_INVOICE = (
    "auto_advance automatic_tax.enabled collection_method currency customer days_until_due "
    "default_payment_method description due_date metadata pending_invoice_items_behavior subscription"
)


@route("POST", "/v1/invoices", "InvoiceCreateParams", CREATE_INVOICE)
def create_invoice(world: World, p: Obj) -> Obj:
    """A draft; it takes pending items only with `pending_invoice_items_behavior=include`."""
    if "customer" not in p:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    customer = world.get("customer", p["customer"], "customer")
    sub = world.get("subscription", p["subscription"], "subscription") if "subscription" in p else None
    if p.get("collection_method") == "send_invoice" and not {"days_until_due", "due_date"} & set(p):
        raise invalid("You must pass `days_until_due` or `due_date` with `send_invoice`.", "days_until_due")
    currency = p.get("currency") or (sub and sub["currency"]) or customer["currency"] or "usd"
    items = []
    if p.get("pending_invoice_items_behavior") == "include":
        items = invoices.pending_items(world, customer["id"], currency, sub["id"] if sub else None)
        if sub:
            items = [item for item in items if invoices.subscription_of(item) == sub["id"]]
        if not items:
            message = "Nothing to invoice for customer"
            raise invalid(message, "customer", "invoice_no_customer_line_items")
    given = {"auto_advance": False, **p}
    invoice = invoices.draft(world, customer, currency, "manual", given, items=items, sub=sub)
    invoices.record(world, invoice, items)
    world.emit("invoice.created", invoice)
    return invoice


PREVIEW = (
    "customer subscription subscription_details.billing_cycle_anchor subscription_details.items.deleted "
    "subscription_details.items.id subscription_details.items.price subscription_details.items.quantity "
    "subscription_details.proration_behavior subscription_details.proration_date "
    "subscription_details.trial_end"
)


@route("POST", "/v1/invoices/create_preview", "InvoiceCreatePreviewParams", PREVIEW)
def preview_invoice(world: World, p: Obj) -> Obj:
    if "subscription" in p:
        found = [world.get("subscription", p["subscription"], "subscription")]
    elif "customer" in p:
        found = world.every("subscription", customer=world.get("customer", p["customer"], "customer")["id"])
    else:
        raise invalid(
            "You must provide one of `customer` or `subscription`.", "customer", "parameter_missing"
        )
    details = p.get("subscription_details", {})
    live = [sub for sub in found if sub["status"] not in billing.ENDED]
    if not details:
        live = [s for s in live if not s["cancel_at"] or s["cancel_at"] > billing.period_end(s)]
    if not live:
        raise Refusal(404, "No upcoming invoices for customer", code="invoice_upcoming_none")
    invoice = billing.preview(world, live[0], details)
    invoice["id"] = "upcoming_" + invoice["id"]
    return invoice


@route("POST", "/v1/invoices/<id>", "InvoiceUpdateParams", "auto_advance description metadata")
def update_invoice(world: World, p: Obj, id: str) -> Obj:
    invoice = world.get("invoice", id)
    if "metadata" in p:
        p["metadata"] = shapes.metadata(invoice["metadata"], p["metadata"])
    with world.changing(invoice):
        if "auto_advance" in p:
            invoices.set_auto_advance(world, invoice, on=p["auto_advance"])
        invoice.update(p)
    return invoice


@route("DELETE", "/v1/invoices/<id>", "InvoiceDeleteParams")
def delete_invoice(world: World, p: Obj, id: str) -> Obj:
    """A draft that no subscription made; its items wait again."""
    invoice = world.get("invoice", id)
    invoices.need_draft(invoice)
    if invoice["billing_reason"] != "manual":
        raise invalid("You can't delete invoices created by subscriptions.", "invoice")
    for item in world.every("invoiceitem", customer=invoice["customer"], invoice=id):
        item["invoice"] = None
        world.touch(item)
    invoice["deleted"] = True
    world.touch(invoice)
    world.emit("invoice.deleted", invoice)
    return invoice


@route("POST", "/v1/invoices/<id>/add_lines", "InvoiceAddLinesParams", "lines.invoice_item")
def add_lines(world: World, p: Obj, id: str) -> Obj:
    """Puts pending items on a draft."""
    invoice = world.get("invoice", id)
    invoices.need_draft(invoice)
    with world.changing(invoice):
        for i, line in enumerate(p["lines"]):
            item = world.get("invoiceitem", line["invoice_item"], f"lines[{i}][invoice_item]")
            if item["invoice"]:
                raise invalid("This invoice item is attached to an invoice already.", f"lines[{i}]")
            item["invoice"] = invoice["id"]
            world.touch(item)
            invoices.put_line(invoice, shapes.item_line(item))
        invoices.total_up(world, invoice)
    return invoice


@route("POST", "/v1/invoices/<id>/finalize", "InvoiceFinalizeInvoiceParams", "auto_advance")
def finalize_invoice(world: World, p: Obj, id: str) -> Obj:
    invoice = world.get("invoice", id)
    invoice["auto_advance"] = p.get("auto_advance", invoice["auto_advance"])
    invoices.finalize(world, invoice)
    charged = invoice["collection_method"] == "charge_automatically"
    if invoice["status"] == "open" and invoice["auto_advance"] and charged:
        billing.collect(world, invoice)
    return invoice


@route("POST", "/v1/invoices/<id>/pay", "InvoicePayParams", "forgive off_session paid_out_of_band")
def pay_invoice(world: World, p: Obj, id: str) -> Obj:
    invoice = world.get("invoice", id)
    by_card = not p.get("paid_out_of_band", False)
    card = world.cards.get(invoice["customer"])
    if by_card and card != "ok" and invoice["status"] in ("draft", "open", "uncollectible"):
        if invoice["status"] == "draft":
            invoices.finalize(world, invoice)
        if invoice["amount_remaining"]:
            billing.collect(world, invoice)
            raise card_refused(card, "invoice")
    billing.pay(world, invoice, by_card=by_card)
    return invoice


@route("POST", "/v1/invoices/<id>/void", "InvoiceVoidInvoiceParams")
def void_invoice(world: World, p: Obj, id: str) -> Obj:
    invoice = world.get("invoice", id)
    invoices.void(world, invoice)
    return invoice


# -- invoice items

ITEM = (
    "amount currency customer description discountable invoice metadata period price_data pricing.price "
    "quantity subscription tax_behavior unit_amount_decimal"
)


@route("POST", "/v1/invoiceitems", "InvoiceItemCreateParams", ITEM)
def create_item(world: World, p: Obj) -> Obj:
    """On a draft, or pending: then the next invoice of the customer (or subscription) takes it."""
    if "customer" not in p:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    customer = world.get("customer", p["customer"], "customer")
    invoice = world.get("invoice", p["invoice"], "invoice") if "invoice" in p else None
    if invoice:
        invoices.need_draft(invoice)
        if invoice["customer"] != customer["id"]:
            raise invalid("This invoice belongs to another customer.", "invoice")
    parent = None
    if "subscription" in p:
        sub = world.get("subscription", p["subscription"], "subscription")
        details = {"subscription": sub["id"], "subscription_item": None}
        parent = {"subscription_details": details, "type": "subscription_details"}
    check_length(p.get("description"), 5000, "description")
    price = _price(world, p)
    currency = (price or p).get("currency") or (invoice and invoice["currency"])
    if not currency:
        raise invalid("Missing required param: currency.", "currency", "parameter_missing")
    currency = currency.lower()
    if invoice and currency != invoice["currency"]:
        raise invalid(f"The currency of the invoice is {invoice['currency']}, not {currency}.", "currency")
    if not invoice:
        billing.refuse_other_currency(world, customer["id"], currency)
    given = {**p, "currency": currency, "parent": parent}
    unit = price["unit_amount_decimal"] if price else p.get("unit_amount_decimal")
    if unit is not None:
        given["amount"] = _amount(unit, p.get("quantity", 1))
        given["pricing"] = (
            shapes.pricing(price)
            if price
            else {"price_details": None, "type": "price_details", "unit_amount_decimal": unit}
        )
    elif "amount" not in p:
        raise invalid("Missing required param: amount.", "amount", "parameter_missing")
    item = shapes.invoice_item(world.now(), customer, given)
    notes(item)["tax_behavior"] = p.get("tax_behavior")
    world.add(item)
    world.emit("invoiceitem.created", item)
    if invoice:
        with world.changing(invoice):
            item["invoice"] = invoice["id"]
            invoices.put_line(invoice, shapes.item_line(item))
            invoices.total_up(world, invoice)
    return item


def _amount(unit: str, quantity: int) -> int:
    return shapes.rounded(Decimal(unit) * quantity)


def _price(world: World, p: Obj) -> Obj | None:
    """The one-time price of an item: named, or made for it alone."""
    named = p.get("pricing", {}).get("price")
    names = ["amount", "price_data", "pricing", "unit_amount_decimal"]
    given = [name for name in names if name in p]
    if "amount" in p and "quantity" in p:
        given.append("quantity")
    if len(given) > 1:
        raise invalid(f"You may only specify one of these parameters: {', '.join(given)}.", given[1])
    if "price_data" in p:
        data = p["price_data"]
        world.get("product", data["product"], "price_data[product]")
        return world.add(shapes.price(world.now(), {**data, "active": False}))
    if not named:
        return None
    price = world.get("price", named, "pricing[price]")
    if price["recurring"]:
        raise invalid(
            "The price specified is set to `type=recurring` but this field only accepts prices with "
            "`type=one_time`.",
            "pricing[price]",
        )
    return price


@route("GET", "/v1/invoiceitems", "InvoiceItemListParams", PAGING + " customer invoice pending")
def list_items(world: World, p: Obj) -> Obj:
    wanted = equal_to(p, "customer", "invoice")

    def keep(item: Obj) -> bool:
        return wanted(item) and p.get("pending") in (None, item["invoice"] is None)

    return page(world, "invoiceitem", p, "invoiceitems", keep, created="date")


@route(
    "POST",
    "/v1/invoiceitems/<id>",
    "InvoiceItemUpdateParams",
    "amount description discountable metadata period quantity unit_amount_decimal",
)
def update_item(world: World, p: Obj, id: str) -> Obj:
    item = world.get("invoiceitem", id)
    invoice = _draft_of(world, item)
    if "metadata" in p:
        p["metadata"] = shapes.metadata(item["metadata"], p["metadata"])
    with world.changing(item):
        unit = p.pop("unit_amount_decimal", None)
        if unit is not None:
            item["pricing"] = {"price_details": None, "type": "price_details", "unit_amount_decimal": unit}
        item.update(p)
        if item["pricing"] and "amount" not in p:
            item["amount"] = _amount(item["pricing"]["unit_amount_decimal"], item["quantity"])
        item.update(net_amount=item["amount"], quantity_decimal=str(item["quantity"]))
    if invoice:
        with world.changing(invoice):
            _take_line(invoice, id)
            invoices.put_line(invoice, shapes.item_line(item))
            invoices.total_up(world, invoice)
    return item


@route("DELETE", "/v1/invoiceitems/<id>", "InvoiceItemDeleteParams")
def delete_item(world: World, p: Obj, id: str) -> Obj:
    item = world.get("invoiceitem", id)
    invoice = _draft_of(world, item)
    item["deleted"] = True
    world.touch(item)
    world.emit("invoiceitem.deleted", item)
    if invoice:
        with world.changing(invoice):
            _take_line(invoice, id)
            invoices.total_up(world, invoice)
    return item


def _draft_of(world: World, item: Obj) -> Obj | None:
    invoice = world.find("invoice", item["invoice"] or "")
    if invoice:
        invoices.need_draft(invoice)
    return invoice


def _take_line(invoice: Obj, item: str) -> None:
    def is_other(line: Obj) -> bool:
        return bool(line["parent"][line["parent"]["type"]]["invoice_item"] != item)

    invoice["lines"]["data"] = [line for line in invoice["lines"]["data"] if is_other(line)]


# -- charges, disputes, schedules


@route("GET", "/v1/charges", "ChargeListParams", PAGING + " customer payment_intent")
def list_charges(world: World, p: Obj) -> Obj:
    return page(world, "charge", p, "charges", equal_to(p, "customer", "payment_intent"))


@route("GET", "/v1/disputes", "DisputeListParams", PAGING + " charge payment_intent")
def list_disputes(world: World, p: Obj) -> Obj:
    return page(world, "dispute", p, "disputes", equal_to(p, "charge", "payment_intent"))


@route("GET", "/v1/subscription_schedules", "SubscriptionScheduleListParams", PAGING + " customer")
def list_schedules(world: World, p: Obj) -> Obj:
    wanted = equal_to(p, "customer")
    return page(world, "subscription_schedule", p, "subscription_schedules", wanted)


@route("POST", "/v1/subscription_schedules/<id>/release", "SubscriptionScheduleReleaseParams")
def release_schedule(world: World, p: Obj, id: str) -> Obj:
    schedule = world.get("subscription_schedule", id)
    with world.changing(
        world.get("subscription", schedule["subscription"] or schedule["released_subscription"])
    ):
        billing.release(world, schedule)
    return schedule
