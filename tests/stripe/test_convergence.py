"""Whatever happens to webhooks, answers and processes: in the end the database has Stripe's state.

CONVERGENCE_EXAMPLES=500 looks longer than the suite does.
"""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import pytest
import stripe
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from app.context import set_actor
from app.plans import PLANS
from app.services.stripe_reconcile import sync_all
from tests.conftest import ADMIN, WEBHOOK_SECRET
from tests.shop import Shop
from tests.stripe.conftest import Fuse
from tests.stripe_sandbox import Refusal, Sandbox
from tests.tokens import claims_of

DAY: Final = 86_400
SERVED: Final = ("active", "trialing", "past_due")
IN_LICENSE: Final = {"canceled": "expired"}
"""Deployed instances take `canceled` for an order to refuse the whole license."""
UNPAID: Final = ("incomplete", "incomplete_expired")
ANSWERS: Final = {200, 201, 402, 404, 409, 502, 503}
WORKERS: Final = ("http://one.test/webhooks/stripe", "http://two.test/webhooks/stripe")

plans = st.sampled_from(["starter", "professional"])
steps = st.one_of(
    st.tuples(st.just("checkout"), plans),
    st.tuples(st.just("pay"), st.sampled_from(["pay", "pay", "pay_async", "decline"])),
    st.tuples(st.just("settle"), st.booleans()),
    st.tuples(st.just("success_page"), st.none()),
    st.tuples(st.just("upgrade"), plans),
    st.tuples(st.just("cancel"), st.booleans()),
    st.tuples(st.just("resume"), st.none()),
    st.tuples(st.just("portal"), st.sampled_from(["cancel", "resume", "starter", "professional"])),
    st.tuples(st.just("dashboard"), st.sampled_from(["second", "third", "odd price", "pause", "unpause"])),
    st.tuples(st.just("dashboard"), st.sampled_from(["unpaid", "past_due", "frozen", "cancel", "delete"])),
    st.tuples(st.just("card"), st.sampled_from(["ok", "decline"])),
    st.tuples(st.just("time"), st.sampled_from([1, 32])),
    st.tuples(st.just("lose_answers"), st.tuples(st.integers(1, 3), st.booleans())),
    st.tuples(st.just("fail"), st.tuples(st.integers(1, 4), st.sampled_from([500, "drop"]))),
    st.tuples(st.just("kill_next"), st.integers(0, 60)),
    st.tuples(st.just("deliver"), st.integers(0, 99)),
    st.tuples(st.just("deliver_twice"), st.integers(0, 99)),
    st.tuples(st.just("deliver_at_once"), st.integers(0, 99)),
    st.tuples(st.just("deliver_and_kill"), st.integers(0, 40)),
)
losses = st.tuples(st.just("lose_event"), st.integers(0, 99))


class Nothing(Exception):
    """The customer has no such thing at Stripe yet."""


class Account:
    """Two workers, a Stripe account and some customers; every step may be taken at any time."""

    def __init__(self, shop: Shop, workers: list[Flask], fuse: Fuse) -> None:
        self.shop, self.sandbox, self.fuse = shop, shop.sandbox, fuse
        self.clients = dict(zip(WORKERS, (app.test_client for app in workers), strict=True))
        self.webhooks = self.sandbox.webhooks
        self.webhooks.transport = self._carry
        self.webhooks.targets = dict.fromkeys(WORKERS, WEBHOOK_SECRET)
        self.odd_price = shop.make_price(700)
        self.webhooks.clear()
        self.undone: list[dict[str, Any]] = []
        self.lost = False
        self.fuse_length: int | None = None
        self.trials: dict[str, str] = {}

    def join(self, plan: str | None) -> str:
        customer_id = self.shop.customer(**({"plan": plan} if plan else {}))
        self.trials[customer_id] = plan or "trial"
        return customer_id

    # How events travel

    def _carry(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        return self.clients[url]().post("/webhooks/stripe", data=body, headers=headers).status_code

    def _bring(self, event: dict[str, Any], url: str, kill_after: int | None = None) -> None:
        """Deliver once; unless it is done, Stripe will come again."""
        delivered: list[Any] = []
        with self.fuse.lit(kill_after):
            delivered = self.webhooks.deliver(event, url)
        if not delivered or not delivered[0].ok:
            assert not delivered or delivered[0].status in (502, 503), delivered
            self.undone.append(event)

    def _some(self, seed: int) -> tuple[random.Random, list[dict[str, Any]]]:
        """A few of the waiting events, in any order."""
        dice = random.Random(seed)
        waiting = self.webhooks.pending
        return dice, dice.sample(waiting, dice.randint(0, len(waiting)))

    def deliver(self, _: str, seed: int) -> None:
        dice, events = self._some(seed)
        for event in events:
            self._bring(event, dice.choice(WORKERS))

    def deliver_twice(self, _: str, seed: int) -> None:
        _dice, events = self._some(seed)
        for event in events:
            for url in WORKERS:
                self._bring(event, url)

    def deliver_at_once(self, _: str, seed: int) -> None:
        _dice, events = self._some(seed)
        deliveries = self.webhooks.deliver_parallel(events[:3], WORKERS)
        failed = {d.event for d in deliveries if not d.ok}
        assert {d.status for d in deliveries} <= {200, 502, 503}
        self.undone += [event for event in events[:3] if event["id"] in failed]

    def deliver_and_kill(self, _: str, seed: int) -> None:
        _dice, events = self._some(seed)
        for event in events[:2]:
            self._bring(event, WORKERS[seed % 2], kill_after=seed)

    def lose_event(self, _: str, seed: int) -> None:
        _dice, events = self._some(seed)
        for event in events:
            self.webhooks.drop(event)
            self.lost = True

    # What customers and operators do

    def _ask(self, method: str, path: str, body: Any = None) -> None:
        client, length = self.clients[WORKERS[0]](), self.fuse_length
        self.fuse_length = None
        with self.fuse.lit(length):
            answer = client.open(path, method=method, json=body, headers=ADMIN)
            assert answer.status_code in ANSWERS, (path, answer.text)
        self.sandbox.faults.clear()

    def _newest(self, customer_id: str, kind: str = "subscription") -> dict[str, Any]:
        ids = self._stripe_ids(customer_id)
        found = [obj for obj in self.sandbox.every(kind) if obj["customer"] in ids]
        if not found:
            raise Nothing
        return found[-1]

    def _page(self, customer_id: str) -> str:
        return str(self._newest(customer_id, "checkout.session")["id"])

    def _stripe_ids(self, customer_id: str) -> set[str]:
        with self.sandbox.world.transaction() as world:
            every = world.tables["customer"].values()
            return {c["id"] for c in every if c["metadata"].get("customer_id") == customer_id}

    def checkout(self, customer_id: str, plan: str) -> None:
        body = {"customerId": customer_id, "plan": plan}
        self._ask("POST", "/api/subscriptions/create-checkout", body)

    def pay(self, customer_id: str, how: str) -> None:
        getattr(self.sandbox, how)(self._page(customer_id))

    def settle(self, customer_id: str, succeed: bool) -> None:
        self.sandbox.settle(self._page(customer_id), succeed)

    def success_page(self, customer_id: str, _: None) -> None:
        self._ask("GET", f"/checkout/success?session_id={self._page(customer_id)}")

    def _change(self, customer_id: str, what: str, body: Any = None) -> None:
        self._ask("POST", f"/api/subscriptions/{self._newest(customer_id)['id']}/{what}", body)

    def upgrade(self, customer_id: str, plan: str) -> None:
        self._change(customer_id, "upgrade", {"plan": plan})

    def cancel(self, customer_id: str, at_period_end: bool) -> None:
        self._change(customer_id, "cancel", {"atPeriodEnd": at_period_end})

    def resume(self, customer_id: str, _: None) -> None:
        self._change(customer_id, "resume")

    def portal(self, customer_id: str, what: str) -> None:
        sub = self._newest(customer_id)
        if what in self.shop.prices:
            self.sandbox.portal_switch(sub["id"], self.shop.prices[what])
        else:
            getattr(self.sandbox, f"portal_{what}")(sub["id"])

    def dashboard(self, customer_id: str, what: str) -> None:
        sub = self._newest(customer_id)
        if what == "second":
            self.sandbox.create_subscription(sub["customer"], self.shop.prices["starter"])
        elif what == "third":
            self.sandbox.create_subscription(sub["customer"], self.shop.prices["professional"], trial_days=9)
        elif what == "odd price":
            self.sandbox.portal_switch(sub["id"], self.odd_price)
        elif what in ("pause", "unpause", "cancel"):
            do = {"pause": "pause", "unpause": "resume", "cancel": "cancel_subscription"}[what]
            getattr(self.sandbox, do)(sub["id"])
        elif what == "delete":
            self.sandbox.delete_customer(sub["customer"])
        elif sub["status"] in (*SERVED, "unpaid", "frozen"):
            self.sandbox.set_status(sub["id"], what)

    def card(self, customer_id: str, card: str) -> None:
        self.sandbox.set_card(self._newest(customer_id)["customer"], card)

    def time(self, _: str, days: int) -> None:
        self.sandbox.advance(days=days)

    def lose_answers(self, _: str, how: tuple[int, bool]) -> None:
        times, after = how
        self.sandbox.faults.fail_next(times, "drop", method="POST", after=after)

    def fail(self, _: str, how: tuple[int, Any]) -> None:
        """Stripe's API is away for the next few calls, with the SDK's retries."""
        times, status = how
        self.sandbox.faults.fail_next(3 * times, status)

    def kill_next(self, _: str, length: int) -> None:
        self.fuse_length = length

    def take(self, customer_id: str, step: tuple[str, Any]) -> None:
        """One step; what Stripe itself would refuse, or has nothing for, just does not happen."""
        name, given_ = step
        with suppress(Refusal, Nothing):
            getattr(self, name)(customer_id, given_)

    def settle_down(self) -> None:
        """Everything that Stripe still has to say comes through; `sync` where something was lost."""
        self.sandbox.faults.clear()
        events = [*self.undone, *self.webhooks.pending]
        random.Random(1).shuffle(events)
        self.undone = []
        for event in events:
            self._bring(event, WORKERS[0])
        assert self.undone == []
        if self.lost:
            self.sync(dry_run=False)

    def sync(self, *, dry_run: bool) -> list[Any]:
        with self.shop.app.app_context():
            set_actor("console:test")
            report = sync_all(dry_run=dry_run)
        assert (report.failed, report.missing) == ({}, {})
        return report.differences

    # The truth, derived from the sandbox alone

    def subscriptions(self, customer_id: str) -> list[dict[str, Any]]:
        ids = self._stripe_ids(customer_id)
        sold = {price: plan for plan, price in self.shop.prices.items() if plan}
        found = []
        for sub in self.sandbox.every("subscription"):
            if sub["customer"] in ids:
                item = sub["items"]["data"][0]
                plan, end = sold.get(item["price"]["id"], "unknown"), item["current_period_end"]
                found.append(sub | {"plan": plan, "end": end, "price": item["price"]["id"]})
        return found

    def outcomes(self, customer_id: str) -> list[tuple[str, str, bool, int | None]]:
        """(plan, status, trial mode, period end) that are right; several where two are of equal worth."""
        subs = self.subscriptions(customer_id)
        live = [s for s in subs if s["status"] in SERVED]
        known = [s for s in live if s["plan"] in PLANS]
        if known:
            worth = [(PLANS[s["plan"]].rank, s["status"] == "active") for s in known]
            best = [s for s, w in zip(known, worth, strict=True) if w == max(worth)]
            return [(s["plan"], s["status"], False, s["end"]) for s in best]
        paid = [s for s in subs if s["status"] not in (*UNPAID, "trialing") and _was_billed(s)]
        if not paid:
            return [(self.trials[customer_id], "trialing", True, None)]
        considered = live or subs
        youngest = max(s["created"] for s in considered)
        return [("trial", s["status"], True, s["end"]) for s in considered if s["created"] == youngest]


def _was_billed(sub: dict[str, Any]) -> bool:
    item = sub["items"]["data"][0]
    return sub["trial_end"] is None or item["current_period_start"] >= sub["trial_end"]


def check(account: Account, customer_id: str, sql: Callable[..., Any]) -> None:
    """Rows, entitlement and license of one customer against the truth."""
    rows = sql(
        "SELECT * FROM subscriptions WHERE customer_id = %(c)s AND stripe_subscription_id IS NOT NULL",
        c=customer_id,
    )
    times = ("ended_at", "cancel_at", "trial_ends_at", "current_period_ends_at")
    ours = {
        row["subscription_id"]: (
            row["plan"], row["status"], row["stripe_price_id"], row["cancel_at_period_end"],
            *(row[name] and row[name].timestamp() for name in times),
        )
        for row in rows
    }  # fmt: skip
    stripes = {
        sub["id"]: (
            sub["plan"], sub["status"], sub["price"], sub["cancel_at_period_end"],
            sub["ended_at"], sub["cancel_at"], sub["trial_end"], sub["end"],
        )
        for sub in account.subscriptions(customer_id)
    }  # fmt: skip
    assert ours == stripes
    claims = claims_of(account.shop.get(f"/api/licenses/{customer_id}")["license"])
    said = claims["subscription"]
    right = [
        outcome
        for outcome in account.outcomes(customer_id)
        if (outcome[0], IN_LICENSE.get(outcome[1], outcome[1])) == (claims["plan"], said["status"])
    ]
    assert right, (claims, account.outcomes(customer_id))
    _plan, status, trial_mode, _end = right[0]
    assert claims["trial"]["isTrialMode"] is trial_mode
    assert claims["features"]["maxDevices"] == PLANS[claims["plan"]].max_devices
    if not trial_mode:
        end = int(datetime.fromisoformat(said["currentPeriodEndsAt"]).timestamp())
        assert end in [outcome[3] for outcome in right]
        grace = claims["iat"] + 7 * DAY
        longest = min(claims["iat"] + 365 * DAY, max(end + 7 * DAY, claims["iat"] + DAY))
        assert claims["exp"] == (grace if status == "past_due" else longest)
    elif status != "trialing":
        assert claims["exp"] == claims["iat"] + 7 * DAY


@pytest.fixture
def open_account(
    stripe_environ: dict[str, str],
    make_app: Callable[[], Flask],
    sandbox: Sandbox,
    sql: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    fuse: Fuse,
) -> Callable[[], Account]:
    """A fresh account and an empty database, as often as asked for."""
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)
    monkeypatch.setattr(stripe.HTTPClient, "MAX_DELAY", 0.001)
    workers = [make_app(), make_app()]

    def open_() -> Account:
        sql("TRUNCATE customers CASCADE")
        sandbox.reset()
        sandbox.webhooks.mode = "hold"
        return Account(Shop(workers[0], sandbox), workers, fuse)

    return open_


def live_through(
    account: Account, script: list[tuple[int, tuple[str, Any]]], sql: Callable[..., Any]
) -> None:
    customers = [account.join(None), account.join("professional")]
    for customer_id in customers:
        account.take(customer_id, ("checkout", "starter"))
        account.take(customer_id, ("pay", "pay"))
    for who, step in script:
        account.take(customers[who], step)
    account.settle_down()
    for customer_id in customers:
        check(account, customer_id, sql)
    # A kill right after a customer was made at Stripe leaves it unlinked until the next attempt, or sync.
    assert {difference.subject for difference in account.sync(dry_run=False)} <= {"stripe_customer_id"}
    assert account.sync(dry_run=True) == []
    assert len(sql("SELECT 1 FROM licenses WHERE superseded_at IS NULL")) == len(customers)


def scripts(*more: Any) -> Any:
    return st.lists(st.tuples(st.integers(0, 1), st.one_of(steps, *more)), min_size=8, max_size=22)


EXAMPLES = int(os.environ.get("CONVERGENCE_EXAMPLES", "16"))
bounded = settings(
    max_examples=max(1, EXAMPLES // 2),
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@bounded
@given(script=scripts())
def test_events_in_any_order_and_number_end_at_stripes_truth(
    open_account: Callable[[], Account], sql: Callable[..., Any], script: Any
) -> None:
    """Nothing lost for good: no sync is needed."""
    live_through(open_account(), script, sql)


@bounded
@given(script=scripts(losses))
def test_sync_finds_what_lost_events_would_have_told(
    open_account: Callable[[], Account], sql: Callable[..., Any], script: Any
) -> None:
    live_through(open_account(), script, sql)
