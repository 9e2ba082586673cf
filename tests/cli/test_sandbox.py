"""`flask sandbox …`, against a sandbox over HTTP."""

import json

from tests.factories import make_customer


def test_clock_cards_and_events(shop, console):
    customer_id, subscription_id = shop.subscribe("starter", email="ada@example.com")
    before = shop.sandbox.now()
    assert console("sandbox", "card", "decline", "--customer", "ada@example.com").exit_code == 0
    done = console("sandbox", "advance", "--days", "32", "--json")
    assert json.loads(done.stdout)["now"] >= before + 32 * 86400
    assert console("sandbox", "advance", "--hours", "2").exit_code == 0

    done = console("sandbox", "deliver", "--customer", customer_id, "--order", "reverse", "--json")
    assert done.exit_code == 0
    assert {one["status"] for one in json.loads(done.stdout)} == {200}
    assert shop.subscription(subscription_id)["status"] == "past_due"
    assert console("sandbox", "deliver", customer_id).stdout == "0 event(s) delivered, 0 failed.\n"
    assert console("sandbox", "advance").exit_code == 2
    refused = console("sandbox", "card", "ok", make_customer(shop.client)["customerId"])
    assert (refused.exit_code, "never checked out" in refused.stderr) == (1, True)


def test_never_against_stripe_itself(make_app, client):
    made = make_customer(client)
    for base in ("", "https://api.stripe.com"):
        runner = make_app(STRIPE_API_BASE=base).test_cli_runner()
        for args in (["advance", "--days", "1"], ["card", "ok", made["customerId"]], ["deliver"]):
            refused = runner.invoke(args=["sandbox", *args])
            assert (refused.exit_code, refused.stdout) == (1, "")
            assert "never for Stripe itself" in refused.stderr


def test_a_sandbox_that_is_away_is_one_line(make_app):
    runner = make_app(STRIPE_API_BASE="http://127.0.0.1:1").test_cli_runner()
    refused = runner.invoke(args=["sandbox", "advance", "--days", "1"])
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)
