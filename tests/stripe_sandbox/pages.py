"""The pages a customer sees (checkout, portal) and the control routes for a sandbox process."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, jsonify, redirect, render_template_string, request
from werkzeug.wrappers import Response as AnyResponse

from . import checkout
from .billing import ENDED, items_of
from .errors import Refusal
from .webhooks import Delivery
from .world import Obj, World

if TYPE_CHECKING:
    from .sandbox import Sandbox

FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }} · Stripe sandbox</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {color-scheme: light dark; --note: #5a5a5a; --error: #b00020; --rule: #ccc}
@media (prefers-color-scheme: dark) {:root {--note: #aaa; --error: #ff8a80; --rule: #555}}
body {font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem}
button, input {font: inherit; padding: .4rem 1rem; margin: .2rem .4rem .2rem 0}
table {border-collapse: collapse; width: 100%} td {padding: .2rem .4rem; border-top: 1px solid var(--rule)}
td:last-child {text-align: right; white-space: nowrap}
form {display: inline} li {margin: 1rem 0} .error {color: var(--error)} .note {color: var(--note)}
</style></head><body>
<p class="note">Local Stripe sandbox: no real payments.</p><h1>{{ title }}</h1>
{% if error %}<p class="error" id="error" role="alert">{{ error }}</p>{% endif %}
{% macro invoice_table(invoice) %}
<table>{% for line in invoice.lines %}<tr><td>{{ line.text }}</td><td>{{ line.amount }}</td></tr>{% endfor %}
{% for name, amount in invoice.sums %}<tr><td>{{ name }}</td><td>{{ amount }}</td></tr>{% endfor %}</table>
{% endmacro %}
"""
CHECKOUT = (
    FRAME
    + """
{% if session.status == "open" %}
<p id="amount">{{ money(session.amount_total, session.currency) }} due today
{% if session.total_details.amount_discount %}
({{ money(session.total_details.amount_discount, session.currency) }} off){% endif %}</p>
<ul>{% for line in lines %}<li>{{ line.quantity }} × {{ line.name }}</li>{% endfor %}</ul>
{% if session.automatic_tax.enabled %}<p class="note">Tax is added for the address
({{ session.automatic_tax.status }}).</p>{% endif %}
{% if session.allow_promotion_codes %}
<form method="post" action="{{ base }}/code"><label for="promotion_code">Promotion code</label>
<input id="promotion_code" name="promotion_code"><button id="apply">Apply</button></form>
{% endif %}
<div><form method="post" action="{{ base }}/pay"><button id="pay">Pay</button></form>
<form method="post" action="{{ base }}/decline">
<button id="decline">Pay, card declined</button></form>
{% if session.cancel_url %}
<form method="post" action="{{ base }}/cancel"><button id="cancel">Cancel</button></form>
{% endif %}</div>
{% else %}<p id="closed">This checkout session is {{ session.status }}.</p>{% endif %}
</body></html>"""
)
PORTAL = (
    FRAME
    + """
<ul>{% for sub in subscriptions %}<li id="{{ sub.id }}">{{ sub.name }}: {{ sub.status }}
{% if sub.cancel_at %}<span class="note">(cancels at the end of the period)</span>{% endif %}<br>
{% for name, label in sub.actions %}
<form method="post"><input type="hidden" name="subscription" value="{{ sub.id }}">
<button name="action" value="{{ name }}" class="{{ name }}">{{ label }}</button></form>
{% endfor %}
{% for price in sub.prices %}
<form method="post"><input type="hidden" name="subscription" value="{{ sub.id }}">
<input type="hidden" name="price" value="{{ price.id }}">
<button name="action" value="switch" class="switch">Switch to {{ price.name }}</button></form>
{% endfor %}</li>{% else %}<li>No subscription.</li>{% endfor %}</ul>
<h2>Invoices</h2>
{% for invoice in invoices %}<section id="{{ invoice.id }}">
<h3>{{ invoice.title }} <span class="note">{{ invoice.date }}, {{ invoice.status }}</span></h3>
{{ invoice_table(invoice) }}
{% if invoice.url %}<p><a href="{{ invoice.url }}">Open this invoice</a></p>{% endif %}</section>
{% else %}<p>No invoice.</p>{% endfor %}
{% if return_url %}<p><a id="return" href="{{ return_url }}">Back</a></p>{% endif %}
</body></html>"""
)
INVOICE = (
    FRAME
    + """
<p id="status">{{ invoice.date }}, {{ invoice.status }}</p>{{ invoice_table(invoice) }}
{% if invoice.status == "open" %}
<form method="post"><button id="pay">Pay with a new card</button></form>{% endif %}
</body></html>"""
)

# Control: name in the URL → method of Sandbox; its JSON body gives the arguments.
COMMANDS = {
    "card": "set_card",
    **{
        name: name
        for name in [
            "add_key",
            "advance",
            "advance_to",
            "apply_code",
            "cancel_subscription",
            "close_dispute",
            "create_customer",
            "create_price",
            "create_promotion_code",
            "create_subscription",
            "decline",
            "delete_customer",
            "deliver",
            "dispute",
            "pause",
            "pay",
            "pay_async",
            "pay_invoice",
            "pay_link",
            "portal_cancel",
            "portal_resume",
            "portal_switch",
            "refund",
            "reset",
            "resume",
            "schedule",
            "set_card",
            "set_dunning",
            "set_status",
            "settle",
            "update_subscription",
            "webhooks_mode",
        ]
    },
}


def money(amount: int, currency: str) -> str:
    return f"{currency.upper()} {amount / 100:,.2f}".replace(" -", " −")


def price_name(world: World, price: Obj) -> str:
    product = world.find("product", price["product"])
    amount = money(price["unit_amount"] or 0, price["currency"])
    per = price["recurring"]["interval"]
    return f"{product['name'] if product else price['id']} ({amount} per {per})"


def invoice_view(invoice: Obj) -> Obj:
    """An invoice as the pages show it."""
    currency = invoice["currency"]
    sums = [("Discount", -sum(entry["amount"] for entry in invoice["total_discount_amounts"]))]
    sums += [("Tax", sum(tax["amount"] for tax in invoice["total_taxes"]))]
    sums += [("Total", invoice["total"])]
    if invoice["amount_due"] != invoice["total"]:
        sums += [("Due after the balance", invoice["amount_due"])]
    return {
        "id": invoice["id"],
        "title": f"Invoice {invoice['number'] or '(draft)'}",
        "date": datetime.fromtimestamp(invoice["created"], UTC).date().isoformat(),
        "status": invoice["status"],
        "url": invoice["hosted_invoice_url"],
        "lines": [
            {"text": line["description"], "amount": money(line["amount"], currency)}
            for line in invoice["lines"]["data"]
        ],
        "sums": [(name, money(amount, currency)) for name, amount in sums if amount or name == "Total"],
    }


def hosted(sandbox: Sandbox) -> Blueprint:
    """`/checkout/<session>`, `/portal/<session>` and `/invoice/<invoice>`."""
    blueprint = Blueprint("hosted", __name__)
    world = sandbox.world

    def checkout_page(id: str, error: str | None = None, status: int = 200) -> tuple[str, int]:
        with world.transaction():
            session = world.get("checkout.session", id)
            lines = [
                {
                    "quantity": line["quantity"],
                    "name": price_name(world, line["price"]),
                }
                for line in checkout.with_lines(session)["line_items"]["data"]
            ]
            page = render_template_string(
                CHECKOUT,
                title="Checkout",
                session=session,
                lines=lines,
                error=error,
                money=money,
                base=f"/checkout/{id}",
            )
        return page, status

    @blueprint.get("/checkout/<id>")
    def show_checkout(id: str) -> tuple[str, int]:
        return checkout_page(id)

    @blueprint.post("/checkout/<id>/<action>")
    def act_on_checkout(id: str, action: str) -> AnyResponse | tuple[str, int]:
        session = sandbox.get("checkout.session", id)
        try:
            if action == "pay":
                return redirect(checkout.return_address(sandbox.pay(id)), 303)
            if action == "cancel" and session["cancel_url"]:
                return redirect(session["cancel_url"], 303)
            if action == "code":
                sandbox.apply_code(id, request.form.get("promotion_code", ""))
                return redirect(f"/checkout/{id}", 303)
            if action != "decline":
                return "No such action.", 404
            sandbox.decline(id)
            return checkout_page(id, "Your card was declined.", 402)
        except Refusal as refused:
            return checkout_page(id, str(refused), refused.status)

    def portal_page(id: str, error: str | None = None, status: int = 200) -> tuple[str, int]:
        with world.transaction():
            session = world.get("billing_portal.session", id)
            subs = world.every("subscription", customer=session["customer"])
            rows = [_portal_row(world, sub) for sub in subs if sub["status"] not in ENDED]
            page = render_template_string(
                PORTAL,
                title="Billing portal",
                subscriptions=rows,
                invoices=[
                    invoice_view(invoice)
                    for invoice in reversed(world.every("invoice", customer=session["customer"]))
                ],
                return_url=session["return_url"],
                error=error,
            )
        return page, status

    @blueprint.get("/portal/<id>")
    def show_portal(id: str) -> tuple[str, int]:
        return portal_page(id)

    @blueprint.post("/portal/<id>")
    def act_on_portal(id: str) -> AnyResponse | tuple[str, int]:
        customer = sandbox.get("billing_portal.session", id)["customer"]
        try:
            sub = sandbox.get("subscription", request.form.get("subscription", ""))["id"]
            if sandbox.get("subscription", sub)["customer"] != customer:
                return "No such subscription.", 404
            action = request.form.get("action")
            if action == "cancel":
                sandbox.portal_cancel(sub)
            elif action == "resume":
                sandbox.portal_resume(sub)
            elif action == "pay":
                sandbox.set_card(customer, "ok")
                sandbox.pay_invoice(sub)
            elif action == "switch":
                sandbox.portal_switch(sub, request.form.get("price", ""))
            return redirect(f"/portal/{id}", 303)
        except Refusal as refused:
            return portal_page(id, str(refused), refused.status)

    @blueprint.get("/invoice/<id>")
    @blueprint.get("/invoice/<id>/pdf")
    def show_invoice(id: str) -> str:
        with world.transaction():
            shown = invoice_view(world.get("invoice", id))
        return render_template_string(INVOICE, title=shown["title"], invoice=shown)

    @blueprint.post("/invoice/<id>")
    def act_on_invoice(id: str) -> AnyResponse:
        sandbox.set_card(sandbox.get("invoice", id)["customer"], "ok")
        sandbox.pay_invoice(id)
        return redirect(f"/invoice/{id}", 303)

    @blueprint.errorhandler(Refusal)
    def refused(error: Refusal) -> tuple[str, int]:
        return str(error), error.status

    return blueprint


def _portal_row(world: World, sub: Obj) -> Obj:
    price = items_of(sub)[0]["price"]
    invoice = world.find("invoice", sub["latest_invoice"] or "")
    actions = [("resume", "Resume")] if sub["cancel_at"] else [("cancel", "Cancel plan")]
    if invoice and invoice["status"] == "open":
        actions.append(("pay", "Pay with a new card"))
    others = [
        {"id": other["id"], "name": price_name(world, other)}
        for other in world.every("price", active=True, type="recurring")
        if other["id"] != price["id"]
    ]
    return {
        "id": sub["id"],
        "name": price_name(world, price),
        "status": sub["status"],
        "cancel_at": sub["cancel_at"],
        "actions": actions,
        "prices": others,
    }


def control(sandbox: Sandbox) -> Blueprint:
    """`POST /_sandbox/<command>` with a JSON object of arguments; `GET /_sandbox/state`."""
    blueprint = Blueprint("control", __name__, url_prefix="/_sandbox")

    @blueprint.get("/state")
    def state() -> Response:
        return jsonify(sandbox.state())

    @blueprint.get("/events")
    def events() -> Response:
        """Newest first, without their objects."""
        names = ("id", "type", "created", "pending_webhooks")
        return jsonify([{name: event[name] for name in names} for event in reversed(sandbox.events)])

    @blueprint.get("/requests")
    def requests() -> Response:
        return jsonify([vars(record) for record in sandbox.requests])

    @blueprint.post("/faults")
    def faults() -> Response:
        """{delay?, delay_path?, down?, fail_next?: {n, status, path?, method?, after?}, clear?}"""
        wanted: dict[str, Any] = request.get_json()
        if wanted.pop("clear", False):
            sandbox.faults.clear()
        if "fail_next" in wanted:
            sandbox.faults.fail_next(**wanted.pop("fail_next"))
        for name in ("delay", "delay_path", "down"):
            setattr(sandbox.faults, name, wanted.pop(name, getattr(sandbox.faults, name)))
        if wanted:
            raise TypeError(f"unknown: {', '.join(wanted)}")
        return jsonify(delay=sandbox.faults.delay, down=sandbox.faults.down)

    @blueprint.post("/<command>")
    def run(command: str) -> tuple[Response, int]:
        if command not in COMMANDS:
            return jsonify(error=f"no such command; there are {sorted(COMMANDS)}"), 404
        result = getattr(sandbox, COMMANDS[command])(**request.get_json())
        if isinstance(result, list):
            result = [asdict(one) if isinstance(one, Delivery) else one for one in result]
        return jsonify(result=result, now=sandbox.now()), 200

    @blueprint.errorhandler(Refusal)
    def refused(error: Refusal) -> tuple[Response, int]:
        return jsonify(error.body), error.status

    @blueprint.errorhandler(TypeError)
    def wrong_arguments(error: TypeError) -> tuple[Response, int]:
        return jsonify(error=str(error)), 400

    return blueprint
