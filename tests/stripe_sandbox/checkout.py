"""Checkout Sessions in subscription mode, and the promotion codes they take.

https://docs.stripe.com/payments/checkout
"""

from __future__ import annotations

from . import billing, invoices, shapes
from .errors import Refusal, invalid
from .world import DAY, Due, Obj, World, due_rule, new_id, notes, public


def create(world: World, p: Obj) -> Obj:
    """A session for checked parameters (see `routes.create_session`)."""
    if p.get("mode") != "subscription":
        raise _unsupported("mode", "only `subscription` is modelled")
    if "customer" in p and "customer_email" in p:
        raise invalid("You may only specify one of these parameters: customer, customer_email.")
    if "discounts" in p and "allow_promotion_codes" in p:
        raise invalid("You may only specify one of these parameters: allow_promotion_codes, discounts.")
    if not p.get("success_url"):
        raise invalid("Missing required param: success_url.", "success_url", "parameter_missing")
    customer = world.get("customer", p["customer"], "customer") if "customer" in p else None
    if "customer_update" in p and customer is None:
        raise invalid("`customer_update` can only be used with `customer`.", "customer_update")
    if not p.get("line_items"):
        raise invalid("Missing required param: line_items.", "line_items", "parameter_missing")
    if not 1800 <= p.get("expires_at", world.now() + DAY) - world.now() <= DAY:
        raise invalid(
            "The `expires_at` timestamp must be at least 30 minutes and at most 24 hours from "
            "Checkout Session creation.",
            "expires_at",
        )
    lines = [_line(world, entry, i) for i, entry in enumerate(p["line_items"])]
    if customer:
        billing.refuse_other_currency(world, customer["id"], lines[0]["currency"])
    _check_tax(p, customer, lines)
    discounts = p.get("discounts", [])
    if len(discounts) > 1:
        raise invalid("You may only specify one discount.", "discounts")
    subtotal = _subtotal(lines, p.get("subscription_data", {}))
    for entry in discounts:
        check_discount(world, entry, p.get("customer"), subtotal)
    session = shapes.checkout_session(world.now(), p, world.base_url, subtotal, subtotal)
    session["currency"] = lines[0]["currency"]
    data = {**p.get("subscription_data", {}), "automatic_tax": p.get("automatic_tax")}
    saved = {name for name, how in p.get("customer_update", {}).items() if how == "auto"}
    notes(session).update(lines=lines, subscription_data=data, saved=sorted(saved))
    _total_up(world, session)
    return world.add(session)


def _check_tax(p: Obj, customer: Obj | None, lines: list[Obj]) -> None:
    """https://docs.stripe.com/tax/checkout: where the address and the business name may be saved."""
    saved = p.get("customer_update", {})
    if p.get("tax_id_collection", {}).get("enabled") and customer and saved.get("name") != "auto":
        raise invalid(
            "Tax ID collection requires updating business name on the customer. To enable tax ID "
            "collection for an existing customer, please set `customer_update[name]` to `auto`.",
            "customer_update[name]",
        )
    if not p.get("automatic_tax", {}).get("enabled"):
        return
    if (
        customer
        and not invoices.is_located(customer)
        and "auto"
        not in (
            saved.get("address"),
            saved.get("shipping"),
        )
    ):
        raise invalid(
            "Automatic tax calculation in Checkout requires a valid address on the Customer. Add a valid "
            "address to the Customer or set either `customer_update[address]` to 'auto' or "
            "`customer_update[shipping]` to 'auto' to save the address entered in Checkout to the Customer.",
            "automatic_tax[enabled]",
            "customer_tax_location_invalid",
        )
    for line in lines:
        if line["price"]["tax_behavior"] == "unspecified":
            raise invalid(
                "You cannot use `automatic_tax[enabled]=true` without a tax behavior: set `tax_behavior` "
                f"on the price `{line['price']['id']}`, or a default in the tax settings.",
                "automatic_tax[enabled]",
            )


def _unsupported(param: str, what: str) -> Refusal:
    return Refusal(400, f"{param}: {what}", code="sandbox_unsupported", param=param)


def _line(world: World, entry: Obj, i: int) -> Obj:
    param = f"line_items[{i}]"
    if "price" not in entry:
        raise invalid(f"Missing required param: {param}[price].", param, "parameter_missing")
    if "quantity" not in entry:
        raise invalid(
            f"Quantity is required. Add `quantity` to `{param}`",
            f"{param}[quantity]",
            "parameter_missing",
        )
    if entry["quantity"] < 1:
        raise invalid("Quantity must be at least 1", f"{param}[quantity]")
    price = billing.recurring_price(world, entry["price"], f"{param}[price]")
    return shapes.checkout_line(price, entry["quantity"])


def _subtotal(lines: list[Obj], subscription_data: Obj) -> int:
    """What is due today: nothing when a trial comes first."""
    trial = subscription_data.get("trial_period_days") or subscription_data.get("trial_end")
    return 0 if trial else sum(line["amount_subtotal"] for line in lines)


def _total_up(world: World, session: Obj) -> None:
    """Discount, tax and total as they are known before it is paid."""
    pairs = [(coupon_of(world, entry)["id"], None) for entry in session["discounts"]]
    subtotal, added = session["amount_subtotal"], 0
    total = billing.discounted(world, pairs, subtotal)
    session["total_details"]["amount_discount"] = subtotal - total
    if session["automatic_tax"]["enabled"]:
        customer = world.find("customer", session["customer"] or "")
        located = bool(customer and invoices.is_located(customer))
        behavior = notes(session)["lines"][0]["price"]["tax_behavior"]
        tax = invoices.line_tax(total, behavior, located=located)["amount"]
        session["total_details"]["amount_tax"] = tax
        status = "complete" if located else "requires_location_inputs"
        session["automatic_tax"].update(provider="stripe", status=status)
        added = tax if behavior == "exclusive" else 0
    session["amount_total"] = total + added


# -- promotion codes


def coupon_of(world: World, entry: Obj) -> Obj:
    """The coupon behind a {coupon} or {promotion_code} entry of `discounts`."""
    if entry.get("promotion_code"):
        promotion = world.get("promotion_code", entry["promotion_code"], "discounts[0]")
        return world.get("coupon", promotion["promotion"]["coupon"])
    return world.get("coupon", entry.get("coupon") or "", "discounts[0][coupon]")


def check_discount(world: World, entry: Obj, customer: str | None, subtotal: int) -> None:
    """Refuses what cannot be redeemed now: inactive, used up, for others, below the minimum."""
    param = "discounts[0][promotion_code]" if entry.get("promotion_code") else "discounts[0]"
    coupon = coupon_of(world, entry)
    if not coupon["valid"]:
        raise invalid(f"Coupon {coupon['id']} is used up or expired.", param, "coupon_expired")
    if not entry.get("promotion_code"):
        return
    promotion = world.get("promotion_code", entry["promotion_code"], param)
    rules = promotion["restrictions"]
    if not promotion["active"]:
        raise invalid("This promotion code is inactive.", param)
    if promotion["customer"] not in (None, customer):
        raise invalid("This promotion code is for another customer.", param)
    if rules["minimum_amount"] and subtotal < rules["minimum_amount"]:
        raise invalid("The amount is below this promotion code's minimum.", param)
    paid_before = customer and any(
        invoice["amount_paid"] for invoice in world.every("invoice", customer=customer)
    )
    if rules["first_time_transaction"] and paid_before:
        raise invalid(
            "This promotion code cannot be redeemed because the associated customer has prior transactions.",
            param,
        )


def apply_code(world: World, session: Obj, code: str) -> None:
    """A code typed into the page; refused like a discount given at creation."""
    if not session["allow_promotion_codes"]:
        raise invalid("This session does not take promotion codes.", "promotion_code")
    entered = code.strip().casefold()
    found = [p for p in world.every("promotion_code") if p["code"].casefold() == entered]
    found.sort(key=lambda promotion: bool(promotion["active"]))
    if not found:
        raise invalid("This code is invalid.", "promotion_code", "resource_missing")
    entry = {"coupon": None, "promotion_code": found[-1]["id"]}
    subtotal = session["amount_subtotal"]
    check_discount(world, entry, session["customer"], subtotal)
    session["discounts"] = [entry]
    _total_up(world, session)
    world.touch(session)


@due_rule("promotion_code")
def code_due(world: World, promotion: Obj) -> Due | None:
    def expire() -> None:
        with world.changing(promotion):
            promotion["active"] = False

    if promotion["expires_at"] and promotion["active"]:
        return Due(promotion["expires_at"], expire)
    return None


@due_rule("coupon")
def coupon_due(world: World, coupon: Obj) -> Due | None:
    def expire() -> None:
        with world.changing(coupon):
            coupon["valid"] = False

    if coupon["redeem_by"] and coupon["valid"]:
        return Due(coupon["redeem_by"], expire)
    return None


# -- what the customer does


def need_open(session: Obj) -> None:
    if session["status"] != "open":
        raise invalid(f"This Checkout Session is {session['status']}; only an open one can be paid.")


ADDRESS = {"city": None, "country": "US", "line1": None, "line2": None, "postal_code": "94107", "state": "CA"}


def pay(
    world: World,
    session: Obj,
    *,
    email: str | None = None,
    address: Obj | None = None,
    tax_id: Obj | None = None,
    settled: bool = True,
) -> Obj:
    """Completes the session: subscription, invoice, `checkout.session.completed`.

    `address`, `tax_id` ({type, value}): typed into the page where it asks for them ·
    `settled=False`: a payment that takes days; the subscription is incomplete until `settle`.
    """
    need_open(session)
    for entry in session["discounts"]:
        check_discount(world, entry, session["customer"], session["amount_subtotal"])
    asked = session["automatic_tax"]["enabled"] or session["billing_address_collection"] == "required"
    typed = {**ADDRESS, **(address or {})} if asked or address else None
    if session["customer"]:
        customer = world.get("customer", session["customer"], "customer")
        if typed and "address" in notes(session)["saved"]:
            with world.changing(customer):
                customer["address"] = typed
    else:
        known = session["customer_email"] or email or "customer@example.com"
        customer = world.add(shapes.customer(world.now(), {"email": known, "address": typed}))
        world.emit("customer.created", customer)
    world.cards[customer["id"]] = "ok"
    data = {**notes(session)["subscription_data"], "default_payment_method": f"pm_{customer['id']}"}
    days = data.get("trial_period_days")
    sub = billing.create(
        world,
        customer["id"],
        [(line["price"], line["quantity"]) for line in notes(session)["lines"]],
        data,
        trial_end=data.get("trial_end") or (days and world.now() + days * DAY),
        discounts=session["discounts"],
        collect=settled,
    )
    invoice = world.get("invoice", sub["latest_invoice"])
    if not sub["trial_end"]:
        tax = sum(tax["amount"] for tax in invoice["total_taxes"])
        session["total_details"]["amount_tax"] = tax
        session["amount_total"] = invoice["total"]
        if session["automatic_tax"]["enabled"]:
            session["automatic_tax"]["status"] = invoice["automatic_tax"]["status"]
    due = session["amount_total"]
    session.update(
        status="complete",
        url=None,
        customer=customer["id"],
        customer_details={
            "address": typed,
            "email": customer["email"],
            "name": customer["name"],
            "phone": None,
            "tax_exempt": "none",
            "tax_ids": [tax_id] if tax_id and session["tax_id_collection"]["enabled"] else [],
        },
        subscription=sub["id"],
        invoice=sub["latest_invoice"],
        payment_status="no_payment_required" if not due else "paid" if settled else "unpaid",
    )
    world.touch(session)
    world.emit("checkout.session.completed", session)
    return session


def pay_link(world: World, price: Obj, email: str) -> Obj:
    """A payment link is paid: a customer, session and subscription that carry nothing of ours."""
    session = shapes.checkout_session(
        world.now(), {"success_url": "https://example.com/thanks"}, world.base_url, 0, 0
    )
    line = shapes.checkout_line(price, 1)
    session.update(
        amount_subtotal=line["amount_subtotal"], currency=price["currency"], payment_link=new_id("plink")
    )
    notes(session).update(lines=[line], subscription_data={}, saved=[])
    _total_up(world, session)
    return pay(world, world.add(session), email=email)


def settle(world: World, session: Obj, *, succeed: bool) -> Obj:
    """The end of a payment begun with `settled=False`."""
    if session["status"] != "complete" or session["payment_status"] != "unpaid":
        raise invalid("This session has no payment under way.")
    sub = world.get("subscription", session["subscription"])
    if succeed:
        billing.pay_latest(world, sub)
        session["payment_status"] = "paid"
    else:
        world.cards[session["customer"]] = "decline"
        billing.collect(world, world.get("invoice", sub["latest_invoice"]))
    world.touch(session)
    outcome = "succeeded" if succeed else "failed"
    world.emit(f"checkout.session.async_payment_{outcome}", session)
    return session


def expire(world: World, session: Obj) -> None:
    """Open → expired; any other state is refused."""
    if session["status"] != "open":
        raise invalid('Only Checkout Sessions with a status in ["open"] can be expired.')
    session.update(status="expired", url=None)
    world.touch(session)
    world.emit("checkout.session.expired", session)


@due_rule("checkout.session")
def session_due(world: World, session: Obj) -> Due | None:
    if session["status"] != "open":
        return None
    return Due(session["expires_at"], lambda: expire(world, session))


def with_lines(session: Obj) -> Obj:
    """The session with its `line_items`, which Stripe shows only when expanded."""
    lines = notes(session)["lines"]
    url = f"/v1/checkout/sessions/{session['id']}/line_items"
    return {**public(session), "line_items": shapes.listing(lines, url)}


def return_address(session: Obj) -> str:
    """`success_url` with Stripe's template filled in."""
    return str(session["success_url"]).replace("{CHECKOUT_SESSION_ID}", session["id"])
