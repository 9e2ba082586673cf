"""The calls of `/v1` that are modelled: each a function from checked parameters to an object."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from . import billing, checkout, invoices, shapes
from .errors import Refusal, bad_param, card_refused, invalid, no_such
from .params import check_length
from .world import DAY, Obj, World, new_id, notes

Handler = Callable[..., Obj]
PAGING = "created ending_before expand limit starting_after"
EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")
CODE = re.compile(r"[A-Za-z0-9-]{1,500}")
CUSTOMER_TEXTS = {"name": 256, "email": 512, "description": 5000, "phone": 20}


@dataclass(frozen=True)
class Route:
    """`params`: name of the SDK's parameter class · `supports`: what this sandbox models of it
    (empty: only `expand`) · `clearable`: texts that an empty value unsets."""

    method: str
    path: str
    params: str
    handler: Handler
    supports: frozenset[str]
    clearable: frozenset[str] = field(default=frozenset())


ROUTES: list[Route] = []


def route(
    method: str, path: str, params: str, supports: str = "", clearable: str = ""
) -> Callable[[Handler], Handler]:
    """Registers a handler `(world, params, *ids in the path) → object or list`."""

    def register(handler: Handler) -> Handler:
        names = frozenset(["expand", *supports.split()])
        clear = frozenset(clearable.split())
        ROUTES.append(Route(method, path, params, handler, names, clear))
        return handler

    return register


def retrieval(path: str, kind: str, params: str) -> None:
    """Registers a plain `GET /v1/<path>/<id>`."""

    def retrieve(world: World, p: Obj, id: str) -> Obj:
        return world.get(kind, id)

    route("GET", f"/v1/{path}/<id>", params)(retrieve)


retrieval("products", "product", "ProductRetrieveParams")
retrieval("prices", "price", "PriceRetrieveParams")
retrieval("promotion_codes", "promotion_code", "PromotionCodeRetrieveParams")
retrieval("checkout/sessions", "checkout.session", "checkout.SessionRetrieveParams")
retrieval("subscriptions", "subscription", "SubscriptionRetrieveParams")
retrieval("events", "event", "EventRetrieveParams")
retrieval("webhook_endpoints", "webhook_endpoint", "WebhookEndpointRetrieveParams")


def page(
    world: World,
    kind: str,
    p: Obj,
    path: str,
    keep: Callable[[Obj], bool] = lambda obj: True,
    created: str = "created",
) -> Obj:
    """A list as Stripe pages it: newest first, `limit` 1–100 (default 10)."""
    bounds = p.get("created")

    def wanted(obj: Obj) -> bool:
        return not obj.get("deleted") and (bounds is None or _created_in(obj[created], bounds)) and keep(obj)

    return page_of(world.table(kind, p.get("customer")), kind, p, path, wanted)


def page_of(
    table: dict[str, Obj], kind: str, p: Obj, path: str, keep: Callable[[Obj], bool] = lambda obj: True
) -> Obj:
    """A page of objects by id, the last one first."""
    limit = p.get("limit", 10)
    if not 1 <= limit <= 100:
        bound = "greater than or equal to 1" if limit < 1 else "less than or equal to 100"
        raise bad_param(f"This value must be {bound} (it currently is '{limit}').", "limit")
    for cursor in ("starting_after", "ending_before"):
        if cursor in p and p[cursor] not in table:
            raise no_such(kind, p[cursor], cursor)
    backwards = "ending_before" in p
    ids = iter(table) if backwards else reversed(table)
    start = p.get("ending_before") or p.get("starting_after")
    if start:
        for id in ids:
            if id == start:
                break
    found: list[Obj] = []
    for id in ids:
        if keep(table[id]):
            found.append(table[id])
            if len(found) > limit:
                break
    has_more, data = len(found) > limit, found[:limit]
    return shapes.listing(data[::-1] if backwards else data, f"/v1/{path}", has_more)


def _created_in(at: int, bounds: Any) -> bool:
    if isinstance(bounds, int):
        return at == bounds
    tests = {"gt": at.__gt__, "gte": at.__ge__, "lt": at.__lt__, "lte": at.__le__}
    return all(tests[name](bound) for name, bound in bounds.items())


def equal_to(p: Obj, *names: str) -> Callable[[Obj], bool]:
    """A filter on fields of the same name as the parameter."""
    return lambda obj: all(obj[name] == p[name] for name in names if name in p)


def check_url(p: Obj, *names: str) -> None:
    for name in names:
        if p.get(name):
            parts = urlsplit(p[name])
            if parts.scheme not in ("http", "https") or not parts.hostname or " " in p[name]:
                raise bad_param("Not a valid URL", name, "url_invalid")
            check_length(p[name], 5000, name)


# -- customers


def check_customer(p: Obj) -> None:
    for name, most in CUSTOMER_TEXTS.items():
        check_length(p.get(name), most, name)
    if p.get("email") and not EMAIL.fullmatch(p["email"]):
        raise bad_param(f"Invalid email address: {p['email']}", "email", "email_invalid")


CUSTOMER = "address balance description email metadata name phone preferred_locales"


@route("POST", "/v1/customers", "CustomerCreateParams", CUSTOMER, " ".join(CUSTOMER_TEXTS))
def create_customer(world: World, p: Obj) -> Obj:
    check_customer(p)
    customer = world.add(shapes.customer(world.now(), p))
    world.emit("customer.created", customer)
    return customer


@route("GET", "/v1/customers/<id>", "CustomerRetrieveParams")
def retrieve_customer(world: World, p: Obj, id: str) -> Obj:
    """A deleted one too: `{id, object, deleted: true}`."""
    return world.find("customer", id) or world.get("customer", id)


@route("POST", "/v1/customers/<id>", "CustomerUpdateParams", CUSTOMER, " ".join(CUSTOMER_TEXTS))
def update_customer(world: World, p: Obj, id: str) -> Obj:
    customer = world.get("customer", id)
    check_customer(p)
    if "metadata" in p:
        p["metadata"] = shapes.metadata(customer["metadata"], p["metadata"])
    with world.changing(customer):
        customer.update(p)
    return customer


@route("DELETE", "/v1/customers/<id>", "CustomerDeleteParams")
def delete_customer(world: World, p: Obj, id: str) -> Obj:
    customer = world.get("customer", id)
    billing.delete_customer(world, customer)
    return customer


@route("GET", "/v1/customers", "CustomerListParams", PAGING + " email test_clock")
def list_customers(world: World, p: Obj) -> Obj:
    """Addresses are compared as they are; what stands under a test clock is listed only by it."""
    clock, email = p.get("test_clock"), p.get("email")

    def keep(customer: Obj) -> bool:
        return customer["test_clock"] == clock and email in (None, customer["email"])

    return page(world, "customer", p, "customers", keep)


CLAUSE = re.compile(r"""\s*(\w+)(?:\[["'](.+?)["']\])?\s*:\s*(["'])(.*?)\3\s*""")


def search(world: World, kind: str, p: Obj, path: str, fields: str) -> Obj:
    """`field:"text"` and `metadata["key"]:"text"`, joined by AND; letter case does not count.

    Real searches run up to a minute behind. https://docs.stripe.com/search
    """
    clauses = [CLAUSE.fullmatch(part) for part in re.split(r"\s+AND\s+", p["query"])]
    wanted = []
    for clause in clauses:
        if (
            clause is None
            or clause[1] not in [*fields.split(), "metadata"]
            or (clause[1] == "metadata") != bool(clause[2])
        ):
            raise invalid(
                f"We were unable to parse your search query, or it is not modelled: {p['query']}", "query"
            )
        wanted.append((clause[1], clause[2], clause[4].casefold()))

    def keep(obj: Obj) -> bool:
        found = ((obj["metadata"].get(key) if key else obj[name], text) for name, key, text in wanted)
        return not obj.get("deleted") and all(str(value or "").casefold() == text for value, text in found)

    limit, skip = p.get("limit", 10), int(p.get("page", 0))
    found = [obj for obj in reversed(world.tables[kind].values()) if keep(obj)]
    more = len(found) > skip + limit
    listed = shapes.listing(found[skip : skip + limit], f"/v1/{path}/search", more)
    return {**listed, "object": "search_result", "next_page": str(skip + limit) if more else None}


@route("GET", "/v1/customers/search", "CustomerSearchParams", "limit page query")
def search_customers(world: World, p: Obj) -> Obj:
    return search(world, "customer", p, "customers", "email name phone")


@route("GET", "/v1/subscriptions/search", "SubscriptionSearchParams", "limit page query")
def search_subscriptions(world: World, p: Obj) -> Obj:
    return search(world, "subscription", p, "subscriptions", "status")


@route("GET", "/v1/account", "AccountRetrieveCurrentParams")
def retrieve_account(world: World, p: Obj) -> Obj:
    return shapes.account(world.account)


# -- products, prices, coupons, promotion codes


PRODUCT = "active description id images metadata name statement_descriptor unit_label url"


@route("POST", "/v1/products", "ProductCreateParams", PRODUCT)
def create_product(world: World, p: Obj) -> Obj:
    check_url(p, "url")
    _refuse_taken(world, "product", p)
    product = world.add(shapes.product(world.now(), p))
    world.emit("product.created", product)
    return product


@route("POST", "/v1/products/<id>", "ProductUpdateParams", PRODUCT.replace(" id ", " "))
def update_product(world: World, p: Obj, id: str) -> Obj:
    product = world.get("product", id)
    check_url(p, "url")
    if "metadata" in p:
        p["metadata"] = shapes.metadata(product["metadata"], p["metadata"])
    with world.changing(product):
        product.update({k: v if v != "" else None for k, v in p.items()}, updated=world.now())
    return product


@route("GET", "/v1/products", "ProductListParams", PAGING + " active ids")
def list_products(world: World, p: Obj) -> Obj:
    wanted = equal_to(p, "active")
    ids = p.get("ids")
    return page(world, "product", p, "products", lambda o: wanted(o) and (not ids or o["id"] in ids))


def _refuse_taken(world: World, kind: str, p: Obj) -> None:
    if "id" in p and world.find(kind, p["id"]):
        raise invalid(f"{kind.title()} already exists.", "id", "resource_already_exists")


PRICE = (
    "active billing_scheme currency lookup_key metadata nickname product recurring.interval "
    "recurring.interval_count recurring.usage_type tax_behavior transfer_lookup_key unit_amount "
    "unit_amount_decimal"
)


@route("POST", "/v1/prices", "PriceCreateParams", PRICE)
def create_price(world: World, p: Obj) -> Obj:
    for name in ("product", "unit_amount"):
        if name not in p and f"{name}_decimal" not in p:
            raise invalid(f"Missing required param: {name}.", name, "parameter_missing")
    world.get("product", p["product"], "product")
    if p.get("unit_amount", 0) < 0:
        raise invalid("Invalid non-negative integer", "unit_amount", "parameter_invalid_integer")
    check_length(p.get("lookup_key"), 200, "lookup_key")
    _take_lookup_key(world, p)
    price = world.add(shapes.price(world.now(), p))
    world.emit("price.created", price)
    return price


def _take_lookup_key(world: World, p: Obj) -> None:
    """A lookup key names one price; another gets it only with `transfer_lookup_key`."""
    for old in world.every("price", lookup_key=p["lookup_key"]) if p.get("lookup_key") else ():
        if not p.get("transfer_lookup_key"):
            raise invalid(
                f"A price (`{old['id']}`) already uses that lookup key.",
                "lookup_key",
                "resource_already_exists",
            )
        with world.changing(old):
            old["lookup_key"] = None
        billing.show_price(world, old)


@route(
    "POST",
    "/v1/prices/<id>",
    "PriceUpdateParams",
    "active lookup_key metadata nickname tax_behavior transfer_lookup_key",
)
def update_price(world: World, p: Obj, id: str) -> Obj:
    price = world.get("price", id)
    if p.get("tax_behavior", price["tax_behavior"]) != price["tax_behavior"] != "unspecified":
        raise invalid("The `tax_behavior` of a price cannot be changed once it is set.", "tax_behavior")
    if p.get("lookup_key") != price["lookup_key"]:
        _take_lookup_key(world, p)
    p.pop("transfer_lookup_key", None)
    if "metadata" in p:
        p["metadata"] = shapes.metadata(price["metadata"], p["metadata"])
    with world.changing(price):
        price.update({k: v if v != "" else None for k, v in p.items()})
    billing.show_price(world, price)
    return price


@route("GET", "/v1/prices", "PriceListParams", PAGING + " active currency lookup_keys product type")
def list_prices(world: World, p: Obj) -> Obj:
    keys = p.get("lookup_keys")
    if keys and len(keys) > 10:
        raise bad_param("You can pass at most 10 lookup_keys", "lookup_keys")
    wanted = equal_to(p, "active", "currency", "product", "type")
    return page(world, "price", p, "prices", lambda o: wanted(o) and (not keys or o["lookup_key"] in keys))


COUPON = (
    "amount_off currency duration duration_in_months id max_redemptions metadata name percent_off redeem_by"
)


@route("POST", "/v1/coupons", "CouponCreateParams", COUPON)
def create_coupon(world: World, p: Obj) -> Obj:
    if ("percent_off" in p) == ("amount_off" in p):
        raise invalid("You must pass exactly one of percent_off and amount_off.")
    if "amount_off" in p and "currency" not in p:
        raise invalid("Missing required param: currency.", "currency", "parameter_missing")
    if not 0 < p.get("percent_off", 1) <= 100:
        raise invalid("Invalid percent_off: must be above 0 and at most 100", "percent_off")
    if (p.get("duration") == "repeating") != ("duration_in_months" in p):
        raise invalid("duration_in_months goes with duration=repeating", "duration_in_months")
    _refuse_taken(world, "coupon", p)
    coupon = world.add(shapes.coupon(world.now(), p))
    world.emit("coupon.created", coupon)
    return coupon


retrieval("coupons", "coupon", "CouponRetrieveParams")

PROMOTION_CODE = "active code customer expires_at max_redemptions metadata promotion restrictions"


@route("POST", "/v1/promotion_codes", "PromotionCodeCreateParams", PROMOTION_CODE)
def create_promotion_code(world: World, p: Obj) -> Obj:
    coupon_id = p["promotion"].get("coupon")
    if not coupon_id:
        where = "promotion[coupon]"
        raise invalid(f"Missing required param: {where}.", where, "parameter_missing")
    coupon = world.get("coupon", coupon_id, "promotion[coupon]")
    if not coupon["valid"]:
        raise invalid("This coupon is used up or expired.", "promotion[coupon]", "coupon_expired")
    if "customer" in p:
        world.get("customer", p["customer"], "customer")
    if "code" in p and not CODE.fullmatch(p["code"]):
        raise invalid("Promotion codes take letters, digits and dashes only.", "code")
    if p.get("expires_at", world.now() + 1) <= world.now():
        raise invalid("`expires_at` must be in the future", "expires_at")
    code = p.get("code", "")
    if any(
        other["code"].casefold() == code.casefold()
        and (other["customer"] is None or other["customer"] == p.get("customer"))
        for other in world.every("promotion_code", active=True)
    ):
        raise invalid(
            f"An active promotion code with `code: {code}` already exists.",
            "code",
            "resource_already_exists",
        )
    promotion = world.add(shapes.promotion_code(world.now(), p))
    world.emit("promotion_code.created", promotion)
    return promotion


@route("POST", "/v1/promotion_codes/<id>", "PromotionCodeUpdateParams", "active metadata")
def update_promotion_code(world: World, p: Obj, id: str) -> Obj:
    promotion = world.get("promotion_code", id)
    if "metadata" in p:
        p["metadata"] = shapes.metadata(promotion["metadata"], p["metadata"])
    with world.changing(promotion):
        promotion.update(p)
    return promotion


@route(
    "GET",
    "/v1/promotion_codes",
    "PromotionCodeListParams",
    PAGING + " active code coupon customer",
)
def list_promotion_codes(world: World, p: Obj) -> Obj:
    wanted = equal_to(p, "active", "customer")

    def keep(obj: Obj) -> bool:
        code, coupon = str(p.get("code", obj["code"])), obj["promotion"]["coupon"]
        same = obj["code"].casefold() == code.casefold() and coupon == p.get("coupon", coupon)
        return same and wanted(obj)

    return page(world, "promotion_code", p, "promotion_codes", keep)


# -- checkout

SESSION = (
    "adaptive_pricing allow_promotion_codes automatic_tax.enabled billing_address_collection "
    "cancel_url client_reference_id customer customer_email customer_update discounts expires_at "
    "line_items.price line_items.quantity locale metadata mode payment_method_collection "
    "subscription_data.billing_mode subscription_data.description subscription_data.metadata "
    "subscription_data.trial_end subscription_data.trial_period_days "
    "subscription_data.trial_settings success_url tax_id_collection ui_mode"
)


@route("POST", "/v1/checkout/sessions", "checkout.SessionCreateParams", SESSION)
def create_session(world: World, p: Obj) -> Obj:
    check_url(p, "success_url", "cancel_url")
    check_length(p.get("client_reference_id"), 200, "client_reference_id")
    if p.get("customer_email") and not EMAIL.fullmatch(p["customer_email"]):
        raise bad_param("Invalid email address", "customer_email", "email_invalid")
    if p.get("ui_mode", "hosted_page") != "hosted_page":
        raise Refusal(400, "ui_mode: only `hosted_page` is modelled", code="sandbox_unsupported")
    return checkout.create(world, p)


@route("POST", "/v1/checkout/sessions/<id>/expire", "checkout.SessionExpireParams")
def expire_session(world: World, p: Obj, id: str) -> Obj:
    session = world.get("checkout.session", id)
    checkout.expire(world, session)
    return session


@route(
    "GET",
    "/v1/checkout/sessions",
    "checkout.SessionListParams",
    PAGING + " customer status subscription customer_details",
)
def list_sessions(world: World, p: Obj) -> Obj:
    wanted = equal_to(p, "customer", "status", "subscription")
    email = p.get("customer_details", {}).get("email")

    def keep(obj: Obj) -> bool:
        return wanted(obj) and (not email or (obj["customer_details"] or {}).get("email") == email)

    return page(world, "checkout.session", p, "checkout/sessions", keep)


# -- subscriptions


@route(
    "GET",
    "/v1/subscriptions",
    "SubscriptionListParams",
    PAGING + " collection_method customer price status test_clock",
)
def list_subscriptions(world: World, p: Obj) -> Obj:
    """All but canceled ones, unless `status` says otherwise; under a test clock only if asked."""
    wanted = equal_to(p, "customer", "collection_method")
    if "customer" in p and not world.find("customer", p["customer"]):
        raise no_such("customer", p["customer"], "customer")
    status, price, clock = p.get("status"), p.get("price"), p.get("test_clock")
    any_clock = "customer" in p and clock is None

    def keep(sub: Obj) -> bool:
        matches = {"all": True, "ended": sub["status"] in billing.ENDED}.get(
            status or "", sub["status"] == status if status else sub["status"] != "canceled"
        )
        has_price = not price or any(i["price"]["id"] == price for i in billing.items_of(sub))
        here = any_clock or sub["test_clock"] == clock
        return matches and has_price and here and wanted(sub)

    return page(world, "subscription", p, "subscriptions", keep)


@route(
    "POST",
    "/v1/subscriptions",
    "SubscriptionCreateParams",
    "automatic_tax.enabled billing_mode collection_method customer days_until_due description discounts "
    "items.price items.quantity metadata off_session payment_behavior trial_end trial_period_days "
    "trial_settings",
)
def create_subscription(world: World, p: Obj) -> Obj:
    for name in ("customer", "items"):
        if name not in p:
            raise invalid(f"Missing required param: {name}.", name, "parameter_missing")
    customer = world.get("customer", p["customer"], "customer")["id"]
    wanted = []
    for i, item in enumerate(p["items"]):
        price = billing.recurring_price(world, item.get("price", ""), f"items[{i}][price]")
        wanted.append((price, item.get("quantity", 1)))
    discounts = p.get("discounts") or []
    for entry in discounts:
        checkout.check_discount(world, entry, customer, 0)
    days, trial_end = p.get("trial_period_days"), p.get("trial_end")
    trial = trial_end if isinstance(trial_end, int) else days and world.now() + days * DAY
    behavior = p.get("payment_behavior", "allow_incomplete")
    collect = behavior != "default_incomplete"
    sent = p.get("collection_method") == "send_invoice"
    if sent and "days_until_due" not in p:
        raise invalid("You must pass `days_until_due` with `send_invoice`.", "days_until_due")
    _need_location(world, customer, p)
    card = world.cards.get(customer)
    if (
        collect
        and not trial
        and not sent
        and (card is None or (behavior == "error_if_incomplete" and card != "ok"))
    ):
        raise card_refused(card)
    return billing.create(world, customer, wanted, p, trial_end=trial, discounts=discounts, collect=collect)


def _need_location(world: World, customer: str, p: Obj) -> None:
    located = invoices.is_located(world.tables["customer"][customer])
    if p.get("automatic_tax", {}).get("enabled") and not located:
        raise invalid(
            "The customer's location isn't recognized. Set a valid customer address in order to "
            "automatically calculate tax.",
            "automatic_tax[enabled]",
            "customer_tax_location_invalid",
        )


UPDATE_SUBSCRIPTION = (
    "automatic_tax.enabled billing_cycle_anchor cancel_at cancel_at_period_end cancellation_details "
    "description items.id items.price items.quantity items.deleted items.metadata metadata off_session "
    "pause_collection payment_behavior proration_behavior proration_date trial_end trial_settings"
)
PENDING_UPDATE = {
    "billing_cycle_anchor",
    "items",
    "off_session",
    "payment_behavior",
    "proration_behavior",
    "proration_date",
    "trial_end",
}


@route("POST", "/v1/subscriptions/<id>", "SubscriptionUpdateParams", UPDATE_SUBSCRIPTION)
def update_subscription(world: World, p: Obj, id: str) -> Obj:
    sub = world.get("subscription", id)
    if set(p) - {"metadata", "cancellation_details"}:
        billing.refuse_if_ended(sub)
    if p.get("payment_behavior") == "pending_if_incomplete" and set(p) - PENDING_UPDATE:
        names = ", ".join(sorted(set(p) - PENDING_UPDATE))
        raise invalid("When `payment_behavior` is set to `pending_if_incomplete`, you cannot pass " + names)
    _need_location(world, sub["customer"], p)
    with world.changing(sub):
        if "automatic_tax" in p:
            sub["automatic_tax"] = shapes.automatic_tax(p["automatic_tax"])
        if "metadata" in p:
            sub["metadata"] = shapes.metadata(sub["metadata"], p["metadata"])
        if "description" in p:
            sub["description"] = p["description"] or None
        if "pause_collection" in p:
            pausing = p["pause_collection"]
            sub["pause_collection"] = {"resumes_at": None, **pausing} if pausing else None
        if "trial_settings" in p:
            sub["trial_settings"] = p["trial_settings"]
        sub["cancellation_details"].update(p.get("cancellation_details", {}))
        if {"items", "trial_end", "billing_cycle_anchor"} & set(p):
            billing.change_plan(world, sub, p)
        billing.schedule_cancellation(world, sub, p)
    return sub


@route(
    "DELETE",
    "/v1/subscriptions/<id>",
    "SubscriptionCancelParams",
    "cancellation_details invoice_now prorate",
)
def cancel_subscription(world: World, p: Obj, id: str) -> Obj:
    sub = world.get("subscription", id)
    if sub["status"] in billing.ENDED:
        raise no_such("subscription", id)
    billing.cancel(
        world,
        sub,
        prorate=p.get("prorate", False),
        invoice_now=p.get("invoice_now", False),
        details=p.get("cancellation_details"),
    )
    return sub


@route(
    "POST",
    "/v1/subscriptions/<id>/resume",
    "SubscriptionResumeParams",
    "payment_behavior proration_behavior billing_cycle_anchor",
)
def resume_subscription(world: World, p: Obj, id: str) -> Obj:
    sub = world.get("subscription", id)
    billing.resume(world, sub, p.get("payment_behavior", "resume_on_payment_attempt"))
    return sub


# -- events


@route("GET", "/v1/events", "EventListParams", PAGING + " delivery_success type types")
def list_events(world: World, p: Obj) -> Obj:
    types = p.get("types") or ([p["type"]] if "type" in p else [])
    success = p.get("delivery_success")

    def keep(event: Obj) -> bool:
        delivered = success is None or success == (event["pending_webhooks"] == 0)
        return delivered and (not types or any(_is_type(event["type"], t) for t in types))

    return page(world, "event", p, "events", keep)


def _is_type(name: str, pattern: str) -> bool:
    return name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1]))


# -- portal and webhook endpoints


PORTAL_CONFIGURATION = "business_profile default_return_url features metadata name"


@route(
    "POST",
    "/v1/billing_portal/configurations",
    "billing_portal.ConfigurationCreateParams",
    PORTAL_CONFIGURATION,
)
def create_configuration(world: World, p: Obj) -> Obj:
    check_url(p, "default_return_url")
    first = not world.every("billing_portal.configuration")
    return world.add(shapes.portal_configuration(world.now(), p, first))


@route(
    "GET",
    "/v1/billing_portal/configurations",
    "billing_portal.ConfigurationListParams",
    "active ending_before is_default limit starting_after",
)
def list_configurations(world: World, p: Obj) -> Obj:
    wanted = equal_to(p, "active", "is_default")
    path = "billing_portal/configurations"
    return page(world, "billing_portal.configuration", p, path, wanted)


@route(
    "POST",
    "/v1/billing_portal/sessions",
    "billing_portal.SessionCreateParams",
    "configuration customer locale return_url",
)
def create_portal_session(world: World, p: Obj) -> Obj:
    check_url(p, "return_url")
    if "customer" not in p:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    world.get("customer", p["customer"], "customer")
    kind = "billing_portal.configuration"
    if "configuration" in p:
        configuration = world.get(kind, p["configuration"], "configuration")
    else:
        saved = world.every(kind, is_default=True)
        fresh = shapes.portal_configuration(world.now(), {}, is_default=True)
        configuration = saved[0] if saved else world.add(fresh)
    return world.add(shapes.portal_session(world.now(), p, configuration, world.base_url))


@route(
    "POST",
    "/v1/webhook_endpoints",
    "WebhookEndpointCreateParams",
    "api_version description enabled_events metadata url",
)
def create_webhook_endpoint(world: World, p: Obj) -> Obj:
    """The only answer that has the `secret`."""
    check_url(p, "url")
    endpoint = world.add(shapes.webhook_endpoint(world.now(), p))
    notes(endpoint)["secret"] = new_id("whsec", 32)
    return {**endpoint, "secret": notes(endpoint)["secret"]}


@route(
    "POST",
    "/v1/webhook_endpoints/<id>",
    "WebhookEndpointUpdateParams",
    "description disabled enabled_events metadata url",
)
def update_webhook_endpoint(world: World, p: Obj, id: str) -> Obj:
    endpoint = world.get("webhook_endpoint", id)
    check_url(p, "url")
    if "disabled" in p:
        endpoint["status"] = "disabled" if p.pop("disabled") else "enabled"
    if "metadata" in p:
        p["metadata"] = shapes.metadata(endpoint["metadata"], p["metadata"])
    endpoint.update(p)
    world.touch(endpoint)
    return endpoint


@route("DELETE", "/v1/webhook_endpoints/<id>", "WebhookEndpointDeleteParams")
def delete_webhook_endpoint(world: World, p: Obj, id: str) -> Obj:
    endpoint = world.get("webhook_endpoint", id)
    endpoint["deleted"] = True
    world.touch(endpoint)
    return endpoint


@route("GET", "/v1/webhook_endpoints", "WebhookEndpointListParams", PAGING.replace("created ", ""))
def list_webhook_endpoints(world: World, p: Obj) -> Obj:
    return page(world, "webhook_endpoint", p, "webhook_endpoints")
