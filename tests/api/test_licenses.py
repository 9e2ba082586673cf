"""Licenses over HTTP: what is handed out and for how long, what is taken back, what is verified."""

import json
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from jose import jwt
from werkzeug.test import TestResponse

from tests.conftest import ADMIN
from tests.factories import bearer, make_customer, report_body
from tests.tokens import claims_of, expired, resign, segment

Sql = Callable[..., list[dict[str, Any]]]
Console = Callable[..., Result]


def get_license(client: FlaskClient, customer_id: str, headers: dict[str, str] = ADMIN) -> TestResponse:
    return client.get(f"/api/licenses/{customer_id}", headers=headers)


def current(client: FlaskClient, customer_id: str) -> str:
    answer = get_license(client, customer_id)
    assert answer.status_code == 200, answer.json
    return str(answer.json["license"])


def verify(client: FlaskClient, token: str) -> dict[str, Any]:
    answer = client.post("/api/licenses/verify", json={"license": token})
    assert answer.status_code == 200, answer.json
    return dict(answer.json)


def count(sql: Sql, customer_id: str) -> int:
    return int(sql("SELECT COUNT(*) AS n FROM licenses WHERE customer_id = %(id)s", id=customer_id)[0]["n"])


def subscribe(sql: Sql, customer_id: str, **columns: Any) -> str:
    """A Stripe subscription as the sync would store it."""
    now = datetime.now(UTC).replace(microsecond=0)
    subscription_id = f"sub_{uuid.uuid4().hex}"
    row = {
        "subscription_id": subscription_id, "stripe_subscription_id": subscription_id,
        "customer_id": customer_id, "stripe_price_id": "price_1", "plan": "professional",
        "status": "active", "paid": True, "current_period_starts_at": now,
        "current_period_ends_at": now + timedelta(days=30), "created_at": now, **columns,
    }  # fmt: skip
    names = ", ".join(row)
    values = ", ".join(f"%({name})s" for name in row)
    sql(f"INSERT INTO subscriptions ({names}) VALUES ({values})", **row)
    return subscription_id


class TestHandingOut:
    def test_a_running_trial(self, client: FlaskClient) -> None:
        customer = make_customer(client, name="Ada", companyName="Engines Ltd", plan="starter")
        answer = get_license(client, customer["customerId"], bearer(customer["license"]))
        assert answer.status_code == 200
        assert list(answer.json) == [
            "customerId", "license", "publicKey", "plan", "status", "issuedAt", "expiresAt",
        ]  # fmt: skip
        assert answer.json["license"] == customer["license"]
        assert (answer.json["plan"], answer.json["status"]) == ("starter", "trialing")
        claims = jwt.decode(
            answer.json["license"], answer.json["publicKey"], algorithms=["RS256"], issuer="zemfyre-billing"
        )
        ends = customer["subscription"]["trialEndsAt"]
        assert claims == {
            "iss": "zemfyre-billing", "sub": customer["customerId"], "jti": claims["jti"],
            "iat": claims["issuedAt"], "exp": claims["iat"] + 14 * 86400,
            "customerId": customer["customerId"], "customerName": "Engines Ltd", "plan": "starter",
            "features": {
                "maxDevices": 10, "dataRetentionDays": 30, "canExportData": True, "hasAdvancedAlerts": False,
                "hasApiAccess": True, "hasMqttAccess": True, "hasCustomBranding": False,
            },
            "limits": {"maxUsers": 5, "maxAlertRules": 25, "maxDashboards": 10},
            "trial": {"isTrialMode": True, "expiresAt": ends},
            "subscription": {"status": "trialing", "currentPeriodEndsAt": ends},
            "issuedAt": claims["iat"], "expiresAt": claims["exp"],
        }  # fmt: skip
        assert datetime.fromisoformat(answer.json["expiresAt"]).timestamp() == claims["exp"]
        assert datetime.fromisoformat(answer.json["issuedAt"]).timestamp() == claims["iat"]

    def test_the_key_is_named_by_its_thumbprint(self, client: FlaskClient) -> None:
        customer = make_customer(client)
        jwks = client.get("/.well-known/jwks.json").json
        (key,) = jwks["keys"]
        assert segment(customer["license"], 0) == {"alg": "RS256", "typ": "JWT", "kid": key["kid"]}
        assert set(key) == {"kty", "use", "alg", "kid", "n", "e"}
        assert jwt.decode(customer["license"], key, algorithms=["RS256"])["sub"] == customer["customerId"]
        shown = client.get("/api/licenses/public-key").json
        assert (shown["kid"], shown["algorithm"]) == (key["kid"], "RS256")
        assert shown["publicKey"] == get_license(client, customer["customerId"]).json["publicKey"]

    def test_the_same_token_until_something_changes(self, client: FlaskClient, sql: Sql) -> None:
        customer = make_customer(client)
        for _ in range(3):
            assert current(client, customer["customerId"]) == customer["license"]
        unchanged = client.patch(
            f"/api/customers/{customer['customerId']}", json={"name": customer["name"]}, headers=ADMIN
        )
        assert unchanged.status_code == 200
        assert current(client, customer["customerId"]) == customer["license"]
        assert count(sql, customer["customerId"]) == 1

    def test_a_new_name_is_a_new_license_and_the_old_one_still_verifies(
        self, client: FlaskClient, sql: Sql
    ) -> None:
        customer = make_customer(client)
        client.patch(f"/api/customers/{customer['customerId']}", json={"companyName": "New"}, headers=ADMIN)
        token = current(client, customer["customerId"])
        assert claims_of(token)["customerName"] == "New"
        assert claims_of(token)["iat"] >= claims_of(customer["license"])["iat"]
        assert current(client, customer["customerId"]) == token
        assert verify(client, customer["license"])["code"] == "SUPERSEDED"
        assert verify(client, token)["code"] == "VALID"
        assert get_license(client, customer["customerId"], bearer(customer["license"])).status_code == 200
        assert count(sql, customer["customerId"]) == 2

    def test_half_its_life_gone_brings_a_new_one(self, client: FlaskClient, sql: Sql) -> None:
        customer = make_customer(client)
        for issued_ago, is_new in (("6 days", False), ("8 days", True)):
            sql(
                """UPDATE licenses SET issued_at = now() - %(ago)s::interval,
                          renews_at = now() - %(ago)s::interval + interval '7 days',
                          expires_at = now() - %(ago)s::interval + interval '14 days'
                    WHERE superseded_at IS NULL""",
                ago=issued_ago,
            )
            token = current(client, customer["customerId"])
            assert (token != customer["license"]) is is_new
        # A trial's new license still ends with the trial.
        assert claims_of(token)["exp"] == claims_of(customer["license"])["exp"]
        assert count(sql, customer["customerId"]) == 2

    def test_a_renewed_period_is_a_change(self, client: FlaskClient, sql: Sql) -> None:
        customer = make_customer(client)
        subscription_id = subscribe(sql, customer["customerId"])
        first = current(client, customer["customerId"])
        sql(
            """UPDATE subscriptions SET current_period_starts_at = current_period_ends_at,
                      current_period_ends_at = current_period_ends_at + interval '30 days'
                WHERE subscription_id = %(id)s""",
            id=subscription_id,
        )
        second = current(client, customer["customerId"])
        assert claims_of(second)["exp"] == claims_of(first)["exp"] + 30 * 86400
        assert claims_of(second)["subscription"] != claims_of(first)["subscription"]
        assert current(client, customer["customerId"]) == second

    @pytest.mark.parametrize(
        ("status", "plan", "days", "trial_mode"),
        [
            ("active", "professional", 37, False),
            ("trialing", "professional", 37, False),
            ("past_due", "professional", 7, False),
            ("unpaid", "trial", 7, True),
            ("paused", "trial", 7, True),
            ("incomplete", "trial", 7, True),
            ("incomplete_expired", "trial", 7, True),
            ("canceled", "trial", 7, True),
            ("never_heard_of", "trial", 7, True),
        ],
    )
    def test_the_expiry_of_every_status(
        self, client: FlaskClient, sql: Sql, status: str, plan: str, days: int, trial_mode: bool
    ) -> None:
        customer = make_customer(client)
        sql("UPDATE subscriptions SET status = 'canceled', ended_at = now()")
        subscribe(sql, customer["customerId"], status=status)
        token = current(client, customer["customerId"])
        claims = claims_of(token)
        assert (claims["plan"], claims["trial"]["isTrialMode"]) == (plan, trial_mode)
        assert claims["subscription"]["status"] == status
        assert abs(claims["exp"] - (time.time() + days * 86400)) < 60
        assert verify(client, token)["code"] == "VALID"

    def test_validity_and_grace_are_settings(self, make_app: Callable[..., Flask], sql: Sql) -> None:
        client = make_app(LICENSE_VALIDITY_DAYS="20", LICENSE_GRACE_DAYS="3").test_client()
        customer = make_customer(client)
        subscription_id = subscribe(sql, customer["customerId"])
        claims = claims_of(current(client, customer["customerId"]))
        assert claims["exp"] - claims["iat"] == 20 * 86400
        sql("UPDATE subscriptions SET status = 'past_due' WHERE subscription_id = %(i)s", i=subscription_id)
        claims = claims_of(current(client, customer["customerId"]))
        assert claims["exp"] - claims["iat"] == 3 * 86400

    def test_an_operators_sql_counts_from_the_next_request_on(self, client: FlaskClient, sql: Sql) -> None:
        customer = make_customer(client)
        other = make_customer(client)
        subscription_id = subscribe(sql, customer["customerId"], plan="enterprise")
        assert claims_of(current(client, customer["customerId"]))["plan"] == "enterprise"
        sql("UPDATE customers SET max_devices = 777 WHERE customer_id = %(id)s", id=customer["customerId"])
        assert claims_of(current(client, customer["customerId"]))["features"]["maxDevices"] == 777
        sql(
            "UPDATE subscriptions SET customer_id = %(to)s WHERE subscription_id = %(id)s",
            to=other["customerId"],
            id=subscription_id,
        )
        assert claims_of(current(client, customer["customerId"]))["plan"] == "trial"
        assert claims_of(current(client, other["customerId"]))["plan"] == "enterprise"
        sql("DELETE FROM subscriptions WHERE subscription_id = %(id)s", id=subscription_id)
        assert claims_of(current(client, other["customerId"]))["plan"] == "trial"

    def test_own_figures_of_an_enterprise_customer(
        self, client: FlaskClient, sql: Sql, console: Console
    ) -> None:
        customer = make_customer(client)
        customer_id = customer["customerId"]
        subscribe(sql, customer_id, plan="enterprise")
        assert claims_of(current(client, customer_id))["features"]["maxDevices"] == 999999
        done = console("customer", "override", "--id", customer_id, "--max-devices", "1234")
        assert done.exit_code == 0, done.output
        features = claims_of(current(client, customer_id))["features"]
        assert (features["maxDevices"], features["dataRetentionDays"]) == (1234, 999999)

    def test_a_trial_that_runs_out_leaves_a_license_in_trial_mode(
        self, client: FlaskClient, sql: Sql
    ) -> None:
        customer = make_customer(client, plan="professional")
        ended = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
        sql("UPDATE subscriptions SET trial_ends_at = %(at)s", at=ended)
        answer = get_license(client, customer["customerId"])
        claims = claims_of(answer.json["license"])
        assert (answer.json["plan"], answer.json["status"]) == ("trial", "expired")
        assert claims["features"]["maxDevices"] == 5
        assert claims["trial"] == {"isTrialMode": True, "expiresAt": ended.isoformat().replace("+00:00", "Z")}
        assert claims["exp"] - claims["iat"] == 7 * 86400

    def test_a_customer_that_is_not_there(self, client: FlaskClient) -> None:
        assert get_license(client, "cust_000000000000").status_code == 404

    def test_twenty_at_once_after_a_change_issue_exactly_one(
        self, make_app: Callable[..., Flask], sql: Sql
    ) -> None:
        apps = [make_app(), make_app()]
        customer = make_customer(apps[0].test_client())
        sql("UPDATE customers SET company_name = 'Changed'")
        together = threading.Barrier(20)

        def ask(number: int) -> str:
            client = apps[number % 2].test_client()
            together.wait()
            return current(client, customer["customerId"])

        with ThreadPoolExecutor(20) as pool:
            tokens = set(pool.map(ask, range(20)))
        assert len(tokens) == 1
        assert claims_of(tokens.pop())["customerName"] == "Changed"
        assert count(sql, customer["customerId"]) == 2
        issued = sql("SELECT subject FROM audit_log WHERE action = 'license.issue'")
        assert len(issued) == 2

    def test_iat_never_goes_back_though_the_clock_does(self, client: FlaskClient, sql: Sql) -> None:
        customer = make_customer(client)
        sql(
            """UPDATE licenses SET issued_at = now() + interval '1 hour',
                      renews_at = now() + interval '7 days', expires_at = now() + interval '14 days'"""
        )
        sql("UPDATE customers SET company_name = 'Changed'")
        claims = claims_of(current(client, customer["customerId"]))
        assert claims["customerName"] == "Changed"
        assert claims["iat"] >= int(time.time()) + 3500
        client.post(f"/api/licenses/{customer['customerId']}/revoke", headers=ADMIN)
        back = client.post(f"/api/licenses/{customer['customerId']}/reinstate", headers=ADMIN)
        assert claims_of(back.json["license"])["iat"] >= claims["iat"]


class TestExpired:
    @pytest.mark.parametrize("days", [0.01, 15, 29.9])
    def test_for_thirty_days_it_still_fetches_its_successor(
        self, app: Flask, client: FlaskClient, days: float
    ) -> None:
        customer = make_customer(client)
        stale = expired(app, customer["license"], days=days)
        answer = get_license(client, customer["customerId"], bearer(stale))
        assert answer.status_code == 200
        assert verify(client, answer.json["license"])["code"] == "VALID"
        report = client.post(
            "/api/usage/report", json=report_body(customer["customerId"]), headers=bearer(stale)
        )
        assert report.status_code == 201
        batch = {"reports": [report_body(customer["customerId"], instanceId="other")]}
        assert client.post("/api/usage/reports", json=batch, headers=bearer(stale)).json["accepted"] == 1
        for path in (f"/api/customers/{customer['customerId']}", f"/api/usage/{customer['customerId']}"):
            refused = client.get(path, headers=bearer(stale))
            assert refused.status_code == 401
            assert refused.headers["WWW-Authenticate"] == "Bearer"

    @pytest.mark.parametrize("days", [30.01, 400])
    def test_after_that_it_serves_for_nothing(
        self, app: Flask, client: FlaskClient, sql: Sql, days: float
    ) -> None:
        customer = make_customer(client)
        stale = expired(app, customer["license"], days=days)
        assert get_license(client, customer["customerId"], bearer(stale)).status_code == 401
        report = client.post(
            "/api/usage/report", json=report_body(customer["customerId"]), headers=bearer(stale)
        )
        assert report.status_code == 401
        assert sql("SELECT 1 FROM usage_reports") == []


class TestRevoking:
    def test_revoke_takes_everything_back_until_reinstated(self, client: FlaskClient, sql: Sql) -> None:
        customer = make_customer(client)
        customer_id, first = customer["customerId"], customer["license"]
        client.patch(f"/api/customers/{customer_id}", json={"companyName": "New"}, headers=ADMIN)
        second = current(client, customer_id)
        answer = client.post(f"/api/licenses/{customer_id}/revoke", json={"reason": "leaked"}, headers=ADMIN)
        assert answer.status_code == 200
        assert (answer.json["revoked"], answer.json["reason"]) == (True, "leaked")
        for token in (first, second):
            assert verify(client, token)["code"] == "REVOKED"
            assert get_license(client, customer_id, bearer(token)).status_code == 403
        assert get_license(client, customer_id).status_code == 403
        assert len(sql("SELECT 1 FROM licenses WHERE revoked_at IS NOT NULL")) == 2

        again = client.post(f"/api/licenses/{customer_id}/revoke", headers=ADMIN)
        assert again.status_code == 200
        assert (again.json["revokedAt"], again.json["reason"]) == (answer.json["revokedAt"], "leaked")

        back = client.post(f"/api/licenses/{customer_id}/reinstate", headers=ADMIN)
        assert back.status_code == 200
        assert (back.json["revoked"], back.json["revokedAt"], back.json["reason"]) == (False, None, None)
        assert back.json["license"] == current(client, customer_id)
        assert verify(client, back.json["license"])["code"] == "VALID"
        assert verify(client, second)["code"] == "REVOKED"
        assert get_license(client, customer_id, bearer(second)).status_code == 403
        assert claims_of(back.json["license"])["iat"] >= claims_of(second)["iat"]
        actions = [row["action"] for row in sql("SELECT action FROM audit_log ORDER BY id")]
        assert actions[-3:] == ["license.revoke", "license.reinstate", "license.issue"]

    def test_a_revoked_customer_gets_no_license_by_any_way(
        self, client: FlaskClient, sql: Sql, console: Console
    ) -> None:
        customer = make_customer(client)
        customer_id = customer["customerId"]
        client.post(f"/api/licenses/{customer_id}/revoke", headers=ADMIN)
        trial = client.post(
            "/api/subscriptions/create-trial",
            json={"customerId": customer_id, "plan": "starter"},
            headers=ADMIN,
        )
        assert trial.status_code == 403
        report = client.post(
            "/api/usage/report", json=report_body(customer_id), headers=bearer(customer["license"])
        )
        assert report.status_code == 403
        by_admin = client.post("/api/usage/report", json=report_body(customer_id), headers=ADMIN)
        assert by_admin.status_code == 201
        assert "license" not in by_admin.json
        subscribe(sql, customer_id)
        assert get_license(client, customer_id).status_code == 403
        refused = console("license", "show", "--customer", customer_id)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert count(sql, customer_id) == 1

    def test_revoke_and_issue_at_once_leave_no_valid_license(
        self, app: Flask, client: FlaskClient, sql: Sql
    ) -> None:
        customer_id = make_customer(client)["customerId"]
        together = threading.Barrier(8)

        def act(number: int) -> int:
            with app.test_client() as own:
                together.wait()
                if number == 0:
                    path = f"/api/licenses/{customer_id}/revoke"
                    return own.post(path, headers=ADMIN).status_code
                body = {"name": f"Name {number}"}
                own.patch(f"/api/customers/{customer_id}", json=body, headers=ADMIN)
                return get_license(own, customer_id).status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(act, range(8)))
        assert set(statuses) <= {200, 403}
        assert get_license(client, customer_id).status_code == 403
        assert sql("SELECT 1 FROM licenses WHERE revoked_at IS NULL OR superseded_at IS NULL") == []

    def test_unknown_customers(self, client: FlaskClient) -> None:
        for action in ("revoke", "reinstate"):
            answer = client.post(f"/api/licenses/cust_000000000000/{action}", headers=ADMIN)
            assert answer.status_code == 404

    def test_on_the_console(self, client: FlaskClient, console: Console) -> None:
        customer = make_customer(client)
        customer_id = customer["customerId"]
        revoked = console("license", "revoke", "--customer", customer_id, "--reason", "leaked", "--json")
        assert json.loads(revoked.stdout)["revoked"] is True
        found = console("license", "verify", customer["license"])
        assert (found.exit_code, found.stdout.splitlines()[0]) == (1, "❌ REVOKED")
        back = json.loads(console("license", "reinstate", "--customer", customer_id, "--json").stdout)
        assert console("license", "verify", "-", input=back["license"] + "\n").exit_code == 0
        history = json.loads(console("license", "history", "--customer", customer_id, "--json").stdout)
        assert [row["revokedAt"] is None for row in history] == [True, False]
        assert history[0]["jti"] == claims_of(back["license"])["jti"]
        table = console("license", "history", "--customer", customer_id).stdout
        assert "current" in table
        assert "revoked" in table


class TestVerifying:
    def test_valid_then_superseded(self, client: FlaskClient) -> None:
        customer = make_customer(client)
        answer = verify(client, customer["license"])
        assert answer == {"valid": True, "code": "VALID", "claims": claims_of(customer["license"])}
        client.patch(f"/api/customers/{customer['customerId']}", json={"name": "New"}, headers=ADMIN)
        current(client, customer["customerId"])
        answer = verify(client, customer["license"])
        assert (answer["valid"], answer["code"]) == (True, "SUPERSEDED")

    def test_revoked_is_told_before_expired(self, app: Flask, client: FlaskClient) -> None:
        customer = make_customer(client)
        stale = expired(app, customer["license"], days=1)
        assert verify(client, stale)["code"] == "EXPIRED"
        assert verify(client, stale)["valid"] is False
        client.post(f"/api/licenses/{customer['customerId']}/revoke", headers=ADMIN)
        assert verify(client, stale)["code"] == "REVOKED"

    def test_signed_by_us_but_never_issued(self, app: Flask, client: FlaskClient) -> None:
        customer, other = make_customer(client), make_customer(client)
        for changes in ({"jti": str(uuid.uuid4())}, {"sub": other["customerId"]}):
            answer = verify(client, resign(app, customer["license"], **changes))
            assert answer == {"valid": False, "code": "MALFORMED"}

    def test_a_key_that_nobody_knows_and_a_signature_that_does_not_hold(
        self, client: FlaskClient, make_app: Callable[..., Flask], tmp_path: Any
    ) -> None:
        customer = make_customer(client)
        stranger = make_app(
            LICENSE_PRIVATE_KEY_PATH=str(tmp_path / "private.pem"),
            LICENSE_PUBLIC_KEY_PATH=str(tmp_path / "public.pem"),
        )
        assert stranger.test_cli_runner().invoke(args=["keys", "generate"]).exit_code == 0
        forged = resign(stranger, customer["license"])
        assert verify(client, forged) == {"valid": False, "code": "UNKNOWN_KEY"}
        head, body, signature = customer["license"].split(".")
        borrowed = f"{head}.{body}.{forged.split('.')[2]}"
        assert verify(client, borrowed) == {"valid": False, "code": "BAD_SIGNATURE"}
        other_body = resign(stranger, customer["license"], plan="enterprise").split(".")[1]
        assert verify(client, f"{head}.{other_body}.{signature}")["code"] == "BAD_SIGNATURE"

    @pytest.mark.parametrize("text", ["", ".", "..", "a.b", "a.b.c", "é.é.é", "x" * 9000, "\u0000", "\ud800"])
    def test_what_is_no_token(self, client: FlaskClient, text: str) -> None:
        assert verify(client, text) == {"valid": False, "code": "MALFORMED"}

    @pytest.mark.parametrize("body", [{}, {"license": None}, {"license": 5}, {"license": "a", "more": 1}])
    def test_what_is_no_question(self, client: FlaskClient, body: dict[str, Any]) -> None:
        assert client.post("/api/licenses/verify", json=body).status_code == 422


class TestRevocationList:
    def listed(self, client: FlaskClient) -> tuple[TestResponse, dict[str, Any]]:
        answer = client.get("/api/licenses/revocations")
        assert answer.status_code == 200
        keys = client.get("/.well-known/jwks.json").json
        claims = jwt.decode(answer.json["revocations"], keys, algorithms=["RS256"], issuer="zemfyre-billing")
        return answer, claims

    def test_it_is_signed_small_and_cacheable(self, client: FlaskClient) -> None:
        answer, claims = self.listed(client)
        assert set(claims) == {"iss", "iat", "exp", "revoked"}
        assert claims["revoked"] == []
        assert claims["exp"] - claims["iat"] == 24 * 3600
        assert claims["iat"] <= time.time() < claims["exp"] - 22 * 3600
        assert datetime.fromisoformat(answer.json["expiresAt"]).timestamp() == claims["exp"]
        assert answer.headers["Cache-Control"] == "public, max-age=300"
        again = client.get("/api/licenses/revocations", headers={"If-None-Match": answer.headers["ETag"]})
        if again.status_code == 200:  # the full hour passed in between
            again = client.get("/api/licenses/revocations", headers={"If-None-Match": again.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["Cache-Control"] == "public, max-age=300"

    def test_a_revoked_license_is_on_it_until_it_expires(self, client: FlaskClient, sql: Sql) -> None:
        customer, kept = make_customer(client), make_customer(client)
        etag = client.get("/api/licenses/revocations").headers["ETag"]
        client.patch(f"/api/customers/{customer['customerId']}", json={"name": "New"}, headers=ADMIN)
        second = current(client, customer["customerId"])
        client.post(f"/api/licenses/{customer['customerId']}/revoke", headers=ADMIN)
        both = [claims_of(customer["license"])["jti"], claims_of(second)["jti"]]
        answer, claims = self.listed(client)
        assert claims["revoked"] == both
        assert answer.headers["ETag"] != etag
        assert claims_of(kept["license"])["jti"] not in claims["revoked"]
        client.post(f"/api/licenses/{customer['customerId']}/reinstate", headers=ADMIN)
        assert self.listed(client)[1]["revoked"] == both
        sql(
            """UPDATE licenses SET issued_at = now() - interval '2 days',
                      renews_at = now() - interval '1 day', expires_at = now() - interval '1 second'
                WHERE jti = %(jti)s""",
            jti=both[0],
        )
        assert self.listed(client)[1]["revoked"] == both[1:]

    def test_it_is_no_license(self, client: FlaskClient) -> None:
        make_customer(client)
        text = client.get("/api/licenses/revocations").json["revocations"]
        assert verify(client, text) == {"valid": False, "code": "MALFORMED"}
        assert client.get("/api/customers", headers=bearer(text)).status_code == 401

    def test_the_key_set_is_cacheable_too(self, client: FlaskClient) -> None:
        answer = client.get("/.well-known/jwks.json")
        assert answer.headers["Cache-Control"] == "public, max-age=300"
        again = client.get("/.well-known/jwks.json", headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b"")


def test_an_erased_customers_license_is_nobodys(
    app: Flask, client: FlaskClient, console: Console, sql: Sql
) -> None:
    customer = make_customer(client)
    customer_id = customer["customerId"]
    assert console("customer", "erase", "--id", customer_id, "--yes").exit_code == 0
    assert get_license(client, customer_id, bearer(customer["license"])).status_code == 401
    stale = expired(app, customer["license"], days=1)
    assert get_license(client, customer_id, bearer(stale)).status_code == 401
    report = client.post(
        "/api/usage/report", json=report_body(customer_id), headers=bearer(customer["license"])
    )
    assert report.status_code == 401
    assert verify(client, customer["license"])["code"] == "REVOKED"
    assert get_license(client, customer_id).status_code == 404
    assert sql("SELECT 1 FROM usage_reports") == []
    revoked = claims_of(client.get("/api/licenses/revocations").json["revocations"])["revoked"]
    assert revoked == [claims_of(customer["license"])["jti"]]


def test_without_a_signing_key_the_answer_is_503_and_names_no_file(
    app: Flask, client: FlaskClient, make_app: Callable[..., Flask], tmp_path: Any
) -> None:
    customer = make_customer(client)
    keyless = make_app(LICENSE_PRIVATE_KEY_PATH=str(tmp_path / "nowhere.pem"))
    parts: Parts = keyless.extensions["parts"]
    assert parts.settings.license_private_key_path.name == "nowhere.pem"
    own = keyless.test_client()
    for path in ("/.well-known/jwks.json", "/api/licenses/revocations", "/api/licenses/public-key"):
        answer = own.get(path)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert "nowhere" not in answer.text
    assert own.get("/health/ready").json["failing"] == {"signing_key": "LICENSE_PRIVATE_KEY_PATH"}
    # What needs no signature goes on: the license that is current already, and every check.
    assert current(own, customer["customerId"]) == customer["license"]
    assert verify(own, customer["license"])["code"] == "VALID"
