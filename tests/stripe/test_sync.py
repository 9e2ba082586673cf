"""`flask stripe sync` and `flask stripe setup`: what they find, mend, print and leave alone."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask

import app.services.stripe_setup as setup
from app.stripe_objects import WEBHOOK_EVENTS
from tests.conftest import ADMIN
from tests.shop import Shop, assert_refused
from tests.stripe_sandbox import Sandbox, billing, shapes

ENDPOINT = "https://billing.example.com/webhooks/stripe"
Console = Callable[..., Any]
Sql = Callable[..., list[dict[str, Any]]]


def lose_events(shop: Shop) -> None:
    shop.sandbox.webhooks.clear()


def report(result: Any) -> dict[str, Any]:
    return dict(json.loads(result.stdout))


def env(result: Any) -> dict[str, str]:
    return dict(json.loads(result.stdout)["env"])


def differences(result: Any) -> list[dict[str, Any]]:
    return list(report(result)["differences"])


# Sync


def test_paying_but_not_licensed(shop: Shop, console: Console, sql: Sql) -> None:
    customer_id = shop.customer()
    session = shop.checkout(customer_id, "professional")["sessionId"]
    subscription_id = shop.sandbox.pay(session)["subscription"]
    lose_events(shop)
    dry = console("stripe", "sync", "--dry-run")
    assert dry.exit_code == 1
    assert f"{customer_id}  {subscription_id}: missing → professional active" in dry.output
    assert shop.plan_and_status(customer_id) == ("trial", "trialing")
    mending = console("stripe", "sync")
    assert (mending.exit_code, "1 difference(s) mended." in mending.output) == (0, True)
    assert customer_id in mending.output
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    for more in ([], ["--dry-run"]):
        result = console("stripe", "sync", *more)
        assert (result.exit_code, "0 difference(s)" in result.output) == (0, True)
    (line,) = sql("SELECT actor FROM audit_log WHERE subject = %(id)s", id=subscription_id)
    assert line["actor"].startswith("console:")


def test_licensed_but_not_paying_and_one_customer_only(shop: Shop, console: Console) -> None:
    (first, one), (second, two) = shop.subscribe(), shop.subscribe()
    shop.sandbox.cancel_subscription(one)
    shop.sandbox.cancel_subscription(two)
    lose_events(shop)
    dry = console("stripe", "sync", "--customer", first, "--dry-run", "--json")
    assert (dry.exit_code, {(d["customerId"], d["subject"]) for d in differences(dry)}) == (
        1, {(first, f"{one} status"), (first, f"{one} ended_at")},
    )  # fmt: skip
    for chosen, statuses in (
        (["--customer", first, "--dry-run"], ["active", "active"]),
        (["--customer", first], ["canceled", "active"]),
        ([], ["canceled", "canceled"]),
    ):
        assert console("stripe", "sync", *chosen).exit_code == int("--dry-run" in chosen)
        assert [shop.plan_and_status(customer_id)[1] for customer_id in (first, second)] == statuses
    assert shop.plan_and_status(first) == ("trial", "canceled")
    result = console("stripe", "sync", "--customer", "cust_unknown000001")
    assert (result.exit_code, "no customer" in result.output) == (1, True)


@pytest.mark.parametrize("only", [True, False])
def test_a_customer_that_we_forgot_to_link(shop: Shop, console: Console, sql: Sql, only: bool) -> None:
    customer_id = shop.customer()
    shop.sandbox.pay(shop.checkout(customer_id)["sessionId"])
    stripe_id = shop.stripe_id(customer_id)
    lose_events(shop)
    sql("UPDATE customers SET stripe_customer_id = NULL")
    chosen = ["--customer", customer_id] if only else []
    dry = console("stripe", "sync", "--dry-run", *chosen)
    assert dry.exit_code == 1
    assert f"{customer_id}  stripe_customer_id: none → {stripe_id}" in dry.output
    assert "missing → starter active" in dry.output
    assert shop.get(f"/api/customers/{customer_id}")["stripeCustomerId"] is None
    assert console("stripe", "sync", *chosen).exit_code == 0
    assert shop.stripe_id(customer_id) == stripe_id
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_every_field_that_counts_is_compared(shop: Shop, console: Console, sql: Sql) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    right = sql("SELECT * FROM subscriptions WHERE subscription_id = %(s)s", s=subscription_id)
    for change in (
        "plan = 'enterprise'", "stripe_price_id = 'price_x'", "trial_ends_at = now()", "cancel_at = now()",
        "current_period_ends_at = now()", "cancel_at_period_end = TRUE", "ended_at = now()",
        "status = 'canceled'",
    ):  # fmt: skip
        sql(f"UPDATE subscriptions SET {change} WHERE subscription_id = %(s)s", s=subscription_id)
        (found,) = differences(console("stripe", "sync", "--json"))
        subject = f"{subscription_id} {change.partition(' ')[0]}"
        assert (found["customerId"], found["subject"]) == (customer_id, subject)
    moved = {"updated_at", "fetched_at"}
    (now,) = sql("SELECT * FROM subscriptions WHERE subscription_id = %(s)s", s=subscription_id)
    assert {k: v for k, v in now.items() if k not in moved} == {
        k: v for k, v in right[0].items() if k not in moved
    }
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_two_of_ours_claiming_one_of_stripes(shop: Shop, console: Console, sql: Sql) -> None:
    """Metadata edited by hand: who is linked already keeps the link, and sync goes on."""
    owner, _ = shop.subscribe()
    other, subscription_id = shop.subscribe()
    with shop.sandbox.world.transaction() as world:
        world.get("customer", shop.stripe_id(owner))["metadata"]["customer_id"] = shop.customer()
    shop.sandbox.cancel_subscription(subscription_id)
    lose_events(shop)
    assert console("stripe", "sync").exit_code == 0
    assert shop.plan_and_status(owner) == ("starter", "active")
    assert shop.plan_and_status(other) == ("trial", "canceled")


@pytest.mark.parametrize("only", [True, False])
def test_what_stripe_does_not_find_is_named_and_changes_nothing(
    shop: Shop, console: Console, only: bool
) -> None:
    customer_id, subscription_id = shop.subscribe("professional")
    with shop.sandbox.world.transaction() as world:
        del world.tables["subscription"][subscription_id]
    for _ in range(2):
        result = console("stripe", "sync", *(["--customer", customer_id] if only else []))
        said = f"{subscription_id} of {customer_id} is not found at Stripe; nothing was changed"
        assert (result.exit_code, said in result.output) == (1, True)
    assert shop.plan_and_status(customer_id) == ("professional", "active")


def test_a_customer_deleted_at_stripe_ends_what_it_had(shop: Shop, console: Console) -> None:
    customer_id, _ = shop.subscribe("professional")
    shop.sandbox.delete_customer(shop.stripe_id(customer_id))
    lose_events(shop)
    assert console("stripe", "sync").exit_code == 0
    assert shop.plan_and_status(customer_id)[0] == "trial"
    assert shop.get(f"/api/customers/{customer_id}")["stripeCustomerId"] is None
    assert console("stripe", "sync", "--dry-run").exit_code == 0


@pytest.mark.parametrize("key", ["sk_test_other", "sk_live_own"])
def test_a_key_of_another_account_or_mode_changes_nothing(
    shop: Shop, make_app: Callable[..., Flask], key: str
) -> None:
    customer_id, subscription_id = shop.subscribe("professional")
    account = "acct_other" if key == "sk_test_other" else shop.sandbox.account
    shop.sandbox.add_key(key, account=account, livemode="live" in key)
    other = make_app(STRIPE_SECRET_KEY=key)
    for command in ("sync", "setup"):
        result = other.test_cli_runner().invoke(args=["stripe", command])
        assert (result.exit_code, "STRIPE_SECRET_KEY: the key is of account" in result.output) == (1, True)
    erased = other.test_cli_runner().invoke(args=["customer", "erase", "--id", customer_id, "--yes"])
    assert (erased.exit_code, "STRIPE_SECRET_KEY" in erased.output) == (1, True)
    for path, body in (
        (f"/api/subscriptions/{subscription_id}/upgrade", {"plan": "starter"}),
        (f"/api/subscriptions/{subscription_id}/cancel", {}),
        ("/api/subscriptions/create-checkout", {"customerId": customer_id, "plan": "starter"}),
    ):
        changed = other.test_client().post(path, json=body, headers=ADMIN)
        assert_refused(changed, 503, "STRIPE_SECRET_KEY")
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert shop.charges() == [9900]
    assert shop.app.test_cli_runner().invoke(args=["stripe", "sync", "--dry-run"]).exit_code == 0


def test_payers_without_a_license_are_named_until_ignored(shop: Shop, console: Console) -> None:
    linked = shop.customer()
    shop.checkout(linked)
    odd = shop.sandbox.create_price(5000)["id"]
    support = shop.sandbox.create_subscription(shop.stripe_id(linked), odd)["id"]
    payer = shop.sandbox.pay_link(shop.prices["starter"], "payer@example.com")["subscription"]
    deliveries = shop.deliver()
    assert {delivery.status for delivery in deliveries} == {200}
    assert f"{payer}: cus_" in console("webhook", "list").output
    for _ in range(2):
        payers = report(console("stripe", "sync", "--json"))["payers"]
        assert {found["id"] for found in payers} == {support, payer}
    for wrong in (["--ignore", ""], ["--ignore", "x" * 300], ["--dry-run", "--ignore", odd]):
        assert console("stripe", "sync", *wrong).exit_code == 2
    assert console("stripe", "sync", "--ignore", odd).exit_code == 1
    assert console("stripe", "sync", "--ignore", payer).exit_code == 0
    assert report(console("stripe", "sync", "--json"))["payers"] == []
    assert shop.plan_and_status(linked) == ("trial", "trialing")


@pytest.mark.parametrize("how", ["lookup key moves", "setting changes", "archived"])
def test_a_plan_is_kept_when_its_price_changes(shop: Shop, make_app: Any, how: str) -> None:
    own = shop.sandbox.create_price(4900, metadata={})["id"]
    if how != "setting changes":
        with shop.sandbox.world.transaction() as world:
            world.get("price", own)["lookup_key"] = "zemfyre_enterprise"
        customer_id, _ = shop.subscribe("enterprise")
        with shop.sandbox.world.transaction() as world:
            world.get("price", own).update(lookup_key=None, active=how != "archived")
    else:
        pinned = Shop(make_app(STRIPE_PRICE_ENTERPRISE=own), shop.sandbox)
        customer_id, _ = pinned.subscribe("enterprise")
    shop.sandbox.advance(days=32)
    shop.sandbox.advance(hours=1)
    shop.deliver()
    assert shop.app.test_cli_runner().invoke(args=["stripe", "sync"]).exit_code == 0
    assert shop.plan_and_status(customer_id) == ("enterprise", "active")


def test_an_invoice_that_was_sent_and_not_paid_is_no_payment(shop: Shop, console: Console, sql: Sql) -> None:
    customer_id = shop.customer()
    shop.checkout(customer_id)
    sent = {"collection_method": "send_invoice", "days_until_due": 30}
    shop.sandbox.create_subscription(shop.stripe_id(customer_id), shop.prices["starter"], **sent)
    shop.sandbox.advance(hours=1)
    assert console("stripe", "sync").exit_code == 0
    (row,) = sql("SELECT paid, details FROM subscriptions WHERE status = 'active'")
    assert (row["paid"], row["details"]["unpaidInvoice"]["amountDue"]) == (False, 2900)
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_a_subscription_under_a_test_clock_is_found_by_its_id(shop: Shop, console: Console, sql: Sql) -> None:
    customer_id, subscription_id = shop.subscribe()
    with shop.sandbox.world.transaction() as world:
        for kind, id in (("customer", shop.stripe_id(customer_id)), ("subscription", subscription_id)):
            world.get(kind, id)["test_clock"] = "clock_1"
    assert console("stripe", "sync").exit_code == 0
    sql("UPDATE subscriptions SET status = 'past_due' WHERE paid")
    assert console("stripe", "sync").exit_code == 0
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def many(shop: Shop, sql: Sql, count: int) -> None:
    """Customers who pay at Stripe, of which the database knows nothing yet."""
    with shop.sandbox.world.transaction() as world:
        price = billing.recurring_price(world, shop.prices["starter"], "price")
        ids = [
            world.add(shapes.customer(world.now(), {"email": f"c{n}@x.example"}))["id"] for n in range(count)
        ]
        for stripe_id in ids:
            world.cards[stripe_id] = "ok"
            billing.create(world, stripe_id, [(price, 1)])
    sql(
        """
        INSERT INTO customers (customer_id, email, stripe_customer_id)
        SELECT 'cust_' || LPAD(n::TEXT, 12, '0'), n || '@x.example', (%(ids)s::TEXT[])[n]
          FROM GENERATE_SERIES(1, %(count)s) AS n
        """,
        ids=ids,
        count=count,
    )
    lose_events(shop)


def test_sync_reads_lists_by_the_hundred_and_mends_customers_of_a_page_together(
    shop: Shop, console: Console, sql: Sql
) -> None:
    many(shop, sql, 230)
    mended = report(console("stripe", "sync", "--json"))
    assert (len(mended["differences"]), mended["failed"]) == (230, [])
    assert len(shop.sandbox.requests) < 30
    licensed = "SELECT COUNT(*) AS n FROM licenses WHERE plan = 'starter' AND superseded_at IS NULL"
    assert sql(licensed) == [{"n": 230}]
    assert console("stripe", "sync", "--dry-run").exit_code == 0


def test_one_that_cannot_be_mended_does_not_keep_the_others_from_it(
    shop: Shop, console: Console, sql: Sql, app: Flask
) -> None:
    many(shop, sql, 5)
    locked = "cust_000000000003"
    with app.app_context(), app.extensions["billing.db"].transaction() as cur:
        cur.execute("SELECT 1 FROM customers WHERE customer_id = %(id)s FOR UPDATE", {"id": locked})
        result = run_in_thread(console, "stripe", "sync", "--json")
    assert result.exit_code == 1
    assert [failed["id"] for failed in report(result)["failed"]] == [locked]
    assert sql("SELECT COUNT(*) AS n FROM subscriptions") == [{"n": 4}]
    assert console("stripe", "sync").exit_code == 0
    assert sql("SELECT COUNT(*) AS n FROM subscriptions") == [{"n": 5}]


def run_in_thread(console: Console, *args: str) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(console, *args).result()


def test_stripe_down_is_one_plain_line(shop: Shop, console: Console) -> None:
    shop.sandbox.faults.down = True
    result = console("stripe", "sync")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: Stripe did not answer")
    assert result.stderr.count("\n") == 1


# Setup


def test_setup_makes_everything_once(
    stripe_environ: dict[str, str], app: Flask, sandbox: Sandbox, console: Console
) -> None:
    sandbox.faults.fail_next(1, 429, path="/prices", method="POST")
    assert console("stripe", "setup").exit_code == 1  # it goes on where it was stopped
    first = console("stripe", "setup", "--webhook-url", ENDPOINT)
    lines = dict(line.split("=", 1) for line in first.stdout.splitlines())
    names = ["STARTER", "STARTER_YEAR", "PROFESSIONAL", "PROFESSIONAL_YEAR"]
    assert list(lines) == [*(f"STRIPE_PRICE_{name}" for name in names), "STRIPE_WEBHOOK_SECRET"]
    assert lines["STRIPE_WEBHOOK_SECRET"].startswith("whsec_")
    assert "zemfyre_enterprise" in first.stderr
    prices = {price["lookup_key"]: price for price in sandbox.every("price")}
    assert {key: (p["unit_amount"], p["recurring"]["interval"]) for key, p in prices.items()} == {
        "zemfyre_starter": (2900, "month"),
        "zemfyre_starter_year": (29000, "year"),
        "zemfyre_professional": (9900, "month"),
        "zemfyre_professional_year": (99000, "year"),
    }
    (endpoint,) = sandbox.every("webhook_endpoint")
    assert (endpoint["url"], set(endpoint["enabled_events"])) == (ENDPOINT, set(WEBHOOK_EVENTS))
    second = console("stripe", "setup", "--webhook-url", ENDPOINT)
    assert (second.exit_code, "exists" in second.stderr) == (0, True)
    again = dict(line.split("=", 1) for line in second.stdout.splitlines())
    assert again == {name: value for name, value in lines.items() if "PRICE" in name}
    assert [len(sandbox.every(kind)) for kind in ("product", "price", "webhook_endpoint")] == [2, 4, 1]


def test_setup_sets_the_tax_behavior_on_prices_made_before_too(shop: Shop, make_app: Any) -> None:
    assert {price["tax_behavior"] for price in shop.sandbox.every("price")} == {"unspecified"}
    for _ in range(2):
        assert make_app(STRIPE_TAX="on").test_cli_runner().invoke(args=["stripe", "setup"]).exit_code == 0
    assert {price["tax_behavior"] for price in shop.sandbox.every("price")} == {"exclusive"}


def test_an_archived_price_is_replaced(shop: Shop, console: Console) -> None:
    with shop.sandbox.world.transaction() as world:
        world.get("price", shop.prices["starter"])["active"] = False
    result = env(console("stripe", "setup", "--json"))
    assert result["STRIPE_PRICE_STARTER"] != shop.prices["starter"]
    assert result["STRIPE_PRICE_PROFESSIONAL"] == shop.prices["professional"]
    assert shop.sandbox.get("price", result["STRIPE_PRICE_STARTER"])["active"] is True
    assert env(console("stripe", "setup", "--json")) == result


def test_a_configured_price_is_kept_while_it_is_sold(
    shop: Shop, make_app: Callable[..., Flask], sandbox: Sandbox
) -> None:
    own = shop.make_price(4900)
    runner = make_app(
        STRIPE_PRICE_STARTER=own, STRIPE_PRICE_PROFESSIONAL="price_of_another_account"
    ).test_cli_runner()
    result = env(runner.invoke(args=["stripe", "setup", "--json"]))
    assert result["STRIPE_PRICE_STARTER"] == own
    assert result["STRIPE_PRICE_PROFESSIONAL"] == shop.prices["professional"]
    assert len(sandbox.every("price")) == 5


def test_an_endpoint_that_lacks_events_is_told_and_one_that_was_deleted_made_again(
    shop: Shop, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = env(console("stripe", "setup", "--json", "--webhook-url", ENDPOINT))
    with shop.sandbox.world.transaction() as world:
        world.every("webhook_endpoint")[0]["enabled_events"].remove("customer.subscription.paused")
    result = console("stripe", "setup", "--webhook-url", ENDPOINT)
    assert "customer.subscription.paused" in result.stderr
    assert len(shop.sandbox.every("webhook_endpoint")) == 1
    with shop.sandbox.world.transaction() as world:
        for endpoint in world.every("webhook_endpoint"):
            endpoint["deleted"] = True
    later = setup.now()
    monkeypatch.setattr(setup, "now", lambda: later.replace(year=later.year + 1))
    again = env(console("stripe", "setup", "--json", "--webhook-url", ENDPOINT))
    assert again["STRIPE_WEBHOOK_SECRET"] != made["STRIPE_WEBHOOK_SECRET"]
    assert len(shop.sandbox.every("webhook_endpoint")) == 1


def test_a_webhook_made_by_setup_is_heard(
    shop: Shop, make_app: Callable[..., Flask], console: Console
) -> None:
    hook = "http://other.test/webhooks/stripe"
    secret = env(console("stripe", "setup", "--json", "--webhook-url", hook))["STRIPE_WEBHOOK_SECRET"]
    configured = make_app(STRIPE_WEBHOOK_SECRET=secret).test_client()
    customer_id = shop.customer()
    shop.sandbox.pay(shop.checkout(customer_id)["sessionId"])
    (event,) = [e for e in shop.sandbox.webhooks.pending if e["type"] == "customer.subscription.created"]
    body = shop.sandbox.webhooks.payload(event)
    headers = {"Stripe-Signature": shop.sandbox.webhooks.sign(body, shop.sandbox.webhooks.secrets_for(hook))}
    answer = configured.post("/webhooks/stripe", data=body, headers=headers)
    assert (answer.status_code, answer.json["outcome"]) == (200, "done")
    assert shop.plan_and_status(customer_id) == ("starter", "active")
