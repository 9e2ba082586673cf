"""Licenses over HTTP: what is handed out and for how long, what is taken back, what is verified."""

import dataclasses
import json
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from jose import jwt

from app.plans import PLANS
from tests.api.conftest import at_once
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer, report_body
from tests.tokens import claims_of, expired, kid_of, resign, segment

NOBODY = "cust_000000000000"


@pytest.fixture
def customer(client):
    return make_customer(client)


def get_license(client, customer_id, headers=ADMIN):
    return client.get(f"/api/licenses/{customer_id}", headers=headers)


def current(client, customer_id):
    answer = get_license(client, customer_id)
    assert answer.status_code == 200, answer.json
    return answer.json["license"]


def verify(client, token):
    answer = client.post("/api/licenses/verify", json={"license": token})
    assert answer.status_code == 200, answer.json
    return answer.json


def code(client, token):
    return verify(client, token)["code"]


def rename(client, customer_id, name="New"):
    path = f"/api/customers/{customer_id}"
    assert client.patch(path, json={"companyName": name}, headers=ADMIN).status_code == 200


def renewed(client, customer_id):
    """The license after a change of the customer."""
    rename(client, customer_id)
    return current(client, customer_id)


def revoke(client, customer_id, **body):
    return client.post(f"/api/licenses/{customer_id}/revoke", json=body, headers=ADMIN)


def reinstate(client, customer_id):
    return client.post(f"/api/licenses/{customer_id}/reinstate", headers=ADMIN)


def report(client, customer_id, headers, **fields):
    return client.post("/api/usage/report", json=report_body(customer_id, **fields), headers=headers)


@pytest.fixture
def history(console):
    def rows(customer_id):
        """Every license of a customer, newest first, as the console shows them."""
        return json.loads(console("license", "history", "--customer", customer_id, "--json").stdout)

    return rows


@pytest.fixture
def subscribe(sql):
    def add(customer_id, **columns):
        """A Stripe subscription as the sync would store it."""
        at, subscription_id = datetime.now(UTC).replace(microsecond=0), f"sub_{uuid.uuid4().hex}"
        row = {
            "subscription_id": subscription_id, "stripe_subscription_id": subscription_id,
            "customer_id": customer_id, "stripe_price_id": "price_1", "plan": "professional",
            "status": "active", "paid": True, "current_period_starts_at": at,
            "current_period_ends_at": at + timedelta(days=30), "created_at": at, **columns,
        }  # fmt: skip
        values = ", ".join(f"%({name})s" for name in row)
        sql(f"INSERT INTO subscriptions ({', '.join(row)}) VALUES ({values})", **row)
        return subscription_id

    return add


def test_the_license_of_a_running_trial_and_its_key(client):
    customer = make_customer(client, name="Ada", companyName="Engines Ltd", plan="starter")
    answer = get_license(client, customer["customerId"], bearer(customer["license"])).json
    assert list(answer) == [
        "customerId", "license", "publicKey", "plan", "status", "issuedAt", "expiresAt",
    ]  # fmt: skip
    assert answer["license"] == customer["license"]
    assert (answer["plan"], answer["status"]) == ("starter", "trialing")
    claims = jwt.decode(
        answer["license"], answer["publicKey"], algorithms=["RS256"], issuer="zemfyre-billing"
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
    for name, claim in (("expiresAt", "exp"), ("issuedAt", "iat")):
        assert datetime.fromisoformat(answer[name]).timestamp() == claims[claim]

    (key,) = client.get("/.well-known/jwks.json").json["keys"]
    assert segment(answer["license"], 0) == {"alg": "RS256", "typ": "JWT", "kid": key["kid"]}
    assert set(key) == {"kty", "use", "alg", "kid", "n", "e"}
    assert jwt.decode(answer["license"], key, algorithms=["RS256"])["sub"] == customer["customerId"]
    shown = client.get("/api/licenses/public-key").json
    assert shown == {"publicKey": answer["publicKey"], "kid": key["kid"], "algorithm": "RS256"}


def test_the_same_license_until_something_changes(client, customer, history):
    customer_id, first = customer["customerId"], customer["license"]
    client.patch(f"/api/customers/{customer_id}", json={"name": customer["name"]}, headers=ADMIN)
    assert current(client, customer_id) == current(client, customer_id) == first
    second = renewed(client, customer_id)
    assert claims_of(second)["customerName"] == "New"
    assert claims_of(second)["iat"] >= claims_of(first)["iat"]
    assert current(client, customer_id) == second
    assert verify(client, first) == {"valid": True, "code": "SUPERSEDED", "claims": claims_of(first)}
    assert verify(client, second) == {"valid": True, "code": "VALID", "claims": claims_of(second)}
    assert get_license(client, customer_id, bearer(first)).json["license"] == second
    assert len(history(customer_id)) == 2


def test_a_license_is_renewed_when_half_its_life_is_gone(client, sql, customer):
    for days, is_new in ((6, False), (8, True)):
        sql(
            """
            UPDATE licenses
               SET issued_at = now() - %(age)s, renews_at = now() - %(age)s + INTERVAL '7 days',
                   expires_at = now() - %(age)s + INTERVAL '14 days'
             WHERE superseded_at IS NULL
            """,
            age=timedelta(days=days),
        )
        token = current(client, customer["customerId"])
        assert (token != customer["license"]) is is_new
    # A trial's new license still ends with the trial.
    assert claims_of(token)["exp"] == claims_of(customer["license"])["exp"]


def test_plan_and_expiry_follow_the_subscription_and_the_settings(client, make_app, sql, customer, subscribe):
    customer_id = customer["customerId"]
    short = make_app(LICENSE_VALIDITY_DAYS="20", LICENSE_GRACE_DAYS="3").test_client()
    sql("UPDATE subscriptions SET status = 'canceled', ended_at = now()")
    subscription_id = subscribe(customer_id)
    for status, plan, days, short_days in (
        ("active", "professional", 37, 20),
        ("past_due", "professional", 7, 3),
        ("unpaid", "trial", 7, 3),
        ("canceled", "trial", 7, 3),
        ("never_heard_of", "trial", 7, 3),
    ):
        change = "UPDATE subscriptions SET status = %(status)s WHERE subscription_id = %(id)s"
        for service, expected in ((client, days), (short, short_days)):
            sql("UPDATE licenses SET recheck = TRUE, superseded_at = now()")
            sql(change, status=status, id=subscription_id)
            answer = get_license(service, customer_id).json
            claims = claims_of(answer["license"])
            assert (answer["status"], claims["plan"]) == (status, plan)
            assert claims["trial"]["isTrialMode"] is (plan == "trial")
            assert claims["subscription"]["status"] == ("expired" if status == "canceled" else status)
            assert abs(claims["exp"] - claims["iat"] - expected * 86400) < 600
            assert code(service, answer["license"]) == "VALID"


def test_what_an_operator_changes_by_sql_counts_from_the_next_request_on(client, sql, customer, subscribe):
    customer_id, other = customer["customerId"], make_customer(client)["customerId"]

    def granted(of):
        claims = claims_of(current(client, of))
        return claims["plan"], claims["features"]["maxDevices"]

    subscription_id = subscribe(customer_id, plan="enterprise")
    assert granted(customer_id) == ("enterprise", 999999)
    sql("UPDATE customers SET max_devices = 777 WHERE customer_id = %(id)s", id=customer_id)
    assert granted(customer_id) == ("enterprise", 777)
    where = "WHERE subscription_id = %(id)s"
    sql(f"UPDATE subscriptions SET customer_id = %(to)s {where}", to=other, id=subscription_id)
    assert (granted(customer_id), granted(other)) == (("trial", 5), ("enterprise", 999999))
    sql(f"DELETE FROM subscriptions {where}", id=subscription_id)
    assert granted(other) == ("trial", 5)


def test_licenses_follow_an_edited_plan_table_and_another_issuer(client, make_app, monkeypatch):
    customer = make_customer(client, plan="starter")
    untouched = make_customer(client, plan="professional")
    monkeypatch.setitem(PLANS, "starter", dataclasses.replace(PLANS["starter"], max_devices=12))
    monkeypatch.setattr("app.services.licenses._plan_table", lambda issuer: f"edited {issuer}"[:16])
    token = current(client, customer["customerId"])
    assert claims_of(token)["features"]["maxDevices"] == 12
    assert code(client, customer["license"]) == "SUPERSEDED"
    assert current(client, customer["customerId"]) == token
    assert current(client, untouched["customerId"]) == untouched["license"]
    renamed = make_app(LICENSE_ISSUER="renamed").test_client()
    token = current(renamed, customer["customerId"])
    assert (claims_of(token)["iss"], code(renamed, token)) == ("renamed", "VALID")


def test_many_at_once_after_a_change_get_the_same_license(make_app, sql, history):
    apps = [make_app(), make_app()]
    customer_id = make_customer(apps[0].test_client())["customerId"]
    sql("UPDATE customers SET company_name = 'Changed'")
    tokens = set(at_once(12, lambda number: current(apps[number % 2].test_client(), customer_id)))
    assert [claims_of(token)["customerName"] for token in tokens] == ["Changed"]
    assert len(history(customer_id)) == 2


def test_revoking_while_licenses_are_issued_leaves_none_that_serves(app, client, customer, history):
    customer_id = customer["customerId"]

    def act(number):
        with app.test_client() as own:
            if number == 0:
                return revoke(own, customer_id).status_code
            body = {"name": f"Name {number}"}
            own.patch(f"/api/customers/{customer_id}", json=body, headers=ADMIN)
            return get_license(own, customer_id).status_code

    assert set(at_once(6, act)) <= {200, 403}
    assert get_license(client, customer_id).status_code == 403
    assert all(row["revokedAt"] for row in history(customer_id))


@pytest.mark.parametrize(("days", "serves"), [(29.9, True), (30.01, False)])
def test_an_expired_license_serves_thirty_days_for_renewal_and_reports(app, client, customer, days, serves):
    customer_id = customer["customerId"]
    headers = bearer(expired(app, customer["license"], days=days))
    batch = {"reports": [report_body(customer_id, instanceId="other")]}
    answers = [
        get_license(client, customer_id, headers), report(client, customer_id, headers),
        client.post("/api/usage/reports", json=batch, headers=headers),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == ([200, 201, 200] if serves else [401] * 3)
    if serves:
        assert code(client, answers[0].json["license"]) == "VALID"
    stored = client.get(f"/api/usage/{customer_id}", headers=ADMIN).json["summary"]["totalReports"]
    assert stored == (2 if serves else 0)
    for path in (f"/api/customers/{customer_id}", f"/api/usage/{customer_id}"):
        answer = client.get(path, headers=headers)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


def test_a_license_younger_than_a_restored_backup_serves_for_renewal_and_reports_only(
    app, client, sql, customer
):
    customer_id = customer["customerId"]
    sql("UPDATE licenses SET issued_at = issued_at - INTERVAL '1 hour'")
    ahead = claims_of(customer["license"])["iat"] + 60
    young = resign(app, customer["license"], jti=str(uuid.uuid4()), iat=ahead)  # not on record
    assert (verify(client, young)["valid"], code(client, young)) == (True, "SUPERSEDED")
    answer = report(client, customer_id, bearer(young))
    assert answer.status_code == 201
    fresh = get_license(client, customer_id, bearer(young)).json["license"]
    batch = {"reports": [report_body(customer_id, instanceId="other")]}
    several = client.post("/api/usage/reports", json=batch, headers=bearer(young)).json
    assert (answer.json["license"], several["license"]) == (fresh, fresh)
    assert fresh not in (young, customer["license"])
    assert claims_of(fresh)["iat"] >= ahead
    assert code(client, fresh) == "VALID"
    for path in (f"/api/customers/{customer_id}", f"/api/usage/{customer_id}"):
        assert client.get(path, headers=bearer(young)).status_code == 401

    revoke(client, customer_id)  # which counts for it, also after a reinstatement
    sql("UPDATE customers SET tokens_revoked_at = TO_TIMESTAMP(%(at)s)", at=ahead)
    back = reinstate(client, customer_id).json["license"]
    assert code(client, young) == "REVOKED"
    assert get_license(client, customer_id, bearer(young)).status_code == 403
    assert report(client, customer_id, bearer(young)).status_code == 403
    assert client.get(f"/api/usage/{customer_id}", headers=ADMIN).json["summary"]["totalReports"] == 2
    assert get_license(client, customer_id, bearer(back)).status_code == 200

    strange = resign(app, customer["license"], sub=NOBODY, jti=str(uuid.uuid4()))
    assert verify(client, strange) == {"valid": False, "code": "MALFORMED"}
    assert get_license(client, NOBODY, bearer(strange)).status_code == 401


def test_revoking_takes_everything_back_until_it_is_reinstated(client, customer, history):
    customer_id, first = customer["customerId"], customer["license"]
    second = renewed(client, customer_id)
    answer = revoke(client, customer_id, reason="leaked")
    assert (answer.status_code, answer.json["revoked"], answer.json["reason"]) == (200, True, "leaked")
    assert set(answer.json) == {"customerId", "revoked", "revokedAt", "reason"}
    for token in (first, second):
        assert code(client, token) == "REVOKED"
        assert get_license(client, customer_id, bearer(token)).status_code == 403
        assert report(client, customer_id, bearer(token)).status_code == 403
    assert get_license(client, customer_id).status_code == 403
    body = {"customerId": customer_id, "plan": "starter"}
    assert client.post("/api/subscriptions/create-trial", json=body, headers=ADMIN).status_code == 403
    by_admin = report(client, customer_id, ADMIN)
    assert (by_admin.status_code, "license" in by_admin.json) == (201, False)
    assert revoke(client, customer_id).json == answer.json  # twice is once
    assert [bool(row["revokedAt"]) for row in history(customer_id)] == [True, True]

    back = reinstate(client, customer_id)
    assert (back.json["revoked"], back.json["revokedAt"], back.json["reason"]) == (False, None, None)
    assert back.json["license"] == current(client, customer_id)
    assert code(client, back.json["license"]) == "VALID"
    assert claims_of(back.json["license"])["iat"] >= claims_of(second)["iat"]
    assert code(client, second) == "REVOKED"
    assert get_license(client, customer_id, bearer(second)).status_code == 403
    for act in (revoke, reinstate):
        assert act(client, NOBODY).status_code == 404


def test_verify_names_the_reason(app, client, customer, make_app, tmp_path):
    token = customer["license"]
    stale = expired(app, token, days=1)
    assert (verify(client, stale)["valid"], code(client, stale)) == (False, "EXPIRED")
    keys = {"PRIVATE": tmp_path / "private.pem", "PUBLIC": tmp_path / "public.pem"}
    stranger = make_app(**{f"LICENSE_{kind}_KEY_PATH": str(path) for kind, path in keys.items()})
    assert stranger.test_cli_runner().invoke(args=["keys", "generate"]).exit_code == 0
    forged = resign(stranger, token)
    assert verify(client, forged) == {"valid": False, "code": "UNKNOWN_KEY"}
    assert kid_of(forged) != kid_of(token)
    borrowed = f"{token.rpartition('.')[0]}.{forged.rpartition('.')[2]}"
    assert verify(client, borrowed) == {"valid": False, "code": "BAD_SIGNATURE"}
    for text in ("", ".", "..", "a.b.c", "é.é.é", "x" * 9000, "\u0000", "\ud800"):
        assert verify(client, text) == {"valid": False, "code": "MALFORMED"}
    for body in ({}, {"license": None}, {"license": 5}, {"license": "a", "more": 1}):
        assert client.post("/api/licenses/verify", json=body).status_code == 422
    revoke(client, customer["customerId"])
    assert code(client, stale) == "REVOKED"  # named before EXPIRED


class TestRevocationList:
    def listed(self, client):
        answer = client.get("/api/licenses/revocations")
        keys = client.get("/.well-known/jwks.json").json
        claims = jwt.decode(answer.json["revocations"], keys, algorithms=["RS256"], issuer="zemfyre-billing")
        assert set(claims) == {"iss", "iat", "exp", "revoked"}
        return answer, claims

    def test_it_is_signed_can_be_cached_and_is_no_license(self, client):
        answer, claims = self.listed(client)
        assert claims["revoked"] == []
        assert claims["exp"] - claims["iat"] == 24 * 3600
        assert claims["iat"] <= time.time() < claims["exp"] - 22 * 3600
        assert datetime.fromisoformat(answer.json["expiresAt"]).timestamp() == claims["exp"]
        assert answer.headers["Cache-Control"] == "public, max-age=300"
        text = answer.json["revocations"]
        assert verify(client, text) == {"valid": False, "code": "MALFORMED"}
        assert client.get("/api/customers", headers=bearer(text)).status_code == 401

    @pytest.mark.parametrize("path", ["/api/licenses/revocations", "/.well-known/jwks.json"])
    def test_an_unchanged_answer_is_304(self, client, path):
        for _ in range(2):  # the full hour may pass in between
            etag = client.get(path).headers["ETag"]
            again = client.get(path, headers={"If-None-Match": etag})
            if again.status_code == 304:
                break
        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["Cache-Control"] == "public, max-age=300"

    def test_a_revoked_license_is_on_it_until_it_expires(self, client, sql, customer):
        make_customer(client)
        etag = client.get("/api/licenses/revocations").headers["ETag"]
        tokens = [customer["license"], renewed(client, customer["customerId"])]
        revoke(client, customer["customerId"])
        both = [claims_of(token)["jti"] for token in tokens]
        answer, claims = self.listed(client)
        assert (claims["revoked"], answer.headers["ETag"] != etag) == (both, True)
        reinstate(client, customer["customerId"])
        assert self.listed(client)[1]["revoked"] == both
        sql(
            """
            UPDATE licenses
               SET issued_at = now() - INTERVAL '2 days', renews_at = now() - INTERVAL '1 day',
                   expires_at = now() - INTERVAL '1 second'
             WHERE jti = %(jti)s
            """,
            jti=both[0],
        )
        assert self.listed(client)[1]["revoked"] == both[1:]


def test_without_a_signing_key_only_what_needs_none_goes_on(client, customer, make_app):
    customer_id = customer["customerId"]
    for setting, value in (
        ("LICENSE_PRIVATE_KEY_PATH", "/nowhere/private.pem"),
        ("LICENSE_PRIVATE_KEY", "bm90IGEga2V5"),  # pragma: allowlist secret
        ("LICENSE_PRIVATE_KEY_COMMAND", "false"),
    ):
        keyless = make_app(**{setting: value}).test_client()
        for path in ("/.well-known/jwks.json", "/api/licenses/revocations", "/api/licenses/public-key"):
            answer = keyless.get(path)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
            assert not {"LICENSE", "nowhere"} & set(answer.text.split())
        assert keyless.get("/health/ready").json["failing"] == {"signing_key": setting}
        token = current(client, customer_id)
        assert current(keyless, customer_id) == token
        rename(keyless, customer_id, setting)
        assert get_license(keyless, customer_id).status_code == 503
        assert code(client, current(client, customer_id)) == "VALID"
