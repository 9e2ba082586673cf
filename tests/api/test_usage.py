"""Usage reports one by one: what is taken, what is refused, what is told."""

import itertools
import math
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.errors import Forbidden
from app.queries import usage as queries
from app.schemas.paging import cursor
from app.services import usage as usages
from tests.conftest import ADMIN
from tests.factories import ago, bearer, make_customer, report_body

Sql = Callable[..., list[dict[str, Any]]]


def post(client: FlaskClient, body: Any, headers: dict[str, str] = ADMIN) -> Any:
    return client.post("/api/usage/report", json=body, headers=headers)


def stored(sql: Sql) -> int:
    return int(sql("SELECT COUNT(*) AS n FROM usage_reports")[0]["n"])


def test_report_of_the_first_seed_shape(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client, plan="professional")
    body = {
        "customerId": customer["customerId"],
        "instanceId": "us-east-1",
        "timestamp": "2025-10-21T10:00:00Z",
        "metrics": {"activeDevices": 23, "totalDevices": 30},
    } | {"timestamp": ago(hours=1)}
    answer = post(client, body, bearer(customer["license"]))
    assert answer.status_code == 201
    row = sql("SELECT id, created_at FROM usage_reports")[0]
    received = row["created_at"].astimezone(UTC).isoformat().replace("+00:00", "Z")
    assert answer.json == {
        "reportId": row["id"], "customerId": customer["customerId"], "instanceId": "us-east-1",
        "activeDevices": 23, "totalDevices": 30, "reportedAt": body["timestamp"], "receivedAt": received,
        "deviceLimit": 50, "utilization": 0.46, "overLimit": False, "lastReportAt": None,
    }  # fmt: skip


def test_report_of_the_second_seed_shape(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    before = datetime.now(UTC)
    body = {
        "customer_id": customer["customerId"],
        "instance_id": "dev-1",
        "active_devices": 5,
        "total_devices": 10,
    }
    answer = post(client, body, bearer(customer["license"]))
    assert answer.status_code == 201
    row = sql("SELECT * FROM usage_reports")[0]
    assert (row["instance_id"], row["active_devices"], row["total_devices"]) == ("dev-1", 5, 10)
    assert before <= row["reported_at"] <= datetime.now(UTC)
    assert answer.json["utilization"] == 1.0
    assert answer.json["overLimit"] is False
    assert "100.0%" in answer.json["warning"]


@pytest.mark.parametrize(
    "metrics", [{"active_devices": 2, "total_devices": 3}, {"activeDevices": 2, "total_devices": 3}]
)
def test_metrics_in_either_spelling(client: FlaskClient, sql: Sql, metrics: dict[str, int]) -> None:
    customer = make_customer(client)
    answer = post(client, {"customerId": customer["customerId"], "metrics": metrics})
    assert (answer.status_code, answer.json["instanceId"]) == (201, "default")
    assert sql("SELECT active_devices AS a, total_devices AS t FROM usage_reports") == [{"a": 2, "t": 3}]


BAD_FIELDS: Final = [
    *(({"activeDevices": bad}, "activeDevices") for bad in (True, "5", 1.0, 1e300, -1, None, [], {}, 11)),
    *(({"totalDevices": bad}, "totalDevices") for bad in (False, "10", 10.0, -1, None, 10_000_001)),
    *(
        ({"instanceId": bad}, "instanceId")
        for bad in ("", "i" * 101, "a\0", "a\n", "\ud800", "a\u2028b", "\u200e", 7, None, ["a"])
    ),
    *(
        ({"timestamp": bad}, "timestamp")
        for bad in (
            "2026-01-31T10:00:00", "2026-01-31", "yesterday", "", 1_790_000_000, None, "2026-02-30T10:00:00Z",
            "2026-01-31T25:00:00Z", "2026-01-31T10:00:00+25:00", "2026-01-31T10:00:00+00:60",
            "٢٠٢٦-01-31T10:00:00Z",
            "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
        )
    ),
    *(({"customerId": bad}, "customerId") for bad in ("", "a b", "cust\0", 7, None, "x" * 256, "\ud800")),
    ({"customer_id": "cust_abc"}, "customerId"),
    ({"active_devices": 5}, "activeDevices"),
    ({"metrics": {"activeDevices": 5, "totalDevices": 10}}, "metrics"),
    ({"metrics": [5, 10]}, "metrics"),
    ({"metrics": None}, "metrics"),
    ({"deviceCount": 5}, "deviceCount"),
]  # fmt: skip


def test_bad_field_is_named_and_nothing_is_stored(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    out_of_time = [({"timestamp": bad}, "timestamp") for bad in (ago(days=36), ago(hours=-1))]
    for change, field in (*BAD_FIELDS, *out_of_time):
        answer = post(client, report_body(customer["customerId"]) | change, bearer(customer["license"]))
        assert (answer.status_code, change) == (422, change)
        assert (list(answer.json["errors"]["json"]), change) == ([field], change)
    assert stored(sql) == 0


def test_bad_metrics(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    for metrics in (
        {},
        {"activeDevices": 5},
        {"activeDevices": 5, "totalDevices": 10, "customerId": "x"},
        {"activeDevices": 5, "active_devices": 5, "totalDevices": 10},
        {"activeDevices": True, "totalDevices": 10},
    ):
        assert post(client, {"customerId": customer["customerId"], "metrics": metrics}).status_code == 422
    assert stored(sql) == 0


def test_missing_field(client: FlaskClient, sql: Sql) -> None:
    body = report_body(make_customer(client)["customerId"])
    for field in ("customerId", "activeDevices", "totalDevices"):
        answer = post(client, {name: value for name, value in body.items() if name != field})
        assert (answer.status_code, list(answer.json["errors"]["json"])) == (422, [field])
    assert stored(sql) == 0


ODD_NUMBERS: Final = [
    ('{"activeDevices": 1e400, "totalDevices": 1e400}', 422),
    ('{"activeDevices": NaN, "totalDevices": 5}', 400),
    ('{"activeDevices": Infinity, "totalDevices": 5}', 400),
    ('{"activeDevices": -0.0, "totalDevices": 5}', 422),
    ('{"activeDevices": 1, "activeDevices": 2, "totalDevices": 5}', 400),
    (f'{{"activeDevices": 1{"0" * 4000}, "totalDevices": 5}}', 422),
    (f'{{"activeDevices": 1{"0" * 5000}, "totalDevices": 5}}', 400),
    ('{"activeDevices": 1, "totalDevices": 5', 400),
]


def test_odd_numbers(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    for figures, status in ODD_NUMBERS:
        body = f'{{"customerId": "{customer_id}", "metrics": {figures}}}'.encode()
        answer = client.post("/api/usage/report", data=body, content_type="application/json", headers=ADMIN)
        assert (answer.status_code, figures[:60]) == (status, figures[:60])
    assert stored(sql) == 0


def test_body_is_no_object(client: FlaskClient, sql: Sql) -> None:
    for body in ([], [1], "text", 5, True):
        assert (post(client, body).status_code, body) == (422, body)
    assert stored(sql) == 0


def test_limits_that_still_pass(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    bodies = [
        {"activeDevices": 10_000_000, "totalDevices": 10_000_000, "instanceId": "é" * 100},
        {"activeDevices": 0, "totalDevices": 0, "timestamp": ago(days=34, hours=23)},
        {"timestamp": ago(minutes=-4)},
        {"timestamp": (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%dt%H:%M:%S.123456789z")},
        {"timestamp": (datetime.now(UTC) - timedelta(days=2)).strftime("%Y-%m-%d %H:%M:%S+05:30")},
    ]
    for body in bodies:
        answer = post(client, report_body(customer["customerId"]) | body)
        assert answer.status_code == 201, answer.json
    assert stored(sql) == len(bodies)


def test_same_report_again_is_answered_with_the_first_row(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    body = report_body(customer["customerId"], timestamp=ago(minutes=1))
    first = post(client, body)
    again = post(client, body | {"timestamp": body["timestamp"].replace("Z", "+00:00")})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json == first.json | {"lastReportAt": body["timestamp"]}
    assert stored(sql) == 1


def test_other_figures_for_the_same_time_are_a_conflict(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    body = report_body(customer["customerId"], timestamp=ago(minutes=1))
    post(client, body)
    for change in ({"activeDevices": 4}, {"totalDevices": 11}):
        answer = post(client, body | change)
        assert answer.status_code == 409
        assert "new time" in answer.json["message"]
    assert sql("SELECT active_devices AS a, total_devices AS t FROM usage_reports") == [{"a": 5, "t": 10}]
    assert sql("SELECT active_devices AS a FROM instances") == [{"a": 5}]


def test_identical_reports_in_parallel_are_one_row(app: Flask, client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    body = report_body(customer["customerId"], timestamp=ago(minutes=1))
    barrier, answers = threading.Barrier(8), []

    def send() -> None:
        own = app.test_client()
        barrier.wait()
        answers.append(post(own, body, bearer(customer["license"])))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json["reportId"] for answer in answers}) == 1
    assert stored(sql) == 1


def test_whose_report(client: FlaskClient, sql: Sql) -> None:
    one, other = make_customer(client), make_customer(client)
    unknown = "cust_zzzzzzzzzzzzzzzz"
    own = bearer(one["license"])
    assert post(client, report_body(other["customerId"]), own).status_code == 403
    assert post(client, report_body(unknown), own).status_code == 403
    assert post(client, report_body(unknown)).status_code == 404
    assert post(client, report_body(one["customerId"]), {}).status_code == 401
    assert post(client, report_body(one["customerId"]), bearer(one["license"] + "x")).status_code == 401
    assert stored(sql) == 0


def test_revoked_license_reports_nothing(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    own = bearer(customer["license"])
    assert post(client, report_body(customer["customerId"]), own).status_code == 201
    client.post(f"/api/licenses/{customer['customerId']}/revoke", headers=ADMIN)
    assert post(client, report_body(customer["customerId"]), own).status_code == 403
    assert client.post("/api/usage/reports", json={"reports": [1]}, headers=own).status_code == 403
    assert stored(sql) == 1
    # The operator can still put on record what was used.
    assert post(client, report_body(customer["customerId"])).status_code == 201


def test_license_of_an_erased_customer_reports_nothing(client: FlaskClient, console: Any, sql: Sql) -> None:
    customer = make_customer(client)
    done = console("customer", "erase", "--id", customer["customerId"], "--yes")
    assert done.exit_code == 0, done.output
    answer = post(client, report_body(customer["customerId"]), bearer(customer["license"]))
    assert answer.status_code == 401
    assert post(client, report_body(customer["customerId"])).status_code == 404
    assert stored(sql) == 0


def _expire(app: Flask, sql: Sql, customer_id: str, days: float) -> str:
    """The token of a license whose life ended that many days ago."""
    from app.licenses import sign

    held = app.extensions["parts"]
    claims = {
        "iss": held.settings.license_issuer, "sub": customer_id, "jti": str(uuid.uuid4()),
        "iat": int((datetime.now(UTC) - timedelta(days=days + 10)).timestamp()),
        "exp": int((datetime.now(UTC) - timedelta(days=days)).timestamp()),
    }  # fmt: skip
    token = sign(claims, held.keyring.signing_key())
    sql(
        """
        INSERT INTO licenses (jti, customer_id, kid, plan, status, device_limit, token, fingerprint,
                              issued_at, renews_at, expires_at, superseded_at)
        SELECT %(jti)s::UUID, customer_id, kid, plan, status, device_limit, %(token)s, fingerprint,
               TO_TIMESTAMP(%(iat)s), TO_TIMESTAMP(%(exp)s), TO_TIMESTAMP(%(exp)s), CURRENT_TIMESTAMP
          FROM licenses
        """,
        **claims,
        token=token,
    )
    return token


def test_expired_license_still_reports_for_thirty_days(app: Flask, client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    token = _expire(app, sql, customer["customerId"], 29.9)
    answer = post(client, report_body(customer["customerId"]), bearer(token))
    assert (answer.status_code, answer.json["license"]) == (201, customer["license"])
    batch = {"reports": [report_body(customer["customerId"], timestamp=ago(hours=1))]}
    assert client.post("/api/usage/reports", json=batch, headers=bearer(token)).json["accepted"] == 1
    assert client.get(f"/api/usage/{customer['customerId']}", headers=bearer(token)).status_code == 401
    assert stored(sql) == 2


def test_license_expired_for_longer_reports_nothing(app: Flask, client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    token = _expire(app, sql, customer["customerId"], 30.1)
    assert post(client, report_body(customer["customerId"]), bearer(token)).status_code == 401
    assert stored(sql) == 0


def test_superseded_license_is_renewed_by_the_report(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    customer_id = customer["customerId"]
    started = client.post(
        "/api/subscriptions/create-trial",
        json={"customerId": customer_id, "plan": "professional"},
        headers=ADMIN,
    ).json
    answer = post(client, report_body(customer_id, timestamp=ago(hours=2)), bearer(customer["license"]))
    assert answer.status_code == 201
    assert answer.json["license"] == started["license"] != customer["license"]
    assert answer.json["deviceLimit"] == 50
    later = post(client, report_body(customer_id, timestamp=ago(hours=1)), bearer(started["license"]))
    assert "license" not in later.json
    assert stored(sql) == 2


def test_entitlement_that_changed_by_sql_renews_the_license(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client, plan="professional")
    sql("UPDATE subscriptions SET trial_ends_at = CURRENT_TIMESTAMP - INTERVAL '1 minute'")
    by_admin = post(client, report_body(customer["customerId"], timestamp=ago(hours=1)))
    assert by_admin.json["deviceLimit"] == 5
    answer = post(client, report_body(customer["customerId"]), bearer(customer["license"]))
    assert (answer.json["deviceLimit"], answer.json["utilization"]) == (5, 1.0)
    assert answer.json["license"] != customer["license"]
    assert sql("SELECT plan FROM licenses WHERE superseded_at IS NULL") == [{"plan": "trial"}]


def test_renewing_many_at_once_does_not_exhaust_the_pool(
    make_app: Callable[..., Flask], client: FlaskClient, sql: Sql
) -> None:
    customers = [make_customer(client) for _ in range(6)]
    sql("UPDATE licenses SET renews_at = issued_at, issued_at = issued_at - INTERVAL '1 second'")
    small = make_app(DB_POOL_SIZE="2")
    barrier, answers = threading.Barrier(6), []

    def send(customer: dict[str, Any]) -> None:
        own = small.test_client()
        barrier.wait()
        answers.append(post(own, report_body(customer["customerId"]), bearer(customer["license"])))

    threads = [threading.Thread(target=send, args=(customer,)) for customer in customers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [201] * 6
    assert all(answer.json["license"] for answer in answers)
    assert stored(sql) == 6


def test_last_report_at_tells_where_an_instance_stands(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    first, second, late = ago(hours=5), ago(hours=1), ago(hours=3)
    told = [
        post(client, report_body(customer_id, timestamp=at)).json["lastReportAt"]
        for at in (first, second, late)
    ]
    assert told == [None, first, second]
    other = post(client, report_body(customer_id, instanceId="dev-2"))
    assert other.json["lastReportAt"] is None
    assert stored(sql) == 4


def test_over_the_limit_is_stored_and_said(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    answer = post(client, report_body(customer_id, 7, 9)).json
    assert (answer["deviceLimit"], answer["utilization"], answer["overLimit"]) == (5, 1.4, True)
    assert "7 of 5" in answer["warning"]
    shown = client.get(f"/api/usage/{customer_id}", headers=ADMIN).json["summary"]
    assert (shown["currentActive"], shown["remaining"], shown["utilization"]) == (7, 0, 1.4)
    assert sql("SELECT active_devices AS a FROM usage_reports") == [{"a": 7}]


def test_warning_adds_up_the_instances(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    one = post(client, report_body(customer_id, 2, 2)).json
    two = post(client, report_body(customer_id, 2, 2, instanceId="dev-2")).json
    assert "warning" not in one
    assert "4 of 5" in two["warning"]
    assert stored(sql) == 2


def test_unlimited_is_null(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client, plan="enterprise")["customerId"]
    answer = post(client, report_body(customer_id, 900, 1000)).json
    assert (answer["deviceLimit"], answer["utilization"], answer["overLimit"]) == (None, None, False)
    assert "warning" not in answer
    shown = client.get(f"/api/usage/{customer_id}", headers=ADMIN).json
    assert shown["deviceLimit"] is None
    assert [shown["summary"][name] for name in ("limit", "remaining", "utilization")] == [None] * 3
    assert sql("SELECT kind FROM usage_alerts") == []


def test_history_pages_are_complete_while_reports_arrive(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    times = [ago(hours=hours // 2) for hours in range(60)]
    expected = [
        post(client, report_body(customer_id, timestamp=at, instanceId=f"i{n}")).json["reportId"]
        for n, at in enumerate(times)
    ]
    seen, cursor = [], None
    for _ in itertools.count():
        query = {"limit": 7, "days": 30} | ({"cursor": cursor} if cursor else {})
        page = client.get(f"/api/usage/{customer_id}", query_string=query, headers=ADMIN).json
        seen += page["reports"]
        cursor = page["nextCursor"]
        if cursor is None:
            break
        post(client, report_body(customer_id))
    ids = [report["reportId"] for report in seen]
    assert len(ids) == len(set(ids))
    assert set(expected) <= set(ids)
    assert [report["reportedAt"] for report in seen] == sorted(
        (report["reportedAt"] for report in seen), reverse=True
    )


def test_last_full_page_says_that_it_is_the_last(client: FlaskClient) -> None:
    customer_id = make_customer(client)["customerId"]
    for n in range(4):
        post(client, report_body(customer_id, timestamp=ago(hours=n)))
    pages = []
    cursor: str | None = ""
    while cursor is not None:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = client.get(f"/api/usage/{customer_id}", query_string=query, headers=ADMIN).json
        pages.append(len(page["reports"]))
        cursor = page["nextCursor"]
    assert pages == [2, 2]


BAD_QUERIES: Final[list[dict[str, Any]]] = [
    {"cursor": "x"},
    {"cursor": ""},
    {"cursor": "AAAAAFsxXQ"},
    {"cursor": "é"},
    {"limit": 0},
    {"limit": 201},
    {"limit": "x"},
    {"limit": "1.5"},
    {"limit": "1_0"},
    {"days": "+5"},
    {"days": 0},
    {"days": 401},
    {"offset": 1},
    {"days": [1, 2]},
]


def test_revoked_while_it_reports(client: FlaskClient, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    customer = make_customer(client, plan="starter")
    sql("UPDATE licenses SET recheck = TRUE")
    sql("UPDATE subscriptions SET plan = 'professional'")

    def revoked(*_: Any) -> None:
        raise Forbidden("This customer's licenses are revoked. An operator can reinstate them.")

    monkeypatch.setattr(usages, "current_license", revoked)
    answer = post(client, report_body(customer["customerId"]), bearer(customer["license"]))
    assert (answer.status_code, "license" in answer.json, answer.json["deviceLimit"]) == (201, False, 50)
    assert len(sql("SELECT 1 FROM usage_reports")) == 1


@pytest.mark.parametrize("batch", [False, True])
def test_deleted_by_an_operator_while_it_comes_again(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, batch: bool
) -> None:
    body = report_body(make_customer(client)["customerId"], timestamp=ago(minutes=1))
    assert post(client, body).status_code == 201
    monkeypatch.setattr(queries, "select_usage_reports_by_key", lambda *_: [])
    if not batch:
        answer = post(client, body)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        return
    fresh = body | {"timestamp": ago(minutes=2)}
    answer = client.post("/api/usage/reports", json={"reports": [body, fresh]}, headers=ADMIN)
    assert [result["status"] for result in answer.json["results"]] == [503, 201]


def test_bad_query(client: FlaskClient) -> None:
    customer_id = make_customer(client)["customerId"]
    for query in BAD_QUERIES:
        for path in (f"/api/usage/{customer_id}", "/api/usage"):
            answer = client.get(path, query_string=query, headers=ADMIN)
            assert (answer.status_code, query) == (422, query)
            assert list(answer.json["errors"]["query"]) == list(query)


def test_tampered_cursor(client: FlaskClient) -> None:
    customer_id = make_customer(client)["customerId"]
    for n in range(3):
        post(client, report_body(customer_id, timestamp=ago(hours=n)))
    path = f"/api/usage/{customer_id}"
    cursor = client.get(path, query_string={"limit": 1}, headers=ADMIN).json["nextCursor"]
    for position in range(len(cursor)):
        other = "A" if cursor[position] != "A" else "B"
        bad = cursor[:position] + other + cursor[position + 1 :]
        assert client.get(path, query_string={"cursor": bad}, headers=ADMIN).status_code == 422
    good = client.get(path, query_string={"cursor": cursor}, headers=ADMIN)
    assert len(good.json["reports"]) == 2


@pytest.mark.parametrize(
    ("moment", "status"),
    [
        ("2026-01-31T00:00:00+23:59", 200), ("0001-01-01T00:00:00+01:00", 422), ("2026-01-31T00:00:00", 422),
        ("2026-01-31T00:00:00+23:59:59", 422), (5, 422),
    ],
)  # fmt: skip
def test_a_cursor_that_was_never_given_out(client: FlaskClient, moment: Any, status: int) -> None:
    path = f"/api/usage/{make_customer(client)['customerId']}"
    answer = client.get(path, query_string={"cursor": cursor(moment, 5)}, headers=ADMIN)
    assert answer.status_code == status


def test_who_sees_usage(client: FlaskClient) -> None:
    one, other = make_customer(client), make_customer(client)
    path = f"/api/usage/{one['customerId']}"
    assert client.get(path, headers=bearer(one["license"])).status_code == 200
    assert client.get(path, headers=bearer(other["license"])).status_code == 403
    assert client.get(path).status_code == 401
    assert client.get("/api/usage", headers=bearer(one["license"])).status_code == 403
    assert client.get("/api/usage/cust_zzzzzzzzzzzzzzzz", headers=ADMIN).status_code == 404
    assert client.get("/api/usage/%00", headers=ADMIN).status_code == 404


def test_usage_of_nobody_yet(client: FlaskClient) -> None:
    customer_id = make_customer(client)["customerId"]
    assert client.get(f"/api/usage/{customer_id}", headers=ADMIN).json == {
        "customerId": customer_id, "plan": "trial", "deviceLimit": 5, "reports": [], "nextCursor": None,
        "silentInstances": [],
        "summary": {
            "totalReports": 0, "avgActive": 0.0, "peakActive": 0, "currentActive": 0, "currentTotal": 0,
            "limit": 5, "remaining": 5, "utilization": 0.0,
        },
    }  # fmt: skip


def test_silent_instances(client: FlaskClient, console: Any) -> None:
    customer_id = make_customer(client)["customerId"]
    for name, hours in (("fresh", 47.9), ("silent", 48.1), ("long-gone", 400)):
        post(client, report_body(customer_id, timestamp=ago(hours=hours), instanceId=name))
    shown = client.get(f"/api/usage/{customer_id}", headers=ADMIN).json["silentInstances"]
    assert [silent["instanceId"] for silent in shown] == ["long-gone", "silent"]
    listed = console("usage", "alerts").stdout
    assert "long-gone" in listed
    assert "fresh" not in listed


def test_overview_pages_show_everybody_once(client: FlaskClient) -> None:
    customers = [make_customer(client, name=f"C{n}", company="Firm") for n in range(5)]
    post(client, report_body(customers[3]["customerId"], 4, 5))
    lines, query = [], {"limit": 2}
    while True:
        page = client.get("/api/usage", query_string=query, headers=ADMIN).json
        lines += page["customers"]
        if page["nextCursor"] is None:
            break
        query["cursor"] = page["nextCursor"]
    assert [line["customerId"] for line in lines] == [customer["customerId"] for customer in customers]
    assert lines[3] == {
        "customerId": customers[3]["customerId"], "email": customers[3]["email"], "name": "C3",
        "companyName": "Firm", "plan": "trial", "status": "trialing", "deviceLimit": 5,
        "summary": {
            "totalReports": 1, "avgActive": 4.0, "peakActive": 4, "currentActive": 4, "currentTotal": 5,
            "limit": 5, "remaining": 1, "utilization": 0.8,
        },
    }  # fmt: skip
    one = client.get(f"/api/usage/{customers[3]['customerId']}", headers=ADMIN).json
    assert one["summary"] == lines[3]["summary"]


@pytest.mark.parametrize(
    ("active", "limit", "level"),
    [(3, 5, 0), (4, 5, 80), (5, 5, 100), (6, 5, 100), (7, 9, 0), (8, 9, 80), (10**6, None, 0), (0, 1, 0)],
)
def test_thresholds(active: int, limit: int | None, level: int) -> None:
    assert usages.usage_level(active, limit) == level
    assert (usages.usage_warning(active, limit) is None) == (level == 0)
    assert usages.utilization(active, limit) == (None if limit is None else active / limit)
    assert math.isclose(usages.utilization(active, limit) or 0, active / (limit or math.inf))
