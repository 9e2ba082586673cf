"""The sandbox as a test holds it: a server on a free port and the hands of everybody but the API.

with Sandbox() as sandbox:
    client = stripe.StripeClient(sandbox.api_key, base_addresses={"api": sandbox.url})
"""

from __future__ import annotations

import logging
import random
import re
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from . import billing, checkout, pages, routes, shapes
from .api import Api, Recorded
from .errors import invalid
from .expand import view
from .faults import Faults
from .params import check, decode_form, params_class
from .webhooks import Delivery, Webhooks
from .world import DAY, HOUR, Dunning, Obj, World, notes

POLL = 0.02  # seconds between looks whether to stop
STEP = 10.0  # seconds to wait for the webhooks of one step of the clock
TICK = 5.0  # seconds between looks at the clock when nobody asks


class Sandbox:
    """A Stripe account in memory, or in the file `data`.

    `port` 0 takes a free one · `webhook_url` and `webhook_secret`: a target for all events, beside
    the webhook endpoints created through the API · `api_key` None accepts any key.
    Methods take ids and return objects as the API shows them; what Stripe would not do raises
    `errors.Refusal`.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        api_key: str | None = "sk_test_sandbox",
        webhook_url: str | None = None,
        webhook_secret: str = "whsec_sandbox",
        data: str | Path | None = None,
        public_url: str | None = None,
    ) -> None:
        self.host, self.port = host, port
        self.api_key = api_key
        self.webhook_secret = webhook_secret
        self.world = World(Path(data) if data else None)
        self.faults = Faults()
        self.webhooks = Webhooks(self.world, [(webhook_url, webhook_secret)] if webhook_url else [])
        self._api = Api(self.world, self.faults, api_key)
        self._public_url = public_url
        self._server: BaseWSGIServer | None = None
        self._stopping = threading.Event()

    # -- the server

    @property
    def url(self) -> str:
        """Base address; what `STRIPE_API_BASE` is set to."""
        return self.world.base_url

    @property
    def requests(self) -> list[Recorded]:
        """Every request made under `/v1`, in order of arrival."""
        return self._api.requests

    @property
    def account(self) -> str:
        """Its id, `acct_…`; stays with the data file and over `reset`."""
        return self.world.account

    def add_key(
        self,
        key: str,
        *,
        account: str | None = None,
        livemode: bool | None = None,
        without: Iterable[str] = (),
        revoked: bool = False,
    ) -> None:
        """One more API key: of another account or mode (`_live_` in the key) it sees other objects;
        `without`: rights that a restricted key lacks, e.g. `customer_write`, `accounts_kyc_basic_read`.
        """
        with self.world.transaction() as world:
            world.keys[key] = {
                "account": account or world.account,
                "livemode": "_live_" in key if livemode is None else livemode,
                "without": list(without),
                "revoked": revoked,
            }
            world.mark_dirty()

    def app(self) -> Flask:
        app = Flask("stripe_sandbox")
        app.register_blueprint(self._api.blueprint())
        app.register_blueprint(pages.hosted(self))
        app.register_blueprint(pages.control(self))
        return app

    def start(self) -> Sandbox:
        """Listens and serves from a daemon thread; back when connections are accepted."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = make_server(
            self.host, self.port, self.app(), threaded=True, request_handler=_OneRequest
        )
        self.port = self._server.server_port
        self.world.base_url = self._public_url or f"http://{self.host}:{self.port}"
        self._stopping.clear()
        self.webhooks.start()
        for work in (partial(self._server.serve_forever, POLL), self._tick):
            threading.Thread(target=work, name="stripe-sandbox", daemon=True).start()
        return self

    def stop(self) -> None:
        """Stops serving and delivering; state stays, and `start` takes it up again."""
        self._stopping.set()
        self.webhooks.stop()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        with self.world.transaction():
            pass

    def reset(self) -> None:
        """An empty account, no faults, no records, webhooks delivered at once."""
        with self.world.lock:
            self.world.clear()
            self.world.other_mode = None
            self._api.others.clear()
            self.world.dunning = Dunning()
            self.webhooks.clear()
            self.webhooks.mode, self.webhooks.delay = "deliver", 0.0
            self.faults.clear()
            self.requests.clear()
            self.world.save()

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _tick(self) -> None:
        while not self._stopping.wait(TICK):
            with self.world.transaction():
                pass

    # -- the clock

    def now(self) -> int:
        """Unix seconds by the sandbox's clock: real time plus all advances."""
        return self.world.now()

    def advance(
        self, *, days: float = 0, hours: float = 0, seconds: float = 0, in_steps: bool = False
    ) -> int:
        """Moves the clock on; everything that falls due happens in order. Returns `now()`.

        `in_steps`: waits wherever something happens until its webhooks are answered, so that the
        service can act in between, as it would in real life.
        """
        if days < 0 or hours < 0 or seconds < 0:
            raise invalid("The clock only goes forward.")
        until = self.now() + days * DAY + hours * HOUR + seconds
        while in_steps and (due := self.world.next_due()) is not None and due <= until:
            self.world.advance(max(0, due - self.now()))
            in_steps = self.webhooks.wait(STEP)
        self.world.advance(max(0, until - self.now()))
        return self.now()

    def advance_to(self, timestamp: int) -> int:
        """Moves the clock to a time that is not past."""
        return self.advance(seconds=timestamp - self.now())

    def set_dunning(self, retry_days: Iterable[int] = (3, 5, 7), then: str = "canceled") -> None:
        """What follows a failed renewal; `then`: "canceled", "unpaid" or "past_due"."""
        self.world.dunning = Dunning(tuple(retry_days), then)

    # -- reading

    def get(self, kind: str, id: str) -> Obj:
        """An object, `kind` as in its `object` field; a deleted customer only says so."""
        with self.world.transaction():
            return view(self.world.find(kind, id) or self.world.get(kind, id))

    def every(self, kind: str) -> list[Obj]:
        """All objects of a kind that are not deleted, oldest first."""
        with self.world.transaction():
            return [view(obj) for obj in self.world.every(kind)]

    @property
    def events(self) -> list[Obj]:
        """All events, oldest first."""
        return self.every("event")

    # -- the customer

    def set_card(self, customer: str, card: str | None) -> None:
        """ "ok" pays, "decline" or a decline code is refused, "3ds" needs the customer, None: no card."""
        if card is not None and not re.fullmatch("[a-z0-9_]+", card):
            raise invalid("A card is ok, 3ds, decline, a decline code or null.", "card")
        with self.world.transaction() as world:
            world.get("customer", customer)
            world.cards.pop(customer, None)
            if card:
                world.cards[customer] = card
            world.mark_dirty()

    def apply_code(self, session: str, code: str) -> Obj:
        """Types a promotion code into the checkout page."""
        return self._on("checkout.session", session, lambda w, s: checkout.apply_code(w, s, code))

    def pay(
        self,
        session: str,
        promotion_code: str | None = None,
        email: str | None = None,
        address: Obj | None = None,
        tax_id: Obj | None = None,
    ) -> Obj:
        """Pays a checkout page with a good card; `promotion_code` is the code's text."""
        if promotion_code:
            self.apply_code(session, promotion_code)

        def change(world: World, found: Obj) -> None:
            checkout.pay(world, found, email=email, address=address, tax_id=tax_id)

        return self._on("checkout.session", session, change)

    def pay_link(self, price: str, email: str) -> Obj:
        """A customer of a payment link, with nothing of ours in any metadata; the session."""
        with self.world.transaction() as world:
            return view(checkout.pay_link(world, billing.recurring_price(world, price, "price"), email))

    def decline(self, session: str) -> Obj:
        """Tries a checkout page with a card that is refused: the session stays open."""
        return self._on("checkout.session", session, lambda w, s: checkout.need_open(s))

    def pay_async(self, session: str) -> Obj:
        """Completes a checkout page with a payment that takes days; see `settle`."""
        return self._on("checkout.session", session, lambda w, s: checkout.pay(w, s, settled=False))

    def settle(self, session: str, succeed: bool = True) -> Obj:
        """The end of a payment begun by `pay_async`."""
        return self._on("checkout.session", session, lambda w, s: checkout.settle(w, s, succeed=succeed))

    def pay_invoice(self, subscription: str) -> Obj:
        """The customer pays by hand (and authenticates): this invoice, or the subscription's open one."""
        if subscription.startswith("in_"):
            return self._on("invoice", subscription, billing.pay)
        return self._sub(subscription, billing.pay_latest)

    def portal_cancel(self, subscription: str) -> Obj:
        """Cancels in the portal: `cancel_at` = period end, `cancel_at_period_end` stays false."""

        def change(world: World, sub: Obj) -> None:
            billing.refuse_if_ended(sub)
            with world.changing(sub):
                billing.schedule_cancellation(world, sub, {"cancel_at": "min_period_end"})

        return self._sub(subscription, change)

    def portal_resume(self, subscription: str) -> Obj:
        """Withdraws a scheduled cancellation in the portal."""

        def change(world: World, sub: Obj) -> None:
            billing.refuse_if_ended(sub)
            with world.changing(sub):
                billing.schedule_cancellation(world, sub, {"cancel_at": ""})

        return self._sub(subscription, change)

    def portal_switch(self, subscription: str, price: str) -> Obj:
        """Switches the plan in the portal, prorated and paid at once; declined: Refusal (402)."""
        item = self.get("subscription", subscription)["items"]["data"][0]["id"]
        return self.update_subscription(
            subscription,
            items=[{"id": item, "price": price}],
            proration_behavior="always_invoice",
            payment_behavior="error_if_incomplete",
        )

    # -- the dashboard

    def create_customer(
        self,
        email: str | None = None,
        *,
        card: str | None = "ok",
        test_clock: str | None = None,
        **given: Any,
    ) -> Obj:
        """A customer made by hand; `given`: name, metadata, address, balance …"""
        with self.world.transaction() as world:
            fields = {"email": email, "test_clock": test_clock, **given}
            customer = world.add(shapes.customer(world.now(), fields))
            if card:
                world.cards[customer["id"]] = card
            world.emit("customer.created", customer)
            return view(customer)

    def create_price(
        self, cents: int, *, interval: str = "month", product: str | None = None, **given: Any
    ) -> Obj:
        """A price made by hand, of a product of its own unless one is given."""
        with self.world.transaction() as world:
            if product is None:
                product = routes.create_product(world, {"name": given.get("nickname", "Something else")})[
                    "id"
                ]
            price = {"product": product, "currency": "usd", "unit_amount": cents, **given}
            return view(routes.create_price(world, {"recurring": {"interval": interval}, **price}))

    def create_subscription(
        self,
        customer: str,
        price: str | None = None,
        *,
        trial_days: int = 0,
        items: Iterable[Obj] = (),
        **given: Any,
    ) -> Obj:
        """A subscription made by hand; gives the customer a good card if there is none.

        `items`: {price, quantity}, instead of one price · `given`: metadata, description,
        trial_settings, collection_method, days_until_due, automatic_tax.
        """
        with self.world.transaction() as world:
            id = world.get("customer", customer)["id"]
            world.cards.setdefault(id, "ok")
            entries = list(items) or [{"price": price}]
            wanted = [
                (billing.recurring_price(world, item["price"], "price"), item.get("quantity", 1))
                for item in entries
            ]
            trial_end = world.now() + trial_days * DAY if trial_days else None
            return view(billing.create(world, id, wanted, given, trial_end=trial_end))

    def schedule(self, subscription: str, price: str) -> Obj:
        """Plans another price from the end of the period on; the schedule."""
        with self.world.transaction() as world:
            sub = world.get("subscription", subscription)
            new = billing.recurring_price(world, price, "price")["id"]
            schedule = world.add(shapes.subscription_schedule(world.now(), sub, new))
            world.emit("subscription_schedule.created", schedule)
            with world.changing(sub):
                sub["schedule"] = schedule["id"]
            return view(schedule)

    def refund(self, invoice: str, amount: int | None = None) -> Obj:
        """Gives back a paid invoice, or so much of it; the charge."""
        with self.world.transaction() as world:
            charge = self._charge(world, invoice)
            amount = amount or charge["amount"] - charge["amount_refunded"]
            charge["amount_refunded"] += amount
            charge["refunded"] = charge["amount_refunded"] == charge["amount"]
            world.touch(charge)
            world.emit("charge.refunded", charge)
            return view(charge)

    def dispute(self, invoice: str, reason: str = "fraudulent") -> Obj:
        """The bank takes back the payment of an invoice; the dispute."""
        with self.world.transaction() as world:
            charge = self._charge(world, invoice)
            charge["disputed"] = True
            world.touch(charge)
            dispute = world.add(shapes.dispute(world.now(), charge, reason))
            world.emit("charge.dispute.created", dispute)
            return view(dispute)

    def close_dispute(self, dispute: str, status: str = "lost") -> Obj:
        """`status`: lost, won or warning_closed."""

        def change(world: World, found: Obj) -> None:
            found["status"] = status
            world.touch(found)
            world.emit("charge.dispute.closed", found)

        return self._on("dispute", dispute, change)

    @staticmethod
    def _charge(world: World, invoice: str) -> Obj:
        charge = notes(world.get("invoice", invoice)).get("charge")
        if charge is None:
            raise invalid("This invoice was not paid by card.")
        return world.get("charge", charge)

    def update_subscription(self, subscription: str, **raw: Any) -> Obj:
        """`POST /v1/subscriptions/…` with these parameters, without a request."""
        checked = check(decode_form(_flat(raw)), params_class("SubscriptionUpdateParams"))
        return self._sub(subscription, lambda w, sub: routes.update_subscription(w, checked, sub["id"]))

    def cancel_subscription(self, subscription: str) -> Obj:
        """Ends it at once."""
        return self._sub(subscription, lambda w, s: routes.cancel_subscription(w, {}, s["id"]))

    def set_status(self, subscription: str, status: str) -> Obj:
        """Any status, one never heard of too; `canceled` ends it properly."""

        def change(world: World, sub: Obj) -> None:
            if status == "canceled":
                billing.cancel(world, sub)
            elif status == "paused":
                billing.pause(world, sub)
            else:
                with world.changing(sub):
                    sub["status"] = status
                    sub["ended_at"] = None

        return self._sub(subscription, change)

    def pause(self, subscription: str) -> Obj:
        """Status `paused`; for `pause_collection` use `update_subscription`."""
        return self._sub(subscription, billing.pause)

    def resume(self, subscription: str) -> Obj:
        """From `paused` back to active, billed now."""
        return self._sub(subscription, billing.resume)

    def delete_customer(self, customer: str) -> Obj:
        """Deletes for good; live subscriptions end at once."""
        return self._on("customer", customer, billing.delete_customer)

    def create_promotion_code(self, code: str, percent_off: float, **rules: Any) -> Obj:
        """A coupon of so many percent, once, and its code; `rules` as in the API."""
        with self.world.transaction() as world:
            coupon = world.add(shapes.coupon(world.now(), {"percent_off": percent_off}))
            promotion = {"type": "coupon", "coupon": coupon["id"]}
            given = {"code": code, "promotion": promotion, **rules}
            return view(routes.create_promotion_code(world, given))

    # -- webhooks, for a process

    def webhooks_mode(self, mode: str) -> None:
        """`deliver` at once, `hold` until `deliver`, or `drop`: lost on the way."""
        if mode not in ("deliver", "hold", "drop"):
            raise invalid("The mode is deliver, hold or drop.", "mode")
        self.webhooks.mode = mode

    def deliver(
        self,
        event: str | None = None,
        *,
        customer: str | None = None,
        again: bool = False,
        times: int = 1,
        order: str = "time",
        thin: bool = False,
    ) -> list[Delivery]:
        """Sends events now: one, or those not yet delivered (with `again` all), of one customer or of
        everybody; `order`: time, reverse or random · `times`: copies of each · `thin`: as thin events.
        """
        with self.world.transaction() as world:
            pending = {waiting["id"] for waiting in self.webhooks.pending}
            found = [world.get("event", event)] if event else world.every("event")
            if not event and not again:
                found = [e for e in found if e["id"] in pending or e["pending_webhooks"]]
            if customer:
                found = [e for e in found if customer in _parties(e["data"]["object"])]
        if order == "random":
            random.shuffle(found)
        elif order != "time":
            found.reverse()
        send = self.webhooks.deliver_thin if thin else self.webhooks.deliver
        return [delivery for one in found for delivery in send(one, times=times)]

    # -- the two ways in

    def _on(self, kind: str, id: str, change: Callable[[World, Obj], object]) -> Obj:
        with self.world.transaction() as world:
            obj = world.get(kind, id)
            change(world, obj)
            return view(obj)

    def _sub(self, id: str, change: Callable[[World, Obj], object]) -> Obj:
        return self._on("subscription", id, change)

    def state(self) -> Obj:
        """Everything, for a look from outside."""
        with self.world.transaction() as world:
            return {
                "now": world.now(),
                "account": world.account,
                "cards": dict(world.cards),
                "objects": {kind: self.every(kind) for kind in world.tables},
            }


def _parties(obj: Obj) -> tuple[str | None, str | None]:
    return obj.get("customer"), obj["id"]


class _OneRequest(WSGIRequestHandler):
    """A connection per request, so that `stop` leaves none open."""

    protocol_version = "HTTP/1.0"


def _flat(value: Any, at: str = "") -> list[tuple[str, str]]:
    """Python values as the pairs of Stripe's form encoding."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        return [pair for k, v in entries for pair in _flat(v, f"{at}[{k}]" if at else str(k))]
    if value is None:
        return []
    return [(at, str(value).lower() if isinstance(value, bool) else str(value))]


def secret_of(sandbox: Sandbox, endpoint: str) -> str:
    """The signing secret of a webhook endpoint, which the API shows only at creation."""
    return str(notes(sandbox.world.get("webhook_endpoint", endpoint))["secret"])
