"""`expand[]`: ids replaced by the objects they name, or a refusal where Stripe has none.

https://docs.stripe.com/api/expanding_objects
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import checkout, shapes
from .errors import bad_param
from .world import Obj, World, copied, public

LINES_SHOWN = 10  # of an invoice; the rest has a list of its own
MOST_LEVELS = 4  # the `data` of a list counts

# (object, field) → kind of object that its id names; None: always null here, so stays null.
EXPANDABLE: dict[tuple[str, str], str | None] = {
    ("billing_portal.session", "configuration"): "billing_portal.configuration",
    ("charge", "customer"): "customer",
    ("checkout.session", "customer"): "customer",
    ("checkout.session", "discounts.coupon"): "coupon",
    ("checkout.session", "discounts.promotion_code"): "promotion_code",
    ("checkout.session", "invoice"): "invoice",
    ("checkout.session", "payment_intent"): None,
    ("checkout.session", "setup_intent"): None,
    ("checkout.session", "subscription"): "subscription",
    ("customer", "default_source"): None,
    ("customer", "invoice_settings.default_payment_method"): None,
    ("discount", "customer"): "customer",
    ("discount", "promotion_code"): "promotion_code",
    ("discount", "source.coupon"): "coupon",
    ("dispute", "charge"): "charge",
    ("invoice", "customer"): "customer",
    ("invoice", "default_payment_method"): None,
    ("invoice", "discounts"): "discount",
    ("invoice", "parent.subscription_details.subscription"): "subscription",
    ("invoiceitem", "customer"): "customer",
    ("invoiceitem", "invoice"): "invoice",
    ("line_item", "pricing.price_details.price"): "price",
    ("price", "product"): "product",
    ("plan", "product"): "product",
    ("product", "default_price"): "price",
    ("promotion_code", "customer"): "customer",
    ("promotion_code", "promotion.coupon"): "coupon",
    ("subscription", "customer"): "customer",
    ("subscription", "default_payment_method"): None,
    ("subscription", "default_source"): None,
    ("subscription", "discounts"): "discount",
    ("subscription", "latest_invoice"): "invoice",
    ("subscription", "pending_setup_intent"): None,
    ("subscription", "schedule"): "subscription_schedule",
    ("subscription_item", "discounts"): "discount",
    ("subscription_schedule", "customer"): "customer",
    ("subscription_schedule", "subscription"): "subscription",
}


def _live_subscriptions(world: World, customer: Obj) -> Obj:
    subs = world.every("subscription", customer=customer["id"])
    live = [view(sub) for sub in reversed(subs) if sub["status"] != "canceled"]
    return shapes.listing(live, f"/v1/customers/{customer['id']}/subscriptions")


def _session_lines(world: World, session: Obj) -> Obj:
    lines: Obj = checkout.with_lines(world.get("checkout.session", session["id"]))["line_items"]
    return lines


# Lists that are left out unless asked for.
INCLUDABLE: dict[tuple[str, str], Callable[[World, Obj], Obj]] = {
    ("checkout.session", "line_items"): _session_lines,
    ("customer", "subscriptions"): _live_subscriptions,
}


def view(obj: Obj) -> Obj:
    """What a retrieval shows: a copy without private notes; of a deleted object only that."""
    return copied(shown(obj))


def shown(obj: Obj) -> Obj:
    """The same, not copied deep: to be read only."""
    if obj.get("deleted"):
        return {"id": obj["id"], "object": obj["object"], "deleted": True}
    if obj["object"] == "invoice" and len(obj["lines"]["data"]) > LINES_SHOWN:
        cut = {"data": obj["lines"]["data"][:LINES_SHOWN], "has_more": True}
        return {**public(obj), "lines": {**obj["lines"], **cut}}
    return public(obj)


def expanded(world: World, obj: Obj, paths: list[str]) -> Obj:
    """The view of an object, or of each in a list, with these paths expanded; else to be read only."""
    one = view if paths else shown  # a hundred copies cost more than all else in a list
    if obj["object"] in ("list", "search_result"):
        found = {**obj, "data": [one(item) for item in obj["data"]]}
    else:
        found = one(obj)
    for i, path in enumerate(paths):
        segments = path.split(".")
        if len(segments) > MOST_LEVELS:
            raise bad_param(
                f"You cannot expand more than {MOST_LEVELS} levels of a property. Property: {path}",
                f"expand[{i}]",
            )
        _walk(world, found, "", found, segments, path)
    return found


def _walk(world: World, owner: Obj, at: str, node: Obj, segments: list[str], path: str) -> None:
    """`owner` is the nearest object around `node`, `at` the way from it to `node`."""
    if node.get("deleted"):
        return
    head, *rest = segments
    field = f"{at}.{head}" if at else head
    where = (owner["object"], field)
    if where in EXPANDABLE:
        node[head] = _named(world, EXPANDABLE[where], node.get(head))
    elif where in INCLUDABLE:
        node.setdefault(head, INCLUDABLE[where](world, owner))
    elif not rest or not isinstance(node.get(head), dict | list):
        if head in node and node[head] is None and rest:
            return
        raise bad_param(f"This property cannot be expanded ({path}).", "expand")
    children = node[head] if isinstance(node[head], list) else [node[head]]
    for child in children if rest else ():
        if isinstance(child, dict):
            owned = "object" in child
            _walk(world, child if owned else owner, "" if owned else field, child, rest, path)


def _named(world: World, kind: str | None, value: Any) -> Any:
    if isinstance(value, list):
        return [_named(world, kind, item) for item in value]
    if kind is None or not isinstance(value, str):
        return value
    found = world.find(kind, value)
    return view(found) if found else value
