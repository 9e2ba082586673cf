"""`flask stripe sync` and `flask stripe setup`: what they find, mend, print and leave alone."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

import app.services.stripe_setup as setup
from app.errors import StripeFailed
from app.stripe_gateway import WEBHOOK_EVENTS, StripeGateway
from tests.shop import Shop
from tests.stripe_sandbox import Sandbox, billing, shapes

Console = Callable[..., Any]
Sql = Callable[..., list[dict[str, Any]]]


def deaf(shop: Shop) -> None:
    """Every waiting event is lost."""
    shop.sandbox.webhooks.clear()


def found(result: Any) -> list[dict[str, Any]]:
    return list(json.loads(result.stdout))


# Sync


def test_nothing_to_do(shop: Shop, console: Console) -> None:
    shop.subscribe()
    shop.customer()
    for arguments in ([], ["--dry-run"]):
        result = console("stripe", "sync", *arguments)
        assert (result.exit_code, "0 difference(s)" in result.output) == (0, True)


def test_paying_but_not_licensed(shop: Shop, console: Console, sql: Sql) -> None:
    customer_id = shop.customer()
    subscription_id = shop.sandbox.pay(shop.checkout(customer_id, "professional")["sessionId"])[
        "subscription"
    ]
    deaf(shop)
    dry = console("stripe", "sync", "--dry-run")
    assert dry.exit_code == 1
    assert f"{customer_id}  {subscription_id}: missing → professional active" in dry.output
    assert shop.plan_and_status(customer_id) == ("trial", "trialing")
    mending = console("stripe", "sync")
    assert (mending.exit_code, "1 difference(s) mended." in mending.output) == (0, True)
    assert customer_id in mending.output
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert console("stripe", "sync", "--dry-run").exit_code == 0
    (line,) = sql("SELECT actor FROM audit_log WHERE action = 'subscription.sync'")
    assert line["actor"].startswith("console:")


def test_licensed_but_not_paying(shop: Shop, console: Console) -> None:
    customer_id, subscription_id = shop.subscribe("professional")
    shop.sandbox.cancel_subscription(subscription_id)
    deaf(shop)
    dry = console("stripe", "sync", "--dry-run", "--json")
    assert dry.exit_code == 1
    assert {(d["customerId"], d["subject"]) for d in found(dry)} == {
        (customer_id, f"{subscription_id} status"),
        (customer_id, f"{subscription_id} ended_at"),
    }
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert console("stripe", "sync").exit_code == 0
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


@pytest.mark.parametrize("only", [True, False])
def test_a_customer_that_we_forgot_to_link(shop: Shop, console: Console, sql: Sql, only: bool) -> None:
    customer_id = shop.customer()
    shop.sandbox.pay(shop.checkout(customer_id)["sessionId"])
    stripe_id = shop.stripe_id(customer_id)
    deaf(shop)
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


@pytest.mark.parametrize("only", [True, False])
def test_a_live_row_that_stripe_lacks(shop: Shop, console: Console, sql: Sql, only: bool) -> None:
    """As after a restore of the wrong account, or an edit by hand."""
    customer_id, subscription_id = shop.subscribe("professional")
    with shop.sandbox.world.transaction() as world:
        del world.tables["subscription"][subscription_id]
    chosen = ["--customer", customer_id] if only else []
    dry = console("stripe", "sync", "--dry-run", *chosen)
    assert (dry.exit_code, subscription_id in dry.output) == (1, True)
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert console("stripe", "sync", *chosen).exit_code == 0
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")
    assert console("stripe", "sync", "--dry-run").exit_code == 0


def test_a_row_that_ended_here_but_lives_at_stripe(shop: Shop, console: Console, sql: Sql) -> None:
    customer_id, _ = shop.subscribe("professional")
    sql("UPDATE subscriptions SET status = 'canceled', ended_at = now() WHERE status = 'active'")
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")
    assert console("stripe", "sync", "--dry-run").exit_code == 1
    assert console("stripe", "sync").exit_code == 0
    assert shop.plan_and_status(customer_id) == ("professional", "active")


def test_one_that_cannot_be_mended_does_not_hold_up_the_others(
    shop: Shop, console: Console, sql: Sql
) -> None:
    paying = [shop.subscribe("professional")[0] for _ in range(3)]
    sql("UPDATE subscriptions SET status = 'canceled'")
    failing = shop.stripe_id(paying[1])
    list_subscriptions = StripeGateway.list_subscriptions

    def but_one(gateway: StripeGateway, stripe_customer_id: str | None = None) -> Any:
        if stripe_customer_id == failing:
            raise StripeFailed("Stripe failed or did not answer. Try again.")
        return list_subscriptions(gateway, stripe_customer_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StripeGateway, "list_subscriptions", but_one)
        done = console("stripe", "sync", "--json")
    assert done.exit_code == 1
    assert {difference["customerId"] for difference in json.loads(done.stdout)} == {paying[0], paying[2]}
    assert f"{paying[1]} could not be mended: Stripe failed" in done.stderr
    assert [shop.plan_and_status(c)[0] for c in paying] == ["professional", "trial", "professional"]
    assert console("stripe", "sync").exit_code == 0
    assert shop.plan_and_status(paying[1])[0] == "professional"


def test_every_field_that_counts_is_compared(shop: Shop, console: Console, sql: Sql) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    right = sql("SELECT * FROM subscriptions WHERE subscription_id = %(s)s", s=subscription_id)
    for change in (
        "plan = 'enterprise'", "stripe_price_id = 'price_x'", "trial_ends_at = now()", "cancel_at = now()",
        "current_period_ends_at = now()", "cancel_at_period_end = TRUE", "ended_at = now()",
    ):  # fmt: skip
        sql(f"UPDATE subscriptions SET {change} WHERE subscription_id = %(s)s", s=subscription_id)
        (difference,) = found(console("stripe", "sync", "--json"))
        assert (difference["customerId"], difference["subject"]) == (
            customer_id,
            f"{subscription_id} {change.partition(' ')[0]}",
        )
    moved = {"updated_at", "fetched_at"}
    (now,) = sql("SELECT * FROM subscriptions WHERE subscription_id = %(s)s", s=subscription_id)
    assert {k: v for k, v in now.items() if k not in moved} == {
        k: v for k, v in right[0].items() if k not in moved
    }


def test_one_customer_only(shop: Shop, console: Console) -> None:
    (first, one), (second, two) = shop.subscribe(), shop.subscribe()
    shop.sandbox.cancel_subscription(one)
    shop.sandbox.cancel_subscription(two)
    deaf(shop)
    assert console("stripe", "sync", "--customer", first).exit_code == 0
    assert shop.plan_and_status(first) == ("trial", "canceled")
    assert shop.plan_and_status(second) == ("starter", "active")
    result = console("stripe", "sync", "--customer", "cust_unknown000001")
    assert (result.exit_code, "no customer" in result.output) == (1, True)


def test_two_of_ours_claiming_one_of_stripes(shop: Shop, console: Console, sql: Sql) -> None:
    """Metadata edited by hand: who is linked already keeps the link, and sync goes on."""
    owner, _ = shop.subscribe()
    other, subscription_id = shop.subscribe()
    with shop.sandbox.world.transaction() as world:
        world.get("customer", shop.stripe_id(owner))["metadata"]["customer_id"] = shop.customer()
    shop.sandbox.cancel_subscription(subscription_id)
    deaf(shop)
    assert console("stripe", "sync").exit_code == 0
    assert shop.plan_and_status(owner) == ("starter", "active")
    assert shop.plan_and_status(other) == ("trial", "canceled")


def test_strangers_at_stripe_are_left_alone(shop: Shop, console: Console, sql: Sql) -> None:
    stranger = shop.sandbox.world
    with stranger.transaction() as world:
        customer = world.add(shapes.customer(world.now(), {"email": "other@example.com"}))["id"]
    shop.sandbox.create_subscription(customer, shop.prices["starter"])
    result = console("stripe", "sync", "--dry-run")
    assert (result.exit_code, sql("SELECT 1 FROM subscriptions")) == (0, [])


def test_stripe_down_is_one_plain_line(shop: Shop, console: Console) -> None:
    shop.subscribe()
    shop.sandbox.faults.down = True
    result = console("stripe", "sync")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Stripe failed")
    assert "Traceback" not in result.output


def test_sync_goes_through_the_lists_by_the_hundred(shop: Shop, console: Console, sql: Sql) -> None:
    """As many calls as there are pages, and one more customer asked for each one that differs."""
    with shop.sandbox.world.transaction() as world:
        ids = [
            world.add(shapes.customer(world.now(), {"email": f"c{n}@example.com"}))["id"] for n in range(230)
        ]
        price = billing.recurring_price(world, shop.prices["starter"], "price")
        for stripe_id in ids:
            world.cards[stripe_id] = "ok"
            billing.create(world, stripe_id, [(price, 1)])
    sql(
        """
        INSERT INTO customers (customer_id, email, stripe_customer_id)
        SELECT 'cust_' || LPAD(n::TEXT, 12, '0'), n || '@example.com', (%(ids)s::TEXT[])[n]
          FROM GENERATE_SERIES(1, 230) AS n
        """,
        ids=ids,
    )
    deaf(shop)
    assert len(found(console("stripe", "sync", "--json"))) == 230
    shop.sandbox.requests.clear()
    assert console("stripe", "sync", "--dry-run").exit_code == 0
    lists = [("GET", "/v1/customers")] * 3 + [("GET", "/v1/subscriptions")] * 3
    assert [(r.method, r.path) for r in shop.sandbox.requests] == lists
    assert sql("SELECT COUNT(*) AS n FROM subscriptions WHERE plan = 'starter' AND status = 'active'") == [
        {"n": 230}
    ]


# Setup


def test_setup_makes_everything_once(
    stripe_environ: dict[str, str], app: Flask, sandbox: Sandbox, console: Console
) -> None:
    hook = "https://billing.example.com/webhooks/stripe"
    first = console("stripe", "setup", "--webhook-url", hook)
    assert first.exit_code == 0
    lines = dict(line.split("=", 1) for line in first.stdout.splitlines())
    assert lines.keys() == {"STRIPE_PRICE_STARTER", "STRIPE_PRICE_PROFESSIONAL", "STRIPE_WEBHOOK_SECRET"}
    assert lines["STRIPE_WEBHOOK_SECRET"].startswith("whsec_")
    assert "zemfyre_enterprise" in first.stderr
    prices = {price["lookup_key"]: price for price in sandbox.every("price")}
    assert {key: price["unit_amount"] for key, price in prices.items()} == {
        "zemfyre_starter": 2900,
        "zemfyre_professional": 9900,
    }
    assert prices["zemfyre_starter"]["id"] == lines["STRIPE_PRICE_STARTER"]
    (endpoint,) = sandbox.every("webhook_endpoint")
    assert (endpoint["url"], set(endpoint["enabled_events"])) == (hook, set(WEBHOOK_EVENTS))
    second = console("stripe", "setup", "--webhook-url", hook)
    assert second.exit_code == 0
    assert dict(line.split("=", 1) for line in second.stdout.splitlines()) == {
        name: value for name, value in lines.items() if "PRICE" in name
    }
    assert "exists" in second.stderr
    assert [len(sandbox.every(kind)) for kind in ("product", "price", "webhook_endpoint")] == [2, 2, 1]


def test_an_archived_price_is_replaced(shop: Shop, console: Console) -> None:
    with shop.sandbox.world.transaction() as world:
        world.get("price", shop.prices["starter"])["active"] = False
    result = json.loads(console("stripe", "setup", "--json").stdout)
    assert result["STRIPE_PRICE_STARTER"] != shop.prices["starter"]
    assert result["STRIPE_PRICE_PROFESSIONAL"] == shop.prices["professional"]
    assert shop.sandbox.get("price", result["STRIPE_PRICE_STARTER"])["active"] is True
    assert json.loads(console("stripe", "setup", "--json").stdout) == result


def test_a_configured_price_is_kept_while_it_is_sold(
    shop: Shop, make_app: Callable[..., Flask], sandbox: Sandbox
) -> None:
    own = shop.make_price(4900)
    runner = make_app(
        STRIPE_PRICE_STARTER=own, STRIPE_PRICE_PROFESSIONAL="price_of_another_account"
    ).test_cli_runner()
    result = json.loads(runner.invoke(args=["stripe", "setup", "--json"]).stdout)
    assert result == {"STRIPE_PRICE_STARTER": own, "STRIPE_PRICE_PROFESSIONAL": shop.prices["professional"]}
    assert len(sandbox.every("price")) == 3


def test_setup_goes_on_where_it_was_stopped(
    stripe_environ: dict[str, str], app: Flask, sandbox: Sandbox, console: Console
) -> None:
    sandbox.faults.fail_next(1, 429, path="/prices", method="POST")
    assert console("stripe", "setup").exit_code == 1
    assert console("stripe", "setup").exit_code == 0
    assert [len(sandbox.every(kind)) for kind in ("product", "price")] == [2, 2]


def test_an_endpoint_made_again_after_it_was_deleted(
    shop: Shop, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = "https://billing.example.com/webhooks/stripe"
    made = json.loads(console("stripe", "setup", "--json", "--webhook-url", hook).stdout)
    with shop.sandbox.world.transaction() as world:
        for endpoint in world.every("webhook_endpoint"):
            endpoint["deleted"] = True
    later = setup.now()
    monkeypatch.setattr(setup, "now", lambda: later.replace(year=later.year + 1))
    again = json.loads(console("stripe", "setup", "--json", "--webhook-url", hook).stdout)
    assert again["STRIPE_WEBHOOK_SECRET"] != made["STRIPE_WEBHOOK_SECRET"]
    assert len(shop.sandbox.every("webhook_endpoint")) == 1


def test_an_endpoint_that_lacks_events_is_told(shop: Shop, console: Console) -> None:
    hook = "https://billing.example.com/webhooks/stripe"
    assert console("stripe", "setup", "--webhook-url", hook).exit_code == 0
    with shop.sandbox.world.transaction() as world:
        world.every("webhook_endpoint")[0]["enabled_events"].remove("customer.subscription.paused")
    result = console("stripe", "setup", "--webhook-url", hook)
    assert "customer.subscription.paused" in result.stderr
    assert len(shop.sandbox.every("webhook_endpoint")) == 1


def test_a_webhook_made_by_setup_is_heard(
    shop: Shop, make_app: Callable[..., Flask], console: Console
) -> None:
    hook = "http://other.test/webhooks/stripe"
    secret = json.loads(console("stripe", "setup", "--json", "--webhook-url", hook).stdout)[
        "STRIPE_WEBHOOK_SECRET"
    ]
    configured = make_app(STRIPE_WEBHOOK_SECRET=secret).test_client()
    customer_id = shop.customer()
    shop.sandbox.pay(shop.checkout(customer_id)["sessionId"])
    (event,) = [e for e in shop.sandbox.webhooks.pending if e["type"] == "customer.subscription.created"]
    body = shop.sandbox.webhooks.payload(event)
    headers = {"Stripe-Signature": shop.sandbox.webhooks.sign(body, shop.sandbox.webhooks.secrets_for(hook))}
    answer = configured.post("/webhooks/stripe", data=body, headers=headers)
    assert (answer.status_code, answer.json["outcome"]) == (200, "done")
    assert shop.plan_and_status(customer_id) == ("starter", "active")
