"""Personal data: everything that is held is handed out, and goes when it is asked to go."""

import hashlib
import json
import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient

from app.errors import Unavailable
from app.queries import audit as audit_rows
from tests.api.conftest import at_once
from tests.conftest import ADMIN, WEBHOOK_SECRET
from tests.factories import bearer, make_customer, report_body
from tests.shop import Shop
from tests.tokens import claims_of, expired, resign

Sql = Callable[..., list[dict[str, Any]]]
Console = Callable[..., Result]
PERSON = {"email": "Erika.Mustermann@example.com", "name": "Erika Mustermann", "companyName": "Geheim AG"}
REASON = "Frau Mustermann hat angerufen"


def live_a_little(client: FlaskClient, customer: dict[str, Any]) -> list[str]:
    """Leave traces wherever a customer can; the tokens it was given."""
    customer_id, own = customer["customerId"], bearer(customer["license"])
    tokens = [customer["license"]]
    client.post("/api/usage/report", json=report_body(customer_id, 5, 10), headers=own)
    again = {"email": "erika@beispiel.example", "name": "Erika M.", "companyName": "Ganz Geheim AG"}
    client.patch(f"/api/customers/{customer_id}", json=again, headers=ADMIN)
    tokens.append(client.get(f"/api/licenses/{customer_id}", headers=ADMIN).json["license"])
    client.patch(f"/api/customers/{customer_id}", json=PERSON, headers=ADMIN)
    tokens.append(client.get(f"/api/licenses/{customer_id}", headers=ADMIN).json["license"])
    client.post(
        "/api/subscriptions/create-trial",
        json={"customerId": customer_id, "plan": "starter"},
        headers=ADMIN | {"Idempotency-Key": "trial-1"},
    )
    client.post(f"/api/licenses/{customer_id}/revoke", json={"reason": REASON}, headers=ADMIN)
    return tokens


def everything(sql: Sql) -> str:
    """All that stands in any table, as text."""
    tables = sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert len(tables) > 8
    rows = [sql(f'SELECT found::TEXT AS row FROM "{t["tablename"]}" AS found') for t in tables]
    return "\n".join(row["row"] for found in rows for row in found)


def traces(sql: Sql, tokens: list[str], *more: str) -> list[str]:
    """Which of the personal words are still found, in whatever letter case."""
    text = everything(sql).lower()
    words = ["mustermann", "erika", "geheim", "beispiel", "angerufen", *more]
    words += [part for token in tokens for part in token.split(".")[1:]]
    return [word for word in words if word.lower() in text]


def erase(app: Flask, customer_id: str) -> Result:
    return app.test_cli_runner().invoke(args=["customer", "erase", "--id", customer_id, "--yes"])


def test_everything_that_is_held_is_exported_and_goes_but_for_the_figures(
    client: FlaskClient, console: Console, sql: Sql
) -> None:
    other = make_customer(client, email="other@example.com", name="Somebody Else")
    client.post("/api/usage/report", json=report_body(other["customerId"], 1, 2), headers=ADMIN)
    key = {"Idempotency-Key": "create-1"}
    customer = client.post("/api/customers", json=PERSON, headers=ADMIN | key).json
    customer_id, tokens = customer["customerId"], live_a_little(client, customer)
    done = console("customer", "export", "--id", customer_id)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["customer"]["email"], found["customer"]["revoke_reason"]) == (PERSON["email"], REASON)
    assert {row["token"] for row in found["licenses"]} >= set(tokens)
    assert [row["active_devices"] for row in found["usageReports"]] == [5]
    assert [row["instance_id"] for row in found["instances"]] == ["dev-1"]
    assert {row["plan"] for row in found["subscriptions"]} == {"trial", "starter"}
    assert {row["key"] for row in found["idempotencyKeys"]} == {"create-1", "trial-1"}
    actions = {row["action"] for row in found["audit"]}
    assert actions >= {"customer.create", "customer.update", "license.issue", "license.revoke"}
    assert other["customerId"] not in done.stdout
    # A table that is added one day must be added to the export too.
    tables = sql(
        """SELECT table_name
             FROM information_schema.columns
             JOIN information_schema.tables USING (table_schema, table_name)
            WHERE column_name = 'customer_id' AND table_schema = 'public' AND table_type = 'BASE TABLE'"""
    )
    held = {row["table_name"] for row in tables if not row["table_name"].startswith("usage_reports_")}
    assert held == {
        "customers", "subscriptions", "licenses", "usage_reports", "instances", "overage_terms",
        "overage_periods", "overage_days", "stripe_events", "audit_log",
    }  # fmt: skip
    assert len(found) == len(held) + 1  # and the kept answers
    (line,) = sql("SELECT actor, customer_id FROM audit_log WHERE action = 'customer.export'")
    assert (line["actor"][:8], line["customer_id"]) == ("console:", customer_id)

    assert len(traces(sql, tokens)) == 5 + 2 * len(set(tokens))
    assert erase(client.application, customer_id).exit_code == 0
    assert traces(sql, tokens) == []
    assert "Somebody Else" in everything(sql)
    assert sql("SELECT 1 AS n FROM customers WHERE erased_at IS NOT NULL") == [{"n": 1}]
    (report,) = sql("SELECT * FROM usage_reports WHERE customer_id = %(id)s", id=customer_id)
    assert (report["active_devices"], report["total_devices"]) == (5, 10)
    licenses = sql("SELECT * FROM licenses WHERE customer_id = %(id)s", id=customer_id)
    assert len(licenses) >= 3
    assert all(row["revoked_at"] and row["token"] is None for row in licenses)
    live = "SELECT 1 FROM subscriptions WHERE customer_id = %(id)s AND status <> 'canceled'"
    assert sql(live, id=customer_id) == []
    lines = sql("SELECT * FROM audit_log WHERE customer_id = %(id)s ORDER BY id", id=customer_id)
    assert "customer.export" in {line["action"] for line in lines}
    assert (lines[-1]["action"], lines[-1]["actor"][:8]) == ("customer.erase", "console:")
    # The old answer is not given again; the caller makes a new customer instead.
    again = client.post("/api/customers", json={"email": "new@example.com"}, headers=ADMIN | key)
    assert (again.status_code, again.json["email"]) == (201, "new@example.com")
    assert client.get(f"/api/licenses/{other['customerId']}", headers=ADMIN).status_code == 200


def test_an_erased_customer_is_nobody(client: FlaskClient, console: Console, sql: Sql) -> None:
    app, customer = client.application, make_customer(client, **PERSON)
    customer_id, token = customer["customerId"], customer["license"]
    sql("UPDATE licenses SET issued_at = issued_at - INTERVAL '1 hour'")
    young = resign(app, token, jti=str(uuid.uuid4()))  # as if a restored backup did not know it
    erase(app, customer_id)
    report, trial = report_body(customer_id), {"customerId": customer_id, "plan": "starter"}
    routes: list[tuple[str, str, Any]] = [
        ("GET", f"{noun}/{customer_id}", None) for noun in ("customers", "usage", "licenses", "subscriptions")
    ]
    routes += [("POST", "usage/report", report), ("PATCH", f"customers/{customer_id}", {"name": "x"})]
    routes += [("POST", f"licenses/{customer_id}/{verb}", {}) for verb in ("revoke", "reinstate")]
    routes += [("POST", f"customers/{customer_id}/portal", {}), ("POST", "subscriptions/create-trial", trial)]
    for method, path, body in routes:
        answer = client.open(f"/api/{path}", method=method, json=body, headers=ADMIN)
        assert answer.status_code == 404, path
        for own in map(bearer, (token, expired(app, token, days=1), young)):
            answer = client.open(f"/api/{path}", method=method, json=body, headers=own)
            assert answer.status_code == 401, path
    batch = client.post("/api/usage/reports", json={"reports": [report]}, headers=ADMIN)
    assert batch.json["results"][0]["status"] == 404
    assert customer_id not in client.get("/api/customers", headers=ADMIN).text
    assert sql("SELECT 1 FROM usage_reports") == []
    for known in (token, young):
        verified = client.post("/api/licenses/verify", json={"license": known})
        assert verified.json["code"] == "REVOKED"
    listed = client.get("/api/licenses/revocations").json["revocations"]
    assert claims_of(listed)["revoked"] == [claims_of(token)["jti"]]
    for done in (
        erase(app, customer_id),
        console("customer", "export", "--id", customer_id),
        console("customer", "export", "--id", "cust_000000000000"),
    ):
        assert (done.exit_code, done.stdout) == (1, "")


def test_what_happens_at_the_same_time_leaves_no_trace_either(app: Flask, sql: Sql) -> None:
    tokens: list[str] = []
    for _ in range(4):
        customer = make_customer(app.test_client(), **PERSON)
        customer_id = customer["customerId"]
        tokens.append(customer["license"])

        def act(number: int, customer_id: str = customer_id) -> int:
            with app.test_client() as own:
                if number == 0:
                    return 200 + erase(app, customer_id).exit_code
                if number == 1:
                    return own.get(f"/api/licenses/{customer_id}", headers=ADMIN).status_code
                if number == 2:
                    body = {"customerId": customer_id, "plan": "starter"}
                    return own.post("/api/subscriptions/create-trial", json=body, headers=ADMIN).status_code
                change = {"name": f"Erika {number}", "email": f"erika{number}@example.com"}
                return own.patch(f"/api/customers/{customer_id}", json=change, headers=ADMIN).status_code

        statuses = at_once(6, act)
        assert statuses[0] == 200
        assert set(statuses) <= {200, 201, 404, 409}, statuses
    assert traces(sql, tokens) == []
    assert sql("SELECT 1 FROM licenses WHERE revoked_at IS NULL OR superseded_at IS NULL") == []
    assert sql("SELECT 1 FROM subscriptions WHERE status <> 'canceled'") == []


def test_the_same_address_gets_no_second_trial(client: FlaskClient, sql: Sql) -> None:
    def try_trial(customer_id: str) -> int:
        body = {"customerId": customer_id, "plan": "starter"}
        return client.post("/api/subscriptions/create-trial", json=body, headers=ADMIN).status_code

    def move(customer_id: str, email: str) -> int:
        return client.patch(f"/api/customers/{customer_id}", json={"email": email}, headers=ADMIN).status_code

    erase(client.application, make_customer(client, **PERSON)["customerId"])
    address = PERSON["email"].upper()
    refused = client.post("/api/customers", json={"email": address, "plan": "starter"}, headers=ADMIN)
    assert refused.status_code == 409
    assert sql("SELECT 1 FROM customers WHERE email IS NOT NULL") == []
    back = make_customer(client, email=address, plan="trial")
    assert (back["subscription"]["plan"], back["subscription"]["status"]) == ("trial", "expired")
    trial = claims_of(back["license"])["trial"]
    assert trial["isTrialMode"] is True
    assert datetime.fromisoformat(trial["expiresAt"]) <= datetime.now(UTC)
    assert try_trial(back["customerId"]) == 409
    # Nor after moving to another address, nor does one who takes this one on later.
    late = make_customer(client, email="late@example.com")["customerId"]
    assert (move(back["customerId"], "b@example.com"), try_trial(back["customerId"])) == (200, 409)
    assert (move(late, address), try_trial(late)) == (200, 409)
    assert try_trial(make_customer(client)["customerId"]) == 201
    # What remembers the address is a keyed hash.
    (row,) = sql("SELECT email_hash FROM erased_emails")
    for text in (PERSON["email"], PERSON["email"].lower()):
        assert row["email_hash"] != hashlib.sha256(text.encode()).hexdigest()
    sql("UPDATE email_hash_key SET key = 'another'")
    assert move(late, "c@example.com") == 200
    again = make_customer(client, **PERSON, plan="starter")
    assert again["subscription"]["status"] == "trialing"


# At Stripe


def pay(shop: Shop) -> tuple[str, str, str, str]:
    """A paying customer: its id, license, Stripe's id and the subscription."""
    customer_id, subscription_id = shop.subscribe("professional", **PERSON)
    token = shop.get(f"/api/licenses/{customer_id}")["license"]
    return customer_id, token, shop.stripe_id(customer_id), subscription_id


def sync(shop: Shop) -> None:
    assert shop.app.test_cli_runner().invoke(args=["stripe", "sync"]).exit_code == 0


def rename(shop: Shop, stripe_id: str, customer_id: str) -> None:
    """Support gives a customer at Stripe to this one of ours."""
    email = shop.get(f"/api/customers/{customer_id}")["email"]
    with shop.sandbox.world.transaction() as world:
        world.get("customer", stripe_id).update(metadata={"customer_id": customer_id}, email=email)


def assert_gone(
    shop: Shop, sql: Sql, customer_id: str, token: str, stripe_id: str, news_came: bool = False
) -> None:
    assert shop.sandbox.get("customer", stripe_id).get("deleted") is True
    assert shop.live() == []
    assert traces(sql, [token], *([] if news_came else [stripe_id])) == []
    shop.deliver()  # Stripe's own news of the deletion is nobody's any more
    assert traces(sql, [token]) == []
    assert sql("SELECT 1 FROM stripe_events WHERE customer_id IS NOT NULL AND object_id IS NOT NULL") == []
    (row,) = sql("SELECT * FROM customers WHERE customer_id = %(id)s", id=customer_id)
    assert (row["erased_at"] is not None, row["stripe_customer_id"]) == (True, None)
    assert sql("SELECT COUNT(*) AS n FROM erased_emails") == [{"n": 1}]
    statuses = sql("SELECT DISTINCT status FROM subscriptions WHERE customer_id = %(id)s", id=customer_id)
    assert statuses == [{"status": "canceled"}]
    assert shop.client.get(f"/api/licenses/{customer_id}", headers=bearer(token)).status_code == 401


def test_a_customer_whose_link_is_lost_is_deleted_there_all_the_same(shop: Shop, sql: Sql) -> None:
    customer_id, token, stripe_id, _ = pay(shop)
    shop.sandbox.webhooks.clear()
    sql("UPDATE customers SET stripe_customer_id = NULL")
    assert erase(shop.app, customer_id).exit_code == 0
    assert_gone(shop, sql, customer_id, token, stripe_id)


def test_no_log_line_names_anybody_while_stripe_is_asked(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger().addHandler(caplog.handler)
    caplog.set_level(logging.DEBUG)
    customer_id, token, _, _ = pay(shop)
    change = {"email": "erika@beispiel.example"}
    shop.client.patch(f"/api/customers/{customer_id}", json=change, headers=ADMIN)
    shop.post(f"/api/customers/{customer_id}/portal")
    shop.sandbox.faults.fail_next(9, path="/v1/customers")
    shop.client.patch(f"/api/customers/{customer_id}", json=PERSON, headers=ADMIN)
    shop.sandbox.faults.clear()
    assert erase(shop.app, customer_id).exit_code == 0
    assert len(caplog.records) > 10
    lines = json.dumps([record.__dict__ for record in caplog.records], default=str).lower()
    for secret in ("mustermann", "geheim", "erika", str(shop.sandbox.api_key), token.split(".")[1]):
        assert secret.lower() not in lines


@pytest.mark.parametrize("linked", [False, True])
def test_what_was_given_to_somebody_else_is_left_alone(shop: Shop, linked: bool) -> None:
    """Its subscription stands on our record still: no event has come yet."""
    customer_id, right = shop.customer(), shop.customer()
    shop.checkout(customer_id)
    second = shop.second_at_stripe(customer_id, "b@example.com")
    sync(shop)
    assert shop.plan_and_status(customer_id)[0] == "professional"
    rename(shop, second, right)
    if linked:
        assert shop.post(f"/api/customers/{right}/portal").status_code == 201
    assert erase(shop.app, customer_id).exit_code == 0
    assert len(shop.live()) == 1
    sync(shop)
    assert shop.plan_and_status(right) == ("professional", "active")


def test_all_that_is_this_ones_goes_and_no_others(shop: Shop) -> None:
    """One of another address that pays for it, one that a crash left behind; not one that only names it."""
    customer_id, _, stripe_id, _ = pay(shop)
    shop.second_at_stripe(customer_id, "b@example.com")
    sync(shop)
    paying, _ = shop.subscribe()
    rename(shop, shop.stripe_id(paying), customer_id)
    email = str(PERSON["email"])
    twin = shop.sandbox.create_customer(email, metadata={"customer_id": customer_id})["id"]
    other = shop.sandbox.create_customer(email, metadata={"customer_id": "other"})["id"]
    assert erase(shop.app, customer_id).exit_code == 0
    assert len(shop.live()) == 1
    assert shop.plan_and_status(paying) == ("starter", "active")
    kept = {c["id"] for c in shop.sandbox.every("customer") if not c.get("deleted")}
    assert (kept, twin != stripe_id) == ({other, shop.stripe_id(paying)}, True)


def test_one_that_buys_other_products_stays_there_without_our_metadata(shop: Shop, sql: Sql) -> None:
    customer_id, token, stripe_id, subscription_id = pay(shop)
    support = shop.sandbox.create_subscription(stripe_id, shop.make_price(70_000))["id"]
    assert [erase(shop.app, customer_id).exit_code for _ in range(2)] == [0, 1]  # 1: erased already
    found = shop.sandbox.get("customer", stripe_id)
    assert (found.get("deleted"), found["metadata"], found["email"]) == (None, {}, PERSON["email"])
    assert shop.sandbox.get("subscription", support)["status"] == "active"
    assert shop.sandbox.get("subscription", subscription_id)["status"] == "canceled"
    assert traces(sql, [token], stripe_id) == []
    shop.deliver()
    assert traces(sql, [token]) == []
    assert shop.client.get(f"/api/customers/{customer_id}", headers=ADMIN).status_code == 404


def test_when_stripe_fails_nothing_is_changed_and_the_next_try_completes(
    shop: Shop, sql: Sql, make_app: Callable[..., Flask]
) -> None:
    customer_id, token, stripe_id, subscription_id = pay(shop)
    shop.sandbox.faults.fail_next(5, path="/v1/customers", method="DELETE")
    without_key = make_app(STRIPE_SECRET_KEY="", STRIPE_WEBHOOK_SECRET=WEBHOOK_SECRET)
    for app, said in ((shop.app, "Stripe"), (without_key, "STRIPE_SECRET_KEY")):
        done = erase(app, customer_id)
        assert (done.exit_code, done.stdout, said in done.stderr) == (1, "", True)
        assert shop.get(f"/api/customers/{customer_id}")["email"] == PERSON["email"]
        assert shop.get(f"/api/licenses/{customer_id}")["license"] == token
        assert shop.stripe_id(customer_id) == stripe_id
        assert "deleted" not in shop.sandbox.get("customer", stripe_id)
        assert sql("SELECT 1 FROM erased_emails") == []
    shop.sandbox.faults.clear()
    assert erase(shop.app, customer_id).exit_code == 0
    assert_gone(shop, sql, customer_id, token, stripe_id)
    assert shop.sandbox.get("subscription", subscription_id)["status"] == "canceled"


@pytest.mark.parametrize("news_first", [False, True])
def test_interrupted_half_way_it_completes_when_done_again(
    shop: Shop, sql: Sql, monkeypatch: pytest.MonkeyPatch, news_first: bool
) -> None:
    customer_id, token, stripe_id, _ = pay(shop)

    def die(*_: Any) -> None:
        raise Unavailable("The database is not available.")

    with monkeypatch.context() as patch:
        patch.setattr(audit_rows, "erase_audit", die)
        assert erase(shop.app, customer_id).exit_code == 1
    assert shop.sandbox.get("customer", stripe_id).get("deleted") is True
    assert shop.get(f"/api/customers/{customer_id}")["email"] == PERSON["email"]
    assert sql("SELECT 1 FROM erased_emails") == []
    if news_first:
        shop.deliver()  # Stripe tells of the deletion before anybody tries again
    assert erase(shop.app, customer_id).exit_code == 0
    assert_gone(shop, sql, customer_id, token, stripe_id, news_first)
