"""Months come ahead of time, a missing one loses nothing, old ones leave; and every access has its index."""

import json
import re
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import migrations
from app.db import Cursor, Database
from app.queries import customers as customer_rows
from app.queries import usage as usage_rows
from app.services import usage
from tests.conftest import ADMIN
from tests.factories import ago, make_customer, report_body
from tests.server import wait_until, waiting

Sql = Callable[..., list[dict[str, Any]]]


def month(days_ahead: float = 0) -> str:
    return (datetime.now(UTC) + timedelta(days=days_ahead)).strftime("usage_reports_%Y_%m")


def next_month() -> str:
    return (datetime.now(UTC).replace(day=1) + timedelta(days=32)).strftime("usage_reports_%Y_%m")


def partitions(sql: Sql) -> dict[str, int]:
    """Rows by partition."""
    names = sql(
        "SELECT inhrelid::REGCLASS::TEXT AS name FROM pg_inherits WHERE inhparent = 'usage_reports'::REGCLASS"
    )
    return {row["name"]: sql(f"SELECT COUNT(*) AS n FROM {row['name']}")[0]["n"] for row in names}


def send(client: FlaskClient, customer_id: str, **fields: Any) -> Any:
    return client.post("/api/usage/report", json=report_body(customer_id, **fields), headers=ADMIN)


def put(sql: Sql, customer_id: str, days: float, reports: int = 1) -> None:
    """Reports as they were stored long ago."""
    sql(
        """
        INSERT INTO usage_reports (customer_id, instance_id, active_devices, total_devices, reported_at)
        SELECT %(customer_id)s, 'old-' || number, 1, 1, CURRENT_TIMESTAMP - %(days)s * INTERVAL '1 day'
          FROM GENERATE_SERIES(1, %(reports)s) AS number
        """,
        customer_id=customer_id, days=days, reports=reports,
    )  # fmt: skip


def test_partition_and_the_next_one_appear_with_the_first_report(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    assert partitions(sql) == {"usage_reports_default": 0}
    assert send(client, customer_id).status_code == 201
    assert partitions(sql) == {"usage_reports_default": 0, month(): 1, next_month(): 0}


def test_worker_that_lives_on_looks_at_each_month_anew(app: Flask, client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    send(client, customer_id)
    send(client, customer_id, timestamp=ago(days=34))
    assert partitions(sql)[month(-34)] == 1
    assert len(app.extensions["parts"].usage_months) == 2


def test_a_report_that_moves_to_its_month_meanwhile_is_found(
    app: Flask, client: FlaskClient, sql: Sql, database_url: str
) -> None:
    customer_id = make_customer(client)["customerId"]
    put(sql, customer_id, 3)
    key = sql("SELECT customer_id, instance_id, reported_at FROM usage_reports")[0]
    seen: list[int] = []

    def look(find: Callable[..., Any]) -> None:
        with app.app_context(), app.extensions["billing.db"].statement() as cur:
            seen.append(len(find(cur, [key])))

    for find in (usage_rows.select_usage_reports_by_key, usage._stored):
        mover = psycopg2.connect(database_url)
        mover.cursor().execute("SELECT ensure_usage_partition(%s)", (key["reported_at"],))
        reader = threading.Thread(target=look, args=(find,))
        reader.start()
        wait_until(lambda: waiting(database_url))
        mover.commit()
        reader.join()
        mover.close()
        sql("WITH moved AS (DELETE FROM usage_reports RETURNING *) SELECT 1 FROM moved")
        sql(f"DROP TABLE {month(-3)}")
        put(sql, customer_id, 3)
        key = sql("SELECT customer_id, instance_id, reported_at FROM usage_reports")[0]
    assert seen == [0, 1]  # what one statement sees, and what we do


def test_report_without_a_partition_goes_to_the_default_and_moves_later(
    make_app: Callable[..., Flask], app: Flask, client: FlaskClient, sql: Sql
) -> None:
    customer_id = make_customer(client)["customerId"]
    sql("ALTER FUNCTION ensure_usage_partition RENAME TO broken")
    at = ago(minutes=1)
    assert send(client, customer_id, timestamp=at).status_code == 201
    assert send(client, customer_id, timestamp=at).status_code == 200
    assert partitions(sql) == {"usage_reports_default": 1}
    sql("ALTER FUNCTION broken RENAME TO ensure_usage_partition")
    app.extensions["parts"].usage_months.clear()
    assert send(client, customer_id, timestamp=at).status_code == 200
    assert partitions(sql) == {"usage_reports_default": 0, month(): 1, next_month(): 0}
    shown = client.get(f"/api/usage/{customer_id}", headers=ADMIN).json
    assert shown["summary"]["totalReports"] == 1


def test_held_table_delays_the_partition_not_the_report(
    app: Flask, client: FlaskClient, sql: Sql, database_url: str
) -> None:
    customer_id = make_customer(client)["customerId"]
    holder = psycopg2.connect(database_url)
    with holder.cursor() as cur:
        cur.execute("SELECT COUNT(*) FROM usage_reports_default")  # what a backup does
        assert send(client, customer_id).status_code == 201
        assert partitions(sql) == {"usage_reports_default": 1}
    holder.close()
    app.extensions["parts"].usage_months.clear()
    assert send(client, customer_id).status_code == 201
    assert partitions(sql)[month()] == 2


def test_first_reports_of_a_month_all_arrive(
    make_app: Callable[..., Flask], client: FlaskClient, sql: Sql
) -> None:
    customer_id = make_customer(client)["customerId"]
    workers = [make_app() for _ in range(4)]
    barrier, statuses = threading.Barrier(12), []

    def report(number: int) -> None:
        own = workers[number % 4].test_client()
        barrier.wait()
        for n in range(5):
            answer = send(own, customer_id, instanceId=f"i{number}", timestamp=ago(minutes=n))
            statuses.append(answer.status_code)

    threads = [threading.Thread(target=report, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [201] * 60
    assert partitions(sql)["usage_reports_default"] == 0
    assert sum(partitions(sql).values()) == 60


def test_prune_drops_whole_months_and_deletes_exactly(client: FlaskClient, sql: Sql, console: Any) -> None:
    customer_id = make_customer(client)["customerId"]
    for days in (400, 150):
        sql("SELECT ensure_usage_partition(CURRENT_TIMESTAMP - %(days)s * INTERVAL '1 day')", days=days)
    put(sql, customer_id, 400, 3)
    put(sql, customer_id, 200, 2)  # without a month of its own
    put(sql, customer_id, 150.001)
    put(sql, customer_id, 149.999)
    send(client, customer_id)
    sql(
        "INSERT INTO instances (customer_id, instance_id, active_devices, total_devices, last_reported_at)"
        " VALUES (%(customer_id)s, 'old-1', 1, 1, CURRENT_TIMESTAMP - INTERVAL '149.999 days'),"
        " (%(customer_id)s, 'old-2', 1, 1, CURRENT_TIMESTAMP - INTERVAL '200 days')",
        customer_id=customer_id,
    )
    done = console("usage", "prune", "--older-than", "150", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"deleted": 6})
    assert month(-400) not in partitions(sql)
    assert partitions(sql)[month(-149.999)] == 1
    assert sum(partitions(sql).values()) == 2
    left = sql("SELECT instance_id AS i FROM instances ORDER BY 1")
    assert [row["i"] for row in left] == ["dev-1", "old-1"]
    assert json.loads(console("usage", "prune", "--older-than", "150", "--json").stdout) == {"deleted": 0}
    told = sql("SELECT actor, after FROM audit_log WHERE action = 'usage.prune' ORDER BY id")
    assert [line["after"]["deleted"] for line in told][1:] == [0]
    assert told[0]["after"]["deleted"] > 0


@pytest.mark.parametrize("days", ["89", "0", "-1"])
def test_prune_refuses_young_reports(client: FlaskClient, sql: Sql, console: Any, days: str) -> None:
    customer_id = make_customer(client)["customerId"]
    put(sql, customer_id, 88)
    done = console("usage", "prune", "--older-than", days)
    assert (done.exit_code, done.stdout) == (1, "")
    assert sum(partitions(sql).values()) == 1


class Explaining(Cursor):
    """Notes the plan of each statement instead of its rows."""

    plans: list[Any] = []

    def execute(self, query: Any, vars: Any = None) -> None:  # type: ignore[override]
        super().execute("EXPLAIN (FORMAT JSON) " + query, vars)
        self.plans.append(self.fetchall()[0][0][0]["Plan"])
        super().execute(query, vars)


def nodes(plan: Any) -> list[Any]:
    return [plan] + [node for child in plan.get("Plans", []) for node in nodes(child)]


def plan_of(cur: Any, function: str, *values: Any) -> list[Any]:
    """How the statement inside a function of the database runs once its plan serves for all values."""
    script = "".join(re.sub("--.*", "", file.read_text()) for file in migrations.SQL_DIR.glob("*.sql"))
    parameters, body = script.partition(f"CREATE FUNCTION {function}(")[2].split(")", 1)
    body = body.partition("RETURN QUERY")[2].partition(";")[0]
    names, types = zip(*(parameter.split() for parameter in parameters.split(",")), strict=True)
    for number, name in enumerate(names, 1):
        body = re.sub(rf"(?<![.\w])(?<!AS ){name}\b(?! FROM)", f"${number}", body)
    cur.execute(f"PREPARE {function} ({', '.join(types)}) AS {body}")
    cur.execute("SET plan_cache_mode = force_generic_plan")
    places = ", ".join(["%s"] * len(values))
    cur.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE {function} ({places})", values)
    plan = cur.fetchall()[0][0][0]["Plan"]
    cur.execute("DEALLOCATE ALL; RESET plan_cache_mode")
    return nodes(plan)


def test_every_access_has_its_index(app: Flask, client: FlaskClient, sql: Sql) -> None:
    for _ in range(3):
        make_customer(client)
    customer_id = make_customer(client)["customerId"]
    for days in (0, 31, 62, 93):
        sql("SELECT ensure_usage_partition(CURRENT_TIMESTAMP - %(days)s * INTERVAL '1 day')", days=days)
    sql(
        """
        INSERT INTO customers (customer_id, email)
        SELECT 'cust_' || LPAD(n::TEXT, 12, '0'), n || '@x.example' FROM GENERATE_SERIES(1, 500) AS n;
        INSERT INTO usage_reports (customer_id, instance_id, active_devices, total_devices, reported_at)
        SELECT customer_id, 'i' || MOD(n, 10), 5, 9, CURRENT_TIMESTAMP - n * INTERVAL '1 day'
          FROM customers CROSS JOIN GENERATE_SERIES(1, 100) AS n;
        INSERT INTO instances SELECT customer_id, instance_id, 5, 9, MAX(reported_at)
          FROM usage_reports GROUP BY customer_id, instance_id;
        INSERT INTO usage_levels SELECT customer_id, 0, 5 FROM customers;
        INSERT INTO subscriptions (subscription_id, customer_id, plan, status, trial_ends_at)
        SELECT 'trial_' || id, customer_id, 'starter', 'canceled', CURRENT_TIMESTAMP FROM customers;
        INSERT INTO licenses (jti, customer_id, kid, plan, status, token, fingerprint, issued_at, renews_at,
                              expires_at)
        SELECT GEN_RANDOM_UUID(), customers.customer_id, kid, 'trial', 'trialing', 'token', 'x', issued_at,
               renews_at, expires_at
          FROM customers CROSS JOIN (SELECT * FROM licenses LIMIT 1) AS license
         WHERE email ~ '@x.example$';
        """
    )
    sql("ANALYZE")
    now = datetime.now(UTC)
    week = now - timedelta(days=7)
    database: Database = app.extensions["billing.db"]

    def plans(run: Callable[[Any], Any]) -> list[Any]:
        with database._connection() as connection, connection.cursor(cursor_factory=Explaining) as cur:
            Explaining.plans = []
            run(cur)
        return [node for plan in Explaining.plans for node in nodes(plan)]

    def inside(function: str, *values: Any) -> list[Any]:
        with database.statement() as cur:
            return plan_of(cur, function, *values)

    def assert_indexed(found: list[Any], tables: int) -> None:
        scans = [node for node in found if "Scan" in node["Node Type"] and "Relation Name" in node]
        scans = [node for node in scans if node["Relation Name"] != "usage_reports_default"]  # empty
        assert [n["Relation Name"] for n in scans if n["Node Type"] == "Seq Scan"] == []
        opened = {node["Relation Name"] for node in scans if "usage_reports_" in node["Relation Name"]}
        assert len(opened) <= tables
        if tables:
            assert opened

    assert_indexed(inside("report_usage", customer_id, "i0", 1, 2, now, str(uuid.uuid4()), week), 0)
    key = {"customer_id": customer_id, "instance_id": "i0", "reported_at": now}
    assert_indexed(plans(lambda cur: usage_rows.select_usage_reports_by_key(cur, [key])), 9)
    assert_indexed(inside("read_usage_reports", customer_id, week, "infinity", 0, 100), 3)
    long_ago, then = now - timedelta(days=400), now - timedelta(days=70)
    deep = inside("read_usage_reports", customer_id, long_ago, then, 5, 100)
    assert_indexed(deep, 4)
    assert month() not in {node.get("Relation Name") for node in deep}
    assert_indexed(inside("read_usage_figures", [customer_id], week), 3)
    everybody = [row["customer_id"] for row in sql("SELECT customer_id FROM customers LIMIT 50")]
    assert_indexed(inside("read_usage_figures", everybody, week), 3)
    assert_indexed(inside("find_customer", customer_id, str(uuid.uuid4())), 0)
    assert_indexed(inside("find_license", customer_id, str(uuid.uuid4())), 0)
    assert_indexed(plans(lambda cur: usage_rows.select_usage_overview(cur, since=week, limit=1)), 0)
    assert_indexed(plans(lambda cur: usage_rows.select_usage_days(cur, customer_id, week)), 3)
    assert_indexed(plans(lambda cur: customer_rows.select_customers(cur, limit=200)), 0)
