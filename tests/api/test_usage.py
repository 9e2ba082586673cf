"""Usage reports: what is taken in, what is refused, and the figures that they sum up to."""

import json
import random
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from time import monotonic
from typing import Any, Final

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from app.entitlements import KNOWN_STATUSES, entitle
from app.errors import Unavailable
from app.schemas.paging import cursor
from app.services import usage
from app.services.customers import get_customer_with_subscriptions
from tests.api.conftest import at_once, pages
from tests.conftest import ADMIN
from tests.factories import ago, bearer, make_customer, report_body

Sql = Callable[..., list[dict[str, Any]]]
UNKNOWN: Final = "cust_zzzzzzzzzzzzzzzz"
JSON: Final = {"Content-Type": "application/json"}


def post(client: FlaskClient, body: Any, headers: dict[str, str] = ADMIN) -> Any:
    return client.post("/api/usage/report", json=body, headers=headers)


def post_batch(client: FlaskClient, items: Any, headers: dict[str, str] = ADMIN) -> Any:
    return client.post("/api/usage/reports", json={"reports": items}, headers=headers)


def show(client: FlaskClient, customer_id: str, **query: Any) -> dict[str, Any]:
    answer = client.get(f"/api/usage/{customer_id}", query_string=query, headers=ADMIN)
    assert answer.status_code == 200, answer.json
    return dict(answer.json)


def stored(sql: Sql) -> int:
    return int(sql("SELECT COUNT(*) AS n FROM usage_reports")[0]["n"])


def test_report_of_the_first_seed_shape(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client, plan="professional")
    body = {
        "customerId": customer["customerId"], "instanceId": "us-east-1", "timestamp": ago(hours=1),
        "metrics": {"activeDevices": 23, "totalDevices": 30},
    }  # fmt: skip
    answer = post(client, body, bearer(customer["license"]))
    row = sql("SELECT id, created_at FROM usage_reports")[0]
    assert (answer.status_code, answer.json) == (201, {
        "reportId": row["id"], "customerId": customer["customerId"], "instanceId": "us-east-1",
        "activeDevices": 23, "totalDevices": 30, "reportedAt": body["timestamp"],
        "receivedAt": row["created_at"].isoformat().replace("+00:00", "Z"),
        "deviceLimit": 50, "utilization": 0.46, "overLimit": False, "lastReportAt": None,
    })  # fmt: skip


SPELLINGS: Final[list[dict[str, Any]]] = [
    {"customer_id": "", "instance_id": "dev-1", "active_devices": 2, "total_devices": 3},
    {"customerId": "", "metrics": {"active_devices": 2, "totalDevices": 3}},
    {"customerId": "", "active_agents": 2, "total_agents": 3},
    {"customerId": "", "metrics": {"activeAgents": 2, "totalAgents": 3}},
]


@pytest.mark.parametrize("body", SPELLINGS)
def test_spellings(client: FlaskClient, sql: Sql, body: dict[str, Any]) -> None:
    customer = make_customer(client)
    body = body | {next(iter(body)): customer["customerId"]}
    before = datetime.now(UTC)
    for answer in (post(client, body, bearer(customer["license"])), post_batch(client, [body])):
        assert answer.status_code in (200, 201), answer.json
    rows = sql("SELECT instance_id, active_devices AS a, total_devices AS t, reported_at FROM usage_reports")
    assert [(row["a"], row["t"], row["instance_id"]) for row in rows] == [
        (2, 3, body.get("instance_id", "default"))
    ] * 2
    assert all(before <= row["reported_at"] <= datetime.now(UTC) for row in rows)


BAD_FIELDS: Final = [
    *(
        ({"activeDevices": bad}, "activeDevices")
        for bad in (True, "5", 1.0, -0.0, 1e300, 10**4000, -1, None, [], {}, 11)
    ),
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
            "2026-01-31T10:00:00+0000", "٢٠٢٦-01-31T10:00:00Z", "0001-01-01T00:00:00+23:59",
            "9999-12-31T23:59:59-23:59", ago(days=36), ago(hours=-1),
        )
    ),
    *(({"customerId": bad}, "customerId") for bad in ("", "a b", "cust\0", 7, None, "x" * 256, "\ud800")),
    ({"customer_id": "cust_abc"}, "customerId"),
    ({"active_devices": 5}, "activeDevices"),
    ({"activeAgents": 5}, "activeDevices"),
    *(
        ({"metrics": bad}, "metrics")
        for bad in ({"activeDevices": 5, "totalDevices": 10}, {"customerId": "x"}, {"x": 1}, [5, 10], None)
    ),
    ({"deviceCount": 5}, "deviceCount"),
]  # fmt: skip


def test_bad_field_is_named_and_nothing_is_stored(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    good, own = report_body(customer["customerId"]), bearer(customer["license"])
    for change, field in BAD_FIELDS:
        answer = post(client, good | change, own)
        assert (answer.status_code, list(answer.json["errors"]["json"]), change) == (422, [field], change)
        [result] = post_batch(client, [good | change]).json["results"]
        assert (result["status"], result["errors"]) == (422, answer.json["errors"])
    beyond_floats = json.dumps(good).replace(": 10", ": 1e400")
    answer = client.post("/api/usage/report", data=beyond_floats, headers=own | JSON)
    assert (answer.status_code, list(answer.json["errors"]["json"])) == (422, ["totalDevices"])
    for field in ("customerId", "activeDevices", "totalDevices"):
        answer = post(client, {name: value for name, value in good.items() if name != field})
        assert (answer.status_code, list(answer.json["errors"]["json"])) == (422, [field])
    assert stored(sql) == 0


def test_message_says_what_to_send(client: FlaskClient, sql: Sql) -> None:
    for body, message in (
        ([], '{"reports": […]}'), ([1], '{"reports": […]}'), ("text", '{"reports": […]}'),
        (report_body(UNKNOWN, timestamp="2026-01-31T10:00:00+0000"), "with a colon"),
        (report_body(UNKNOWN, timestamp=1_790_000_000), "not a number of seconds"),
    ):  # fmt: skip
        answer = post(client, body)
        assert answer.status_code == 422
        assert message in json.dumps(answer.json, ensure_ascii=False).replace("\\", "")
        assert client.post("/api/usage/reports", json=[body], headers=ADMIN).status_code == 422
    assert stored(sql) == 0


def test_limits_that_still_pass(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    bodies = [
        {"activeDevices": 10_000_000, "totalDevices": 10_000_000, "instanceId": "é" * 100},
        {"activeDevices": 0, "totalDevices": 0, "timestamp": ago(days=34, hours=23)},
        {"timestamp": ago(minutes=-4)},
        {"timestamp": yesterday.strftime("%Y-%m-%dt%H:%M:%S.123456789z")},
        {"timestamp": yesterday.strftime("%Y-%m-%d %H:%M:%S+05:30")},
    ]
    for body in bodies:
        assert post(client, report_body(customer["customerId"]) | body).status_code == 201
    assert stored(sql) == len(bodies)


def test_same_report_again_is_one_row_and_other_figures_are_refused(
    app: Flask, client: FlaskClient, sql: Sql
) -> None:
    customer = make_customer(client)
    body = report_body(customer["customerId"], timestamp=ago(minutes=1))
    answers = at_once(8, lambda _: post(app.test_client(), body, bearer(customer["license"])))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    [first] = [answer.json for answer in answers if answer.status_code == 201]
    assert {answer.json["reportId"] for answer in answers} == {first["reportId"]}
    again = post(client, body | {"timestamp": body["timestamp"].replace("Z", "+00:00")})
    assert (again.status_code, again.json) == (200, first | {"lastReportAt": body["timestamp"]})
    for change in ({"activeDevices": 4}, {"totalDevices": 11}):
        refused = post(client, body | change)
        assert (refused.status_code, "new time" in refused.json["message"]) == (409, True)
    assert sql("SELECT active_devices AS a, total_devices AS t FROM usage_reports") == [{"a": 5, "t": 10}]
    assert show(client, customer["customerId"])["summary"]["currentActive"] == 5


def test_license_that_is_no_longer_current_is_renewed_by_the_report(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    customer_id = customer["customerId"]
    plan = {"customerId": customer_id, "plan": "professional"}
    started = client.post("/api/subscriptions/create-trial", json=plan, headers=ADMIN).json
    old, new = bearer(customer["license"]), bearer(started["license"])
    answer = post(client, report_body(customer_id, timestamp=ago(hours=2)), old)
    assert answer.json["license"] == started["license"] != customer["license"]
    assert answer.json["deviceLimit"] == 50
    assert "license" not in post(client, report_body(customer_id), new).json
    batches = [post_batch(client, [report_body(customer_id)], own).json for own in (old, new)]
    assert [batch.get("license") for batch in batches] == [started["license"], None]
    assert stored(sql) == 4

    sql("UPDATE subscriptions SET trial_ends_at = CURRENT_TIMESTAMP - INTERVAL '1 minute'")
    by_admin = post(client, report_body(customer_id, timestamp=ago(hours=1)))
    assert (by_admin.json["deviceLimit"], "license" in by_admin.json) == (5, False)
    answer = post(client, report_body(customer_id), new)
    assert (answer.json["deviceLimit"], answer.json["utilization"]) == (5, 1.0)
    shown = client.get(f"/api/licenses/{customer_id}", headers=ADMIN).json
    assert (shown["plan"], shown["license"]) == ("trial", answer.json["license"])


def test_no_license_now_is_no_error(client: FlaskClient, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    customer = make_customer(client, plan="starter")
    sql("UPDATE subscriptions SET plan = 'professional'")

    def no_key(*_: Any, **__: Any) -> None:
        raise Unavailable("Licenses cannot be signed at the moment.")

    monkeypatch.setattr(usage, "current_license", no_key)
    answer = post(client, report_body(customer["customerId"]), bearer(customer["license"]))
    assert (answer.status_code, "license" in answer.json, answer.json["deviceLimit"]) == (201, False, 50)
    assert stored(sql) == 1


def test_report_says_what_the_whole_customer_uses_and_when_the_instance_reported_last(
    client: FlaskClient, sql: Sql
) -> None:
    customer_id, earlier = make_customer(client)["customerId"], ago(hours=2)
    post(client, report_body(customer_id, 5, 5, instanceId="gone", timestamp=ago(days=7, minutes=1)))
    one = post(client, report_body(customer_id, 3, 4, instanceId="a", timestamp=earlier)).json
    assert (one["utilization"], one["overLimit"], "warning" in one) == (0.6, False, False)
    two = post(client, report_body(customer_id, 4, 4, instanceId="b")).json
    assert (two["deviceLimit"], two["utilization"], two["overLimit"]) == (5, 1.4, True)
    assert "7 of 5" in two["warning"]
    late = post(client, report_body(customer_id, 0, 0, instanceId="b", timestamp=ago(hours=1))).json
    assert (late["utilization"], late["lastReportAt"]) == (1.4, two["reportedAt"])
    again = post(client, report_body(customer_id, 3, 4, instanceId="a")).json
    assert [one["lastReportAt"], two["lastReportAt"], again["lastReportAt"]] == [None, None, earlier]
    summary = show(client, customer_id)["summary"]
    assert (summary["currentActive"], summary["remaining"], summary["utilization"]) == (7, 0, 1.4)
    assert stored(sql) == 5


def test_unlimited_is_null(client: FlaskClient, console: Any) -> None:
    customer_id = make_customer(client, plan="enterprise")["customerId"]
    answer = post(client, report_body(customer_id, 900, 1000)).json
    assert (answer["deviceLimit"], answer["utilization"], answer["overLimit"]) == (None, None, False)
    assert "warning" not in answer
    shown = show(client, customer_id)
    assert [shown["summary"][name] for name in ("limit", "remaining", "utilization")] == [None] * 3
    assert shown["deviceLimit"] is None
    assert json.loads(console("usage", "alerts", "--json").stdout) == []


def test_each_item_of_a_batch_is_on_its_own(client: FlaskClient, sql: Sql) -> None:
    customer, other = make_customer(client), make_customer(client)
    own, customer_id = bearer(customer["license"]), customer["customerId"]
    one, two, three = (report_body(customer_id, timestamp=ago(hours=n)) for n in (1, 2, 3))
    post(client, three, own)
    items = [
        one, one | {"activeDevices": -1}, report_body(other["customerId"]), "nonsense",
        one | {"activeDevices": 4}, two | {"timestamp": "2020-01-01T00:00:00Z"}, one, three,
        three | {"totalDevices": 12}, two, report_body(UNKNOWN), None, {},
    ]  # fmt: skip
    body = post_batch(client, items, own).json
    assert [(result["index"], result["status"]) for result in body["results"]] == list(
        enumerate([201, 422, 403, 422, 409, 422, 200, 200, 409, 201, 403, 422, 422])
    )
    assert (body["accepted"], body["duplicates"], body["rejected"]) == (2, 2, 9)
    assert body["results"][0]["reportId"] == body["results"][6]["reportId"]
    assert all(("reportId" in result) != ("errors" in result) for result in body["results"])
    assert sql("SELECT customer_id AS c, COUNT(*) AS n FROM usage_reports GROUP BY 1") == [
        {"c": customer_id, "n": 3}
    ]
    mixed = post_batch(client, [report_body(UNKNOWN), report_body(other["customerId"])]).json
    assert [result["status"] for result in mixed["results"]] == [404, 201]


def test_backlog_of_a_month_in_one_call_and_again(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    items = [report_body(customer["customerId"], timestamp=ago(hours=n * 0.8)) for n in range(1000)]
    first, again = (post_batch(client, items, bearer(customer["license"])).json for _ in range(2))
    assert [(first[n], again[n]) for n in ("accepted", "duplicates")] == [(1000, 0), (0, 1000)]
    assert [result["reportId"] for result in first["results"]] == [
        result["reportId"] for result in again["results"]
    ]
    assert stored(sql) == 1000
    newest = post(client, report_body(customer["customerId"], timestamp=ago(minutes=-1)))
    assert newest.json["lastReportAt"] == items[0]["timestamp"]


def test_size_of_a_batch(client: FlaskClient, sql: Sql) -> None:
    item = report_body(make_customer(client)["customerId"], timestamp=ago(hours=1))
    for items in ([], [item] * 1001, {}, None, "x", 5):
        assert post_batch(client, items).status_code == 422
    extra = {"reports": [item], "x": 1}
    assert client.post("/api/usage/reports", json=extra, headers=ADMIN).status_code == 422
    assert stored(sql) == 0
    assert post_batch(client, [item] * 1000).json["duplicates"] == 999
    assert stored(sql) == 1


def test_batches_at_once_neither_block_nor_double(app: Flask, client: FlaskClient, sql: Sql) -> None:
    customers = [make_customer(client)["customerId"] for _ in range(3)]
    items = [
        report_body(customer_id, timestamp=ago(hours=n), instanceId=f"i{n % 3}")
        for n in range(30)
        for customer_id in customers
    ]
    orders = [items, items[::-1], items[45:] + items[:45], sorted(items, key=str)]
    answers = at_once(4, lambda n: post_batch(app.test_client(), orders[n]).json)
    assert sum(answer["accepted"] for answer in answers) == len(items)
    assert sum(answer["duplicates"] for answer in answers) == 3 * len(items)
    assert stored(sql) == len(items)


def test_history_pages_are_complete_while_reports_arrive(client: FlaskClient) -> None:
    customer_id = make_customer(client)["customerId"]
    bodies = [report_body(customer_id, timestamp=ago(hours=n // 2), instanceId=f"i{n}") for n in range(60)]
    expected = [result["reportId"] for result in post_batch(client, bodies).json["results"]]
    seen = []
    for page in pages(client, f"/api/usage/{customer_id}", limit=15, days=30):
        seen += [report["reportId"] for report in page["reports"]]
        post(client, report_body(customer_id))
    assert seen == sorted(expected, key=lambda i: (-(expected.index(i) // 2), i), reverse=True)
    assert len(seen) == 60  # the last page was full, and said that it is the last


BAD_QUERIES: Final[list[dict[str, Any]]] = [
    {"cursor": "AAAAAFsxXQ"}, {"limit": 201}, {"limit": "1.5"}, {"days": "+5"}, {"days": 0}, {"days": 401},
    {"offset": 1}, {"days": [1, 2]},
]  # fmt: skip


def test_bad_query(client: FlaskClient) -> None:
    customer_id = make_customer(client)["customerId"]
    for query in BAD_QUERIES:
        for path in (f"/api/usage/{customer_id}", "/api/usage"):
            answer = client.get(path, query_string=query, headers=ADMIN)
            assert (answer.status_code, list(answer.json["errors"]["query"])) == (422, list(query))


def test_cursor_that_was_never_given_out(client: FlaskClient) -> None:
    customer_id = make_customer(client)["customerId"]
    post_batch(client, [report_body(customer_id, timestamp=ago(hours=n)) for n in range(3)])
    path, given = f"/api/usage/{customer_id}", show(client, customer_id, limit=1)["nextCursor"]
    assert len(show(client, customer_id, cursor=given)["reports"]) == 2
    bad = [given[:n] + ("B" if given[n] == "A" else "A") + given[n + 1 :] for n in range(len(given))]
    bad += [cursor(moment, 5) for moment in ("0001-01-01T00:00:00+01:00", "2026-01-31T00:00:00")]  # type: ignore[arg-type]
    for text in [*bad, cursor(5, 5)]:
        assert client.get(path, query_string={"cursor": text}, headers=ADMIN).status_code == 422


def test_usage_of_nobody_yet(client: FlaskClient) -> None:
    customer_id = make_customer(client)["customerId"]
    assert show(client, customer_id) == {
        "customerId": customer_id, "plan": "trial", "deviceLimit": 5, "reports": [], "nextCursor": None,
        "silentInstances": [],
        "summary": {
            "totalReports": 0, "avgActive": 0.0, "peakActive": 0, "currentActive": 0, "currentTotal": 0,
            "limit": 5, "remaining": 5, "utilization": 0.0,
        },
    }  # fmt: skip


def test_retired_instance_counts_when_it_reports_again(client: FlaskClient, console: Any, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    for name, hours in (("fresh", 1), ("silent", 48.1), ("pod-7", 60)):
        post(client, report_body(customer_id, 2, 2, instanceId=name, timestamp=ago(hours=hours)))
    assert [i["instanceId"] for i in show(client, customer_id)["silentInstances"]] == ["pod-7", "silent"]
    retire = ("customer", "retire-instance", "--id", customer_id, "--instance")
    assert console(*retire, "pod-8").exit_code == 1
    assert console(*retire, "pod-7").exit_code == 0
    shown = show(client, customer_id)
    assert [instance["instanceId"] for instance in shown["silentInstances"]] == ["silent"]
    assert (shown["summary"]["currentActive"], shown["summary"]["totalReports"]) == (4, 3)
    assert sql("SELECT subject FROM audit_log WHERE action = 'instance.retire'") == [{"subject": "pod-7"}]
    assert post(client, report_body(customer_id, 2, 2, instanceId="fresh")).json["utilization"] == 0.8
    assert post(client, report_body(customer_id, 2, 2, instanceId="pod-7")).json["utilization"] == 1.2
    assert show(client, customer_id)["summary"]["currentActive"] == 6


def test_overview_pages_show_everybody_once(client: FlaskClient) -> None:
    customers = [make_customer(client, name=f"C{n}", companyName="Firm") for n in range(6)]
    post(client, report_body(customers[3]["customerId"], 4, 5))
    first, last = pages(client, "/api/usage", limit=3)  # the last is full, and says that it is the last
    lines = first["customers"] + last["customers"]
    assert [line["customerId"] for line in lines] == [customer["customerId"] for customer in customers]
    assert lines[3] == {
        "customerId": customers[3]["customerId"], "email": customers[3]["email"], "name": "C3",
        "companyName": "Firm", "plan": "trial", "status": "trialing", "deviceLimit": 5,
        "summary": show(client, customers[3]["customerId"])["summary"],
    }  # fmt: skip
    assert lines[3]["summary"] == {
        "totalReports": 1, "avgActive": 4.0, "peakActive": 4, "currentActive": 4, "currentTotal": 5,
        "limit": 5, "remaining": 1, "utilization": 0.8,
    }  # fmt: skip


LIMIT: Final = 50
# An instance, how many days ago, at which time of that day, and how many devices.
_clocks = st.sampled_from([time(0), time(0, 0, 0, 1), time(12, 30), time(23, 59, 59, 999_999)])
_reports = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(0, 3) | st.integers(0, 34), _clocks, st.integers(0, 80),
        st.integers(0, 20),
    ),
    max_size=25,
    unique_by=lambda report: report[:3],
)  # fmt: skip


def plain_summary(reports: list[dict[str, Any]], since: datetime) -> dict[str, Any]:
    """The contract's words as code: no SQL, no cleverness."""
    inside = [report for report in reports if report["at"] >= since]
    highest: dict[date, dict[str, int]] = defaultdict(dict)
    latest: dict[str, dict[str, Any]] = {}
    for report in sorted(inside, key=lambda report: report["at"]):
        day, name = report["at"].date(), report["instance"]
        highest[day][name] = max(highest[day].get(name, 0), report["active"])
        latest[name] = report
    totals = [sum(of_day.values()) for of_day in highest.values()]
    active = sum(report["active"] for report in latest.values())
    return {
        "totalReports": len(inside),
        "avgActive": pytest.approx(sum(totals) / len(totals) if totals else 0, rel=1e-12),
        "peakActive": max(totals, default=0),
        "currentActive": active,
        "currentTotal": sum(report["total"] for report in latest.values()),
        "limit": LIMIT,
        "remaining": max(0, LIMIT - active),
        "utilization": active / LIMIT,
    }


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(given_reports=_reports, days=st.sampled_from([1, 2, 7, 30, 400]), batched=st.integers(0, 25))
def test_figures_are_those_of_a_plain_computation(
    app: Flask, given_reports: list[tuple[int, int, time, int, int]], days: int, batched: int
) -> None:
    client = app.test_client()
    customer_id = make_customer(client, plan="professional")["customerId"]
    start = datetime.now(UTC)
    reports = [
        {"instance": f"i{instance}", "at": at, "active": active, "total": active + idle}
        for instance, back, clock, active, idle in given_reports
        if (at := datetime.combine(start.date() - timedelta(days=back), clock, UTC)) <= start
    ]
    bodies = [
        report_body(
            customer_id, report["active"], report["total"], instanceId=report["instance"],
            timestamp=report["at"].isoformat(),
        )
        for report in reports
    ]  # fmt: skip
    if bodies[:batched]:
        assert post_batch(client, bodies[:batched]).json["accepted"] == len(bodies[:batched])
    for body in bodies[batched:]:
        assert post(client, body).status_code == 201
    earliest = datetime.now(UTC) - timedelta(days=days)
    shown = show(client, customer_id, days=days, limit=200)
    latest = datetime.now(UTC) - timedelta(days=days)
    assume(not any(earliest <= report["at"] <= latest for report in reports))
    assert shown["summary"] == plain_summary(reports, latest)
    assert [datetime.fromisoformat(report["reportedAt"]) for report in shown["reports"]] == sorted(
        (report["at"] for report in reports if report["at"] >= latest), reverse=True
    )
    if reports:  # what a report answers is the same sum, over 7 days
        newest = max(reports, key=lambda report: report["at"])
        again = bodies[reports.index(newest)]
        week = plain_summary(reports, start - timedelta(days=7))
        assert post(client, again).json["utilization"] == week["utilization"]


SUBSCRIBE = """
    INSERT INTO subscriptions (subscription_id, stripe_subscription_id, customer_id, plan, status, paid,
                               current_period_starts_at, current_period_ends_at)
    VALUES ('sub_' || %(number)s, 'sub_' || %(number)s, %(customer_id)s, %(plan)s, %(status)s, TRUE,
            CURRENT_TIMESTAMP - INTERVAL '20 days', CURRENT_TIMESTAMP + %(days)s * INTERVAL '1 day')
"""
CHANGES = [
    SUBSCRIBE,
    "UPDATE subscriptions SET status = %(status)s"
    " WHERE customer_id = %(customer_id)s AND stripe_subscription_id IS NOT NULL",
    "UPDATE subscriptions SET plan = %(plan)s"
    " WHERE customer_id = %(customer_id)s AND stripe_subscription_id IS NOT NULL",
    "UPDATE subscriptions SET trial_ends_at = CURRENT_TIMESTAMP + %(days)s * INTERVAL '1 day'"
    " WHERE customer_id = %(customer_id)s AND stripe_subscription_id IS NULL",
    "UPDATE customers SET max_devices = %(devices)s WHERE customer_id = %(customer_id)s",
    "DELETE FROM subscriptions WHERE customer_id = %(customer_id)s AND plan = %(plan)s",
    "UPDATE licenses SET renews_at = issued_at WHERE customer_id = %(customer_id)s AND superseded_at IS NULL",
]


def test_limit_is_what_the_subscriptions_grant_whatever_changes(
    app: Flask, client: FlaskClient, sql: Sql
) -> None:
    chance = random.Random(5)
    ids = [make_customer(client, plan=plan)["customerId"] for plan in ("starter", "enterprise", "starter")]
    for number in range(100):
        customer_id = chance.choice(ids)
        sql(
            chance.choice(CHANGES),
            customer_id=customer_id,
            number=number,
            plan=chance.choice(["starter", "professional", "enterprise", "unknown"]),
            status=chance.choice([*sorted(KNOWN_STATUSES - {"expired"}), "unheard_of"]),
            days=chance.choice([-40, -1, 10, 400]),
            devices=chance.choice([None, 3, 70, 999_999]),
        )
        if chance.random() < 0.5:
            client.get(f"/api/licenses/{customer_id}", headers=ADMIN)
        if chance.random() < 0.2:
            client.post(
                f"/api/licenses/{customer_id}/{chance.choice(['revoke', 'reinstate'])}", headers=ADMIN
            )
        with app.app_context():
            granted = entitle(*get_customer_with_subscriptions(customer_id), datetime.now(UTC))
        lines = client.get("/api/usage", headers=ADMIN).json["customers"]
        line = next(line for line in lines if line["customerId"] == customer_id)
        found = client.get(f"/api/usage/{customer_id}", headers=ADMIN).json
        body = report_body(customer_id, instanceId=f"i{number}")
        report = client.post("/api/usage/report", json=body, headers=ADMIN).json
        assert (line["plan"], line["status"]) == (granted.plan.name, granted.status)
        assert found["plan"] == granted.plan.name
        limits = [line["deviceLimit"], line["summary"]["limit"], found["deviceLimit"], report["deviceLimit"]]
        assert limits == [granted.device_limit] * 4


def partitions(sql: Sql) -> dict[str, int]:
    """Rows by partition."""
    names = sql(
        "SELECT inhrelid::REGCLASS::TEXT AS n FROM pg_inherits WHERE inhparent = 'usage_reports'::REGCLASS"
    )
    return {row["n"]: sql(f"SELECT COUNT(*) AS n FROM {row['n']}")[0]["n"] for row in names}


def month(days_ago: float = 0) -> str:
    return (datetime.now(UTC) - timedelta(days=days_ago)).strftime("usage_reports_%Y_%m")


def next_month() -> str:
    return (datetime.now(UTC).replace(day=1) + timedelta(days=32)).strftime("usage_reports_%Y_%m")


def test_migrate_makes_this_month_and_the_next_and_a_report_what_it_lacks(
    client: FlaskClient, sql: Sql, console: Any
) -> None:
    assert partitions(sql) == {"usage_reports_default": 0, month(): 0, next_month(): 0}
    sql(f"DROP TABLE {next_month()}")
    assert console("db", "migrate").exit_code == 0
    assert partitions(sql)[next_month()] == 0

    customer_id = make_customer(client)["customerId"]
    sql(f"DROP TABLE {month()}, {next_month()}")
    body = report_body(customer_id, timestamp=ago(minutes=1))
    assert [post(client, body).status_code for _ in range(2)] == [201, 200]
    assert partitions(sql) == {"usage_reports_default": 0, month(): 1, next_month(): 0}
    assert post(client, report_body(customer_id, timestamp=ago(days=34))).status_code == 201
    assert partitions(sql)[month(34)] == 1
    assert show(client, customer_id, days=40)["summary"]["totalReports"] == 2


def test_partition_waits_for_a_backup_and_the_report_does_not(
    client: FlaskClient, sql: Sql, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer_id = make_customer(client)["customerId"]
    sql(f"DROP TABLE {month()}, {next_month()}")
    holder = psycopg2.connect(database_url)
    with holder.cursor() as cur:
        cur.execute("SELECT COUNT(*) FROM usage_reports_default")  # what a backup does
        assert post(client, report_body(customer_id)).status_code == 201
        assert partitions(sql) == {"usage_reports_default": 1}
    holder.close()
    assert post(client, report_body(customer_id)).status_code == 201
    assert partitions(sql) == {"usage_reports_default": 2}  # not tried again within the minute
    later = monotonic() + usage.PARTITIONS_PAUSE_SECONDS
    monkeypatch.setattr("time.monotonic", lambda: later)
    assert post(client, report_body(customer_id)).status_code == 201
    assert partitions(sql) == {"usage_reports_default": 0, month(): 3, next_month(): 0}


def test_first_reports_of_a_month_all_arrive(
    app: Flask, client: FlaskClient, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "PARTITIONS_PAUSE_SECONDS", 0)
    customer_id = make_customer(client)["customerId"]
    sql(f"DROP TABLE {month()}, {next_month()}")

    def send(number: int) -> list[int]:
        own, times = app.test_client(), [ago(minutes=n) for n in range(5)]
        bodies = [report_body(customer_id, instanceId=f"i{number}", timestamp=at) for at in times]
        return [post(own, body).status_code for body in bodies]

    assert at_once(8, send) == [[201] * 5] * 8
    assert (sum(partitions(sql).values()), partitions(sql)["usage_reports_default"]) == (40, 0)


def test_no_request_reads_a_whole_table(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    sql(
        """
        INSERT INTO customers (customer_id, email)
        SELECT 'cust_' || LPAD(n::TEXT, 12, '0'), n || '@x.example' FROM GENERATE_SERIES(1, 3000) AS n;
        INSERT INTO usage_reports (customer_id, instance_id, active_devices, total_devices, reported_at)
        SELECT customer_id, 'i' || MOD(n, 5), 5, 9, CURRENT_TIMESTAMP - n * INTERVAL '1 hour'
          FROM customers CROSS JOIN GENERATE_SERIES(1, 20) AS n;
        INSERT INTO instances (customer_id, instance_id, active_devices, total_devices, last_reported_at)
        SELECT customer_id, instance_id, 5, 9, MAX(reported_at) FROM usage_reports GROUP BY 1, 2;
        INSERT INTO licenses (jti, customer_id, kid, plan, status, token, fingerprint, plan_table, issued_at,
                              renews_at, expires_at)
        SELECT GEN_RANDOM_UUID(), customers.customer_id, kid, 'trial', 'trialing', 'token', 'x', plan_table,
               issued_at, renews_at, expires_at
          FROM customers CROSS JOIN (SELECT * FROM licenses LIMIT 1) AS license WHERE email ~ '@x.example$';
        ANALYZE
        """
    )

    def scans() -> dict[str, int]:
        sql("SELECT PG_STAT_FORCE_NEXT_FLUSH()")
        rows = sql("SELECT s.relname, seq_scan FROM pg_stat_user_tables AS s JOIN pg_class ON oid = relid"
                   " WHERE reltuples > 100")  # fmt: skip
        return {row["relname"]: row["seq_scan"] for row in rows}

    before, own = scans(), bearer(customer["license"])
    bodies = [report_body(customer["customerId"], timestamp=ago(hours=n)) for n in range(50)]
    assert post(client, bodies[0], own).status_code == 201
    assert post_batch(client, bodies, own).json["accepted"] == 49
    path = f"/api/usage/{customer['customerId']}"
    assert client.get(path, headers=own).json["summary"]["totalReports"] == 70
    assert len(client.get(path, query_string={"days": 400, "limit": 200}, headers=own).json["reports"]) == 70
    assert client.get("/api/usage?limit=1", headers=ADMIN).status_code == 200
    assert scans() == before
