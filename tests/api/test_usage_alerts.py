"""What goes on record beside the reports: thresholds crossed, drops, shared licenses."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.errors import Unavailable
from app.queries import usage
from app.services import usage as usages
from tests.conftest import ADMIN
from tests.factories import ago, bearer, make_customer, report_body

Sql = Callable[..., list[dict[str, Any]]]


def send(client: FlaskClient, customer_id: str, active: int, hours: float = 0, instance: str = "a") -> None:
    body = report_body(customer_id, active, 10_000, instanceId=instance, timestamp=ago(hours=hours))
    answer = client.post("/api/usage/report", json=body, headers=ADMIN)
    assert answer.status_code == 201, answer.json


def send_batch(client: FlaskClient, customer_id: str, *reports: tuple[int, float, str]) -> None:
    bodies = [
        report_body(customer_id, active, 10_000, instanceId=instance, timestamp=ago(hours=hours))
        for active, hours, instance in reports
    ]
    answer = client.post("/api/usage/reports", json={"reports": bodies}, headers=ADMIN)
    assert answer.json["accepted"] == len(bodies), answer.json


def kinds(sql: Sql) -> list[str]:
    return [row["kind"] for row in sql("SELECT kind FROM usage_alerts ORDER BY id")]


def upgrade(sql: Sql, plan: str) -> None:
    sql("UPDATE subscriptions SET plan = %(plan)s WHERE plan <> %(plan)s", plan=plan)


def test_each_threshold_is_recorded_once_per_crossing(client: FlaskClient, sql: Sql, console: Any) -> None:
    customer_id = make_customer(client, plan="professional")["customerId"]
    for hours, active in enumerate([39, 40, 41, 49, 50, 60, 45, 50, 39, 40]):
        send(client, customer_id, active, hours=20 - hours)
    assert kinds(sql) == ["threshold_80", "threshold_100", "threshold_100", "threshold_80"]
    recorded = sql("SELECT active_devices AS a, device_limit AS l, instance_id AS i FROM usage_alerts")
    assert recorded[0] == {"a": 40, "l": 50, "i": None}
    assert console("usage", "alerts").stdout.count("threshold_") == 4
    assert console("usage", "alerts", "--customer", "cust_other").stdout.count("threshold_") == 0


def test_both_thresholds_at_one_leap(client: FlaskClient, sql: Sql) -> None:
    send(client, make_customer(client)["customerId"], 5)
    assert kinds(sql) == ["threshold_80", "threshold_100"]


def test_upgrade_arms_the_thresholds_again(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client, plan="starter")["customerId"]
    send(client, customer_id, 10, hours=5)
    upgrade(sql, "professional")
    send(client, customer_id, 45, hours=4)
    send(client, customer_id, 46, hours=3)
    assert kinds(sql) == ["threshold_80", "threshold_100", "threshold_80"]
    send(client, customer_id, 50, hours=2)
    upgrade(sql, "enterprise")
    send(client, customer_id, 51, hours=1)
    assert kinds(sql)[3:] == ["threshold_100"]
    assert sql("SELECT level, device_limit FROM usage_levels") == [{"level": 0, "device_limit": None}]


def test_downgrade_crosses_what_is_above_the_new_limit(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client, plan="professional")["customerId"]
    send(client, customer_id, 8, hours=3)
    upgrade(sql, "starter")
    send(client, customer_id, 8, hours=2)
    send(client, customer_id, 8, hours=1)
    assert kinds(sql) == ["threshold_80"]


def test_silence_beyond_the_window_arms_again(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    send(client, customer_id, 5, hours=30)
    sql("UPDATE instances SET last_reported_at = last_reported_at - INTERVAL '8 days'")
    sql("UPDATE usage_levels SET changed_at = changed_at - INTERVAL '9 days'")
    send(client, customer_id, 5, hours=2)
    send(client, customer_id, 5, hours=1)
    assert kinds(sql) == ["threshold_80", "threshold_100"] * 2


def test_silent_instance_leaves_the_sum(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    send(client, customer_id, 3, hours=24 * 8, instance="gone")
    send(client, customer_id, 3, hours=1, instance="here")
    assert kinds(sql) == []
    summary = client.get(f"/api/usage/{customer_id}", headers=ADMIN).json["summary"]
    assert summary["currentActive"] == 3


def test_late_reports_cross_nothing(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    send(client, customer_id, 1, hours=1)
    send(client, customer_id, 5, hours=3)
    send(client, customer_id, 5, hours=24 * 20, instance="b")
    assert kinds(sql) == ["shared_license"]


def test_instances_at_the_same_moment_cross_once(app: Flask, client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client, plan="professional")["customerId"]
    for n in range(8):
        send(client, customer_id, 1, hours=9, instance=f"i{n}")
    sql("DELETE FROM usage_alerts")
    for hours, active, expected in (
        (6, 6, ["threshold_80"]), (5, 1, []), (4, 7, ["threshold_80", "threshold_100"]), (3, 1, []),
        (2, 6, ["threshold_80"]),
    ):  # fmt: skip
        barrier = threading.Barrier(8)

        def at_once(n: int, barrier: Any = barrier, active: int = active, hours: float = hours) -> None:
            barrier.wait()
            send(app.test_client(), customer_id, active, hours=hours, instance=f"i{n}")

        threads = [threading.Thread(target=at_once, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert kinds(sql) == expected
        sql("DELETE FROM usage_alerts")


def test_a_sum_beyond_what_one_instance_may_report(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    bodies = [report_body(customer_id, 10_000_000, 10_000_000, instanceId=f"i{n}") for n in range(300)]
    answer = client.post("/api/usage/reports", json={"reports": bodies}, headers=ADMIN)
    assert answer.json["accepted"] == 300
    [line] = sql("SELECT active_devices AS a FROM usage_alerts WHERE kind = 'threshold_100'")
    assert line["a"] == 3_000_000_000


@pytest.mark.parametrize("other_instances", [0, 1])
def test_erased_while_a_report_is_stored(
    client: FlaskClient, sql: Sql, monkeypatch: pytest.MonkeyPatch, other_instances: int
) -> None:
    customer_id = make_customer(client)["customerId"]
    for n in range(other_instances):
        send(client, customer_id, 1, hours=1, instance=f"i{n}")
    insert_usage_report = usage.insert_usage_report

    def then_erased(*args: Any) -> Any:
        row = insert_usage_report(*args)
        sql("UPDATE customers SET erased_at = now(), email = NULL, name = NULL")
        return row

    monkeypatch.setattr(usage, "insert_usage_report", then_erased)
    send(client, customer_id, 5)
    assert len(sql("SELECT 1 FROM usage_reports")) == 1 + other_instances
    assert "threshold_100" not in kinds(sql)


def test_first_reports_in_the_same_moment_cross_too(
    client: FlaskClient, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_usage_report = usage.insert_usage_report
    alone = {"other_instances": 0, "others_active": 0}  # what each statement saw of the other
    monkeypatch.setattr(usage, "insert_usage_report", lambda *args: insert_usage_report(*args) | alone)
    customer_id = make_customer(client)["customerId"]
    send(client, customer_id, 3, instance="a")
    send(client, customer_id, 3, instance="b")
    assert kinds(sql) == ["threshold_80", "threshold_100"]


def test_a_limit_that_was_raised_in_this_moment_is_the_one_that_counts(
    client: FlaskClient, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer_id = make_customer(client, plan="starter")["customerId"]
    lock_usage_level = usage.lock_usage_level

    def raised(*args: Any) -> Any:
        upgrade(sql, "professional")
        return lock_usage_level(*args)

    monkeypatch.setattr(usage, "lock_usage_level", raised)
    send(client, customer_id, 10)
    assert kinds(sql) == []


@pytest.mark.parametrize("batch", [False, True])
def test_cut_off_between_storing_and_judging(
    client: FlaskClient, sql: Sql, monkeypatch: pytest.MonkeyPatch, batch: bool
) -> None:
    report = report_body(make_customer(client)["customerId"], 5, timestamp=ago(minutes=1))
    path = "/api/usage/reports" if batch else "/api/usage/report"
    body = {"reports": [report]} if batch else report

    def away(*_: Any) -> None:
        raise Unavailable("The database is not available. Try again shortly.")

    with monkeypatch.context() as patch:
        patch.setattr(usages, "_judge_level", away)
        assert client.post(path, json=body, headers=ADMIN).status_code == 503
    assert (len(sql("SELECT 1 FROM usage_reports")), kinds(sql)) == (1, [])
    for _ in range(2):
        assert client.post(path, json=body, headers=ADMIN).status_code == 200
        assert kinds(sql) == ["threshold_80", "threshold_100"]


def test_sudden_drop(client: FlaskClient, sql: Sql, console: Any) -> None:
    customer_id = make_customer(client, plan="professional")["customerId"]
    for hours, active in enumerate([20, 11, 5, 2]):
        send(client, customer_id, active, hours=10 - hours)
    send(client, customer_id, 20, hours=3)
    send(client, customer_id, 1, hours=5)  # late: the fall was not from what is known now
    assert kinds(sql) == ["sudden_drop"]
    assert sql("SELECT active_devices AS a, instance_id AS i FROM usage_alerts") == [{"a": 5, "i": "a"}]
    assert "sudden_drop" in console("usage", "alerts").stdout
    shown = console("usage", "show", "--customer", customer_id).stdout
    assert "Instance a fell to 5 active devices" in shown


def test_license_used_by_several_instances(client: FlaskClient, sql: Sql, console: Any) -> None:
    customer = make_customer(client, plan="professional")
    for instance in ("a", "b", "a", "c"):
        body = report_body(customer["customerId"], 1, 1, instanceId=instance)
        client.post("/api/usage/report", json=body, headers=bearer(customer["license"]))
    assert kinds(sql) == ["shared_license", "shared_license"]
    assert [row["i"] for row in sql("SELECT instance_id AS i FROM usage_alerts ORDER BY id")] == ["b", "c"]
    shown = console("usage", "show", "--customer", customer["customerId"]).stdout
    assert shown.index("Instance b began to use the license") < shown.index("Instance c began")


def test_batch_is_watched_like_single_reports(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client, plan="professional")["customerId"]
    send_batch(client, customer_id, (40, 9, "a"), (20, 10, "a"))
    assert kinds(sql) == ["threshold_80"]
    send_batch(client, customer_id, (40, 8, "a"), (41, 7, "a"))
    assert kinds(sql) == ["threshold_80"]
    send_batch(client, customer_id, (15, 6, "a"), (1, 6, "b"))
    assert sorted(kinds(sql)) == ["shared_license", "sudden_drop", "threshold_80"]
    send_batch(client, customer_id, (50, 5, "a"))
    assert kinds(sql)[3:] == ["threshold_80", "threshold_100"]
    assert sql("SELECT level FROM usage_levels") == [{"level": 100}]


def test_backlog_of_a_month_counts_only_its_newest(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    send_batch(client, customer_id, *((5, 24 * day, "a") for day in range(9, 33)))
    assert kinds(sql) == []
    send_batch(client, customer_id, *((5, 24 * day, "a") for day in range(1, 9)))
    assert kinds(sql) == ["threshold_80", "threshold_100"]
    assert sql("SELECT COUNT(*) AS n FROM usage_reports") == [{"n": 32}]
