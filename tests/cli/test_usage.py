"""`flask usage`: alerts, top, import, prune, and how a long window is shown."""

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.conftest import ADMIN
from tests.factories import ago, make_customer, report_body

Sql = Callable[..., list[dict[str, Any]]]
HEADER = "customer_id,instance_id,active_devices,total_devices,timestamp\n"


@pytest.fixture
def kinds(console: Any) -> Callable[..., list[str]]:
    """The alerts there are, oldest first."""

    def run(*args: str) -> list[str]:
        rows = json.loads(console("usage", "alerts", "--json", *args).stdout)
        return [row["kind"] for row in reversed(rows)]

    return run


def send(client: FlaskClient, customer_id: str, *reports: tuple[int, float, str]) -> None:
    """Reports of (active devices, hours ago, instance)."""
    bodies = [
        report_body(customer_id, active, 10_000_000, instanceId=instance, timestamp=ago(hours=hours))
        for active, hours, instance in reports
    ]
    answer = client.post("/api/usage/reports", json={"reports": bodies}, headers=ADMIN)
    assert answer.json["accepted"] == len(bodies), answer.json


def customer_of(client: FlaskClient, sql: Sql, plan: str, **fields: Any) -> str:
    """A customer that has had its plan for two months."""
    customer_id: str = make_customer(client, plan=plan, **fields)["customerId"]
    sql("UPDATE licenses SET issued_at = issued_at - INTERVAL '60 days'")
    return customer_id


def change_plan(client: FlaskClient, sql: Sql, customer_id: str, plan: str, hours: float) -> None:
    """The plan as it has been for so many hours."""
    sql("UPDATE subscriptions SET plan = %(plan)s", plan=plan)
    assert client.get(f"/api/licenses/{customer_id}", headers=ADMIN).status_code == 200
    sql(
        "UPDATE licenses SET issued_at = CURRENT_TIMESTAMP - %(hours)s * INTERVAL '1 hour'"
        " WHERE superseded_at IS NULL",
        hours=hours,
    )


def test_each_threshold_once_per_crossing(client: FlaskClient, sql: Sql, console: Any, kinds: Any) -> None:
    customer_id = customer_of(client, sql, "professional", email="ada@example.com")
    crossing = [39, 40, 41, 49, 50, 60, 45, 50, 39, 40]
    send(client, customer_id, *((active, 20 - n, "a") for n, active in enumerate(crossing)))
    assert kinds() == ["threshold_80", "threshold_100", "threshold_100", "threshold_80"]
    assert kinds("--kind", "threshold_80") == ["threshold_80"] * 2
    assert kinds("--customer", "ada@example.com", "--days", "1") == kinds()
    first = json.loads(console("usage", "alerts", "--json").stdout)[-1]
    expected = {"customerId": customer_id, "activeDevices": 40, "deviceLimit": 50, "instanceId": None}
    assert first.items() >= (expected | {"name": "Customer Name", "email": "ada@example.com"}).items()
    assert console("usage", "alerts").stdout.count("Customer Name") == 4


def test_thresholds_are_of_all_instances_together(client: FlaskClient, sql: Sql, kinds: Any) -> None:
    customer_id = customer_of(client, sql, "starter")
    send(client, customer_id, (4, 30, "a"), (4, 29, "b"), (2, 28, "a"), (7, 27, "b"))
    assert kinds("--kind", "threshold_80") == ["threshold_80"] * 2
    send(client, customer_id, *((10_000_000, 5, f"i{n}") for n in range(300)))
    assert kinds("--kind", "threshold_100") == ["threshold_100"]


def test_silence_beyond_a_week_and_retirement_arm_again(
    client: FlaskClient, sql: Sql, console: Any, kinds: Any
) -> None:
    customer_id = customer_of(client, sql, "trial")
    send(client, customer_id, (5, 24 * 20, "a"), (5, 24 * 12, "a"), (3, 24 * 4, "b"), (3, 24 * 3, "b"))
    assert kinds("--kind", "threshold_100") == ["threshold_100"] * 2
    retire = ("customer", "retire-instance", "--id", customer_id, "--instance", "b")
    assert console(*retire).exit_code == 0
    sql("UPDATE instances SET retired_at = retired_at - INTERVAL '1 day' WHERE retired_at IS NOT NULL")
    send(client, customer_id, (4, 1, "c"))
    assert kinds("--kind", "threshold_80") == ["threshold_80"] * 3
    assert kinds("--kind", "threshold_100") == ["threshold_100"] * 2
    assert kinds("--kind", "silent") == ["silent"]


def test_limit_is_that_of_the_time(client: FlaskClient, sql: Sql, kinds: Any) -> None:
    customer_id = customer_of(client, sql, "starter")
    send(client, customer_id, (10, 9, "a"))
    change_plan(client, sql, customer_id, "professional", 8)
    send(client, customer_id, (45, 7, "a"), (46, 6, "a"))
    assert kinds()[2:] == ["threshold_80"]
    change_plan(client, sql, customer_id, "enterprise", 5)
    send(client, customer_id, (500, 4, "a"))
    change_plan(client, sql, customer_id, "starter", 3)
    send(client, customer_id, (8, 2, "a"), (8, 1, "a"))
    assert sorted(kinds()) == ["sudden_drop", "threshold_100", *["threshold_80"] * 3]


def test_drops_and_shared_licenses(client: FlaskClient, sql: Sql, console: Any, kinds: Any) -> None:
    customer_id = customer_of(client, sql, "professional")
    send(client, customer_id, *((active, 10 - n, "a") for n, active in enumerate([20, 11, 5, 2])))
    assert kinds() == ["sudden_drop"]
    send(client, customer_id, (1, 3, "b"), (2, 2, "a"))
    send(client, customer_id, (1, 1, "b"), (1, 1, "c"))
    assert kinds("--kind", "shared_license") == ["shared_license"] * 2
    shown = console("usage", "show", "--customer", customer_id).stdout
    assert "Instance a fell to 5 active devices" in shown
    assert shown.index("Instance b began to use the license") < shown.index("Instance c began")


def test_top_is_worst_first(client: FlaskClient, sql: Sql, console: Any) -> None:
    made = {n: make_customer(client, plan=plan)["customerId"] for n, plan in enumerate(
        ["starter", "trial", "professional", "enterprise"])}  # fmt: skip
    for n, active in enumerate([8, 7, 39, 10_000]):
        send(client, made[n], (active, 1, "a"))
    top = console("usage", "top", "--json")
    assert [row["customerId"] for row in json.loads(top.stdout)] == [made[1], made[0]]
    rows = list(csv.DictReader(io.StringIO(console("usage", "top", "--over", "70", "--csv").stdout)))
    assert [row["utilization"] for row in rows] == ["1.4", "0.8", "0.78"]
    assert console("usage", "top", "--over", "100").stdout.count("cust_") == 1


def test_long_window_is_a_line_per_day(client: FlaskClient, sql: Sql, console: Any) -> None:
    customer_id = customer_of(client, sql, "professional")
    send(client, customer_id, (10, 24 * 33, "a"), (20, 24 * 33, "b"), (40, 1, "a"))
    show = ("usage", "show", "--customer", customer_id, "--days", "60")
    table = console(*show).stdout.partition("Usage Reports")[2].partition("Summary")[0]
    cells = [
        [cell.strip() for cell in line.split("|")][1:] for line in table.splitlines() if line[:2] == "20"
    ]
    assert cells == [["1", "40", "80.0%"], ["2", "30", "60.0%"]]
    each = console(*show, "--reports").stdout
    assert each.count("| a  ") == 2
    assert len(json.loads(console(*show, "--json").stdout)["reports"]) == 3
    assert console(*show, "--csv").stdout.count("\n") == 4


def test_import_takes_good_lines_and_names_bad_ones(
    client: FlaskClient, sql: Sql, console: Any, tmp_path: Path
) -> None:
    customer_id, file = make_customer(client)["customerId"], tmp_path / "history.csv"
    lines = [
        f"{customer_id},a,1,2,2020-01-31T10:00:00Z", f"{customer_id},a,x,2,2020-02-01T10:00:00Z",
        f"{customer_id},b,3,2,2020-02-01T10:00:00Z", "cust_zzzzzzzzzzzzzzzz,a,1,2,2020-02-01T10:00:00Z",
        f"{customer_id},a,1,2", "", f"{customer_id},a,1,5,2020-01-31T10:00:00Z",
        f'{customer_id},"ä, b",1,2,{ago(minutes=1)}', f"{customer_id},a,1,2,2999-01-01T00:00:00Z",
    ]  # fmt: skip
    file.write_text("\ufeff" + HEADER + "\n".join(lines))
    done = console("usage", "import", str(file), "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["accepted"], found["duplicates"]) == (1, 2, 0)
    assert [line["line"] for line in found["rejected"]] == [3, 4, 5, 6, 8, 10]
    assert sql("SELECT COUNT(*) AS n FROM usage_reports") == [{"n": 2}]
    file.write_text(HEADER + "\n".join([lines[0], lines[7]]))
    again = console("usage", "import", str(file))
    assert (again.exit_code, again.stdout) == (0, "0 report(s) imported, 2 there before, 0 refused.\n")
    assert sql("SELECT COUNT(*) AS n FROM usage_reports") == [{"n": 2}]
    file.write_text(HEADER + lines[0].replace(",a,", ",c,") + '\n"' + "unclosed," * 20_000)
    broken = console("usage", "import", str(file))
    assert (broken.exit_code, broken.stdout.startswith("❌ Line 3: field larger")) == (1, True)
    assert broken.stdout.endswith("\n1 report(s) imported, 0 there before, 1 refused.\n")
    file.write_text(HEADER.replace("timestamp", "timestamp,plan") + lines[0])
    assert console("usage", "import", str(file)).exit_code == 1


def test_prune_drops_whole_months_and_deletes_exactly(client: FlaskClient, sql: Sql, console: Any) -> None:
    customer_id = make_customer(client)["customerId"]
    times = [400, 400.5, 200, 150.001, 149.999]
    rows = [
        f"{customer_id},i{days},1,1,{(datetime.now(UTC) - timedelta(days=days)).isoformat()}\n"
        for days in times
    ]
    assert console("usage", "import", "-", input=HEADER + "".join(rows)).exit_code == 0
    send(client, customer_id, (1, 1, "new"))
    for days in ("89", "0", "-1"):
        assert console("usage", "prune", "--older-than", days).exit_code == 1
    done = console("usage", "prune", "--older-than", "150", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"deleted": 4})
    left = sql("SELECT instance_id AS i FROM usage_reports ORDER BY reported_at")
    assert [row["i"] for row in left] == ["i149.999", "new"]
    assert {row["i"] for row in sql("SELECT instance_id AS i FROM instances")} == {"i149.999", "new"}
    month = (datetime.now(UTC) - timedelta(days=400)).strftime("usage_reports_%Y_%m")
    assert sql("SELECT TO_REGCLASS(%(month)s)::TEXT AS found", month=month) == [{"found": None}]
    again = console("usage", "prune", "--older-than", "150")
    assert again.stdout == "✅ 0 report(s) older than 150 days deleted.\n"
    recorded = sql("SELECT after FROM audit_log WHERE action = 'usage.prune' ORDER BY id")
    assert [line["after"]["deleted"] for line in recorded] == [4, 0]
