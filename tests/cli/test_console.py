"""The operators' console: exact output, exit codes, machine-readable forms."""

import csv
import io
import json
import re
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.conftest import ADMIN
from tests.factories import ago, bearer, make_customer, report_body

RULE = "─" * 41
LONG_RULE = "─" * 77
DOUBLE_RULE = "═" * 77


@pytest.fixture(autouse=True)
def in_one_time_zone(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def billed(client, sql):
    """A customer on a trial of professional with three reports at fixed hours."""
    made = make_customer(
        client,
        email="customer@example.com",
        name="Customer Name",
        companyName="Company Inc",
        plan="professional",
    )
    today = datetime.now(UTC).replace(hour=15, minute=0, second=0, microsecond=0) - timedelta(days=1)
    for days, active in ((0, 42), (1, 40), (2, 38)):
        body = report_body(
            made["customerId"],
            active,
            45,
            instanceId="production-1",
            timestamp=(today - timedelta(days=days)).isoformat(),
        )
        assert client.post("/api/usage/report", json=body, headers=ADMIN).status_code == 201
    return made


def test_add(console, sql):
    done = console(
        "customer",
        "add",
        "--email",
        "customer@example.com",
        "--name",
        "Customer Name",
        "--company",
        "Company Inc",
    )

    assert done.exit_code == 0
    [row] = sql("SELECT customer_id, created_at FROM customers")
    token = sql("SELECT token FROM licenses")[0]["token"]
    at = row["created_at"].astimezone()
    created = f"{at.month}/{at.day}/{at.year}, {at.hour % 12 or 12}:{at:%M:%S %p}"
    assert (
        done.stdout
        == f"""\
✅ Customer created successfully!
Customer Details:
{RULE}
ID:               {row["customer_id"]}
Email:            customer@example.com
Name:             Customer Name
Company:          Company Inc
Created:          {created}
{RULE}

📜 Initial License JWT (Trial):
{token}

💡 Add this to customer instance .env file:
LICENSE_JWT={token}
CUSTOMER_ID={row["customer_id"]}
"""
    )
    assert sql("SELECT DISTINCT actor FROM audit_log")[0]["actor"].startswith("console:")


def test_add_refused(console, client, sql):
    make_customer(client, email="customer@example.com")
    done = console("customer", "add", "--email", "CUSTOMER@example.com", "--name", "N")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert re.fullmatch(r"Error: [^\n]+\n", done.stderr)
    for args in (
        ["--email", "nonsense", "--name", "N"],
        ["--email", "a@example.com"],
        ["--email", "a@example.com", "--name", "N", "--plan", "gold"],
        ["--email", "a@example.com", "--name", ""],
    ):
        assert console("customer", "add", *args).exit_code == 2
    assert sql("SELECT COUNT(*) AS n FROM customers") == [{"n": 1}]


def test_list(console, client):
    first = make_customer(
        client, email="customer@example.com", name="Customer Name", companyName="Company Inc"
    )
    second = make_customer(client, email="test@test.com", name="Test Customer")

    assert (
        console("customer", "list").stdout
        == f"""\
Found 2 customer(s):

{LONG_RULE}
ID                    | Email                        | Name                  | Company
{LONG_RULE}
{first["customerId"]} | customer@example.com         | Customer Name         | Company Inc
{second["customerId"]} | test@test.com                | Test Customer         | -
{LONG_RULE}
"""
    )
    told = json.loads(console("customer", "list", "--json").stdout)
    assert told == [{k: v for k, v in made.items() if k != "license"} for made in (first, second)]
    rows = list(csv.DictReader(io.StringIO(console("customer", "list", "--csv").stdout)))
    assert [row["customer_id"] for row in rows] == [first["customerId"], second["customerId"]]


def test_columns_stay_in_line_whatever_the_names_are(console, client):
    for name in ("Ada", "東京電力", "Zoe\u0308"):
        make_customer(client, name=name, companyName="Corp")
    lines = [line for line in console("customer", "list").stdout.splitlines() if line.endswith("| Corp")]
    places = [sum(2 if ord(char) > 0x2E80 else char != "\u0308" for char in line) for line in lines]
    assert (len(lines), len(set(places))) == (3, 1)


def test_csv_holds_no_formula(console, client):
    make_customer(client, name='=HYPERLINK("x")')
    [row] = csv.DictReader(io.StringIO(console("customer", "list", "--csv").stdout))
    assert row["name"] == '\'=HYPERLINK("x")'


def test_show(console, client):
    made = make_customer(client, plan="enterprise")
    done = console("customer", "show", "--id", made["customerId"])
    assert done.exit_code == 0
    for line in ("Plan:             ENTERPRISE", "Status:           TRIALING", "Device Limit:     Unlimited"):
        assert line in done.stdout.splitlines()
    told = json.loads(console("customer", "show", "--id", made["customerId"], "--json").stdout)
    assert told == {k: v for k, v in made.items() if k != "license"}
    refused = console("customer", "show", "--id", "cust_unknown00000")
    assert (refused.exit_code, refused.stdout) == (1, "")


def test_usage_of_one(console, client, billed):
    done = console("usage", "show", "--customer", billed["customerId"])

    lines = done.stdout.splitlines()
    first = datetime.now(UTC).replace(hour=15, minute=0) - timedelta(days=1)
    dates = [(first - timedelta(days=n)).astimezone() for n in range(3)]
    texts = [f"{at.month}/{at.day}/{at.year}, {at.hour % 12 or 12}:00 {at:%p}" for at in dates]
    ends = datetime.fromisoformat(billed["subscription"]["trialEndsAt"]).astimezone()
    renewal = f"{ends.month}/{ends.day}/{ends.year}, {ends.hour % 12 or 12}:{ends:%M:%S %p}"
    assert (
        lines[:38]
        == f"""\
Customer Information:
{DOUBLE_RULE}
ID:               {billed["customerId"]}
Email:            customer@example.com
Name:             Customer Name
Company:          Company Inc
{DOUBLE_RULE}

Subscription Information:
{LONG_RULE}
Plan:             PROFESSIONAL
Status:           TRIALING
Device Limit:     50
Renewal Date:     {renewal}
{LONG_RULE}

Usage Reports (Last 7 Days):
{LONG_RULE}
Date                 | Instance ID    | Active | Total | Utilization
{LONG_RULE}
{texts[0]:<20} | production-1   |     42 |    45 |       84.0%
{texts[1]:<20} | production-1   |     40 |    45 |       80.0%
{texts[2]:<20} | production-1   |     38 |    45 |       76.0%
{LONG_RULE}

Summary Statistics:
{LONG_RULE}
Total Reports:    3
Avg Active:       40.0 devices
Peak Active:      42 devices
Current Active:   42 devices
Current Total:    45 devices
Limit:            50 devices
Remaining:        8 devices

⚠️  WARNING: 84.0% of device limit used!
    Consider upgrading to a higher plan.
{LONG_RULE}
""".splitlines()
    )
    chart = lines[38:]
    assert chart[1] == "Active Devices per Day (limit 50):"
    bars = [line for line in chart if "█" in line]
    assert [line.split()[-1] for line in bars] == ["38", "40", "42"]
    assert bars[0].count("█") < bars[2].count("█")
    assert all(line.index("┊") == bars[0].index("┊") for line in bars)


def test_usage_of_nobody_yet(console, client):
    made = make_customer(client)
    done = console("usage", "show", "--customer", made["customerId"])
    assert done.exit_code == 0
    assert "No usage reports yet." in done.stdout
    assert "Current Active:   0 devices" in done.stdout
    assert "WARNING" not in done.stdout


def test_usage_of_all(console, client, billed):
    other = make_customer(client, email="test@test.com", name="Test Customer", plan="enterprise")
    assert (
        console("usage", "show", "--all", "--days", "30").stdout
        == f"""\
Found 2 customer(s)
{DOUBLE_RULE}

Customer Name (customer@example.com)
  Customer ID:  {billed["customerId"]}
  Plan:         PROFESSIONAL
  Device Limit: 50
  Active:       42 devices
  Total:        45 devices
  Utilization:  84.0%
  Reports:      3 in last 30 days
  ⚠️  WARNING: 84.0% of limit used!

Test Customer (test@test.com)
  Customer ID:  {other["customerId"]}
  Plan:         ENTERPRISE
  Device Limit: Unlimited
  Active:       0 devices
  Total:        0 devices
  Utilization:  -
  Reports:      0 in last 30 days
{DOUBLE_RULE}
"""
    )
    told = json.loads(console("usage", "show", "--all", "--json").stdout)
    assert told == client.get("/api/usage", headers=ADMIN).json
    rows = list(csv.DictReader(io.StringIO(console("usage", "show", "--all", "--csv").stdout)))
    assert [(row["customer_id"], row["current_active"], row["device_limit"]) for row in rows] == [
        (billed["customerId"], "42", "50"),
        (other["customerId"], "0", ""),
    ]


def test_usage_json_and_csv_of_one(console, client, billed):
    told = json.loads(console("usage", "show", "--customer", billed["customerId"], "--json").stdout)
    assert told == client.get(f"/api/usage/{billed['customerId']}", headers=ADMIN).json
    rows = list(
        csv.DictReader(
            io.StringIO(console("usage", "show", "--customer", billed["customerId"], "--csv").stdout)
        )
    )
    assert [row["active_devices"] for row in rows] == ["42", "40", "38"]


@pytest.mark.parametrize(
    "args", [[], ["--all", "--customer", "cust_x"], ["--all", "--days", "0"], ["--all", "--days", "401"]]
)
def test_usage_used_wrongly(console, args):
    done = console("usage", "show", *args)
    assert (done.exit_code, done.stdout) == (2, "")


def test_silent_instances_are_told(console, client):
    made = make_customer(client)
    client.post(
        "/api/usage/report",
        json=report_body(made["customerId"], 1, 1, timestamp=ago(hours=49)),
        headers=ADMIN,
    )
    assert (
        "Instance dev-1 is silent since" in console("usage", "show", "--customer", made["customerId"]).stdout
    )
    [alert] = json.loads(console("usage", "alerts", "--json").stdout)
    assert (alert["kind"], alert["customerId"], alert["instanceId"]) == (
        "silent",
        made["customerId"],
        "dev-1",
    )


def test_deactivate(console, client, sql):
    made = make_customer(client, plan="professional")
    done = console("customer", "deactivate", "--id", made["customerId"])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[:6] == [
        "✅ Customer deactivated successfully!",
        "Deactivation Details:",
        RULE,
        f"Customer ID:      {made['customerId']}",
        f"Subscription ID:  {made['subscription']['subscriptionId']}",
        "Previous Plan:    professional",
    ]
    assert re.fullmatch(r"Cancelled At:     \d+/\d+/\d{4}, \d+:\d\d:\d\d [AP]M", lines[6])
    assert lines[7:] == [
        RULE,
        "",
        "💡 Customer will revert to trial mode.",
        "   They can reactivate by subscribing again.",
    ]
    assert sql("SELECT status FROM subscriptions") == [{"status": "canceled"}]
    assert console("customer", "deactivate", "--id", made["customerId"]).exit_code == 1


def test_override_is_for_enterprise(console, client):
    made = make_customer(client, plan="enterprise")
    small = make_customer(client)
    done = console(
        "customer", "override", "--id", made["customerId"], "--max-devices", "500", "--retention-days", "90"
    )
    assert done.exit_code == 0
    answer = client.get(f"/api/licenses/{made['customerId']}", headers=ADMIN).json
    features = client.post("/api/licenses/verify", json={"license": answer["license"]}).json["claims"][
        "features"
    ]
    assert (features["maxDevices"], features["dataRetentionDays"]) == (500, 90)
    assert client.get(f"/api/usage/{made['customerId']}", headers=ADMIN).json["deviceLimit"] == 500

    assert console("customer", "override", "--id", small["customerId"], "--max-devices", "9").exit_code == 1
    assert console("customer", "override", "--id", made["customerId"]).exit_code == 2
    assert console("customer", "override", "--id", made["customerId"], "--max-devices", "0").exit_code == 2

    assert console("customer", "override", "--id", made["customerId"], "--clear").exit_code == 0
    assert client.get(f"/api/usage/{made['customerId']}", headers=ADMIN).json["deviceLimit"] is None


def test_explain(console, client):
    made = make_customer(client, plan="starter")
    done = console("customer", "explain", "--id", made["customerId"])
    for line in ("Plan:             STARTER", "Because:          running trial"):
        assert line in done.stdout.splitlines()
    told = json.loads(console("customer", "explain", "--id", made["customerId"], "--json").stdout)
    assert (told["plan"], told["reason"], told["deviceLimit"]) == ("starter", "running trial", 10)


def test_audit_tells_who_did_what(console, client):
    made = make_customer(client)
    client.patch(
        f"/api/customers/{made['customerId']}", json={"name": "New"}, headers=ADMIN | {"X-Request-ID": "r-1"}
    )
    console("license", "revoke", "--customer", made["customerId"], "--reason", "leaked")

    told = json.loads(console("audit", "list", "--customer", made["customerId"], "--json").stdout)

    assert [line["action"] for line in told] == [
        "license.revoke",
        "customer.update",
        "license.issue",
        "subscription.start_trial",
        "customer.create",
    ]
    assert told[0]["actor"].startswith("console:")
    assert told[0]["after"]["reason"] == "leaked"
    assert (told[1]["requestId"], told[1]["before"], told[1]["after"]) == (
        "r-1",
        {"name": "Customer Name"},
        {"name": "New"},
    )
    assert made["license"] not in json.dumps(told)
    assert made["customerId"] in console("audit", "list").stdout


def test_the_console_needs_no_web_service_and_no_admin_key(make_app, client):
    made = make_customer(client)
    runner = make_app(ADMIN_API_KEY="").test_cli_runner()
    assert runner.invoke(args=["customer", "show", "--id", made["customerId"]]).exit_code == 0


def test_a_database_that_is_away_is_one_plain_line(make_app):
    app = make_app(DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    done = app.test_cli_runner().invoke(args=["customer", "list"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.fullmatch(r"Error: The database is not available[^\n]+\n", done.stderr)


@pytest.mark.parametrize(
    "args",
    [
        ["customer", "show", "--id", "\udcff"],
        ["customer", "list", "--email", "\udcff"],
        ["webhook", "replay", "\udcff"],
        ["license", "revoke", "--customer", "cust_x", "--reason", "x" * 501],
        ["license", "revoke", "--customer", "cust_x", "--reason", "\x1b[31m"],
        ["usage", "prune", "--older-than", "99999999"],
    ],
)
def test_arguments_that_cannot_be_meant_are_wrong_usage(console, args: list[str]):
    done = console(*args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_what_is_no_text_is_no_license(app):
    done = app.test_cli_runner().invoke(args=["license", "verify", "-"], input=b"\xff\xfe")
    assert (done.exit_code, done.stdout) == (1, "❌ MALFORMED\n")


def test_nobody_is_erased_unasked(console, client):
    made = make_customer(client)
    done = console("customer", "erase", "--id", made["customerId"])
    assert (done.exit_code, done.stdout, "--yes" in done.stderr) == (2, "", True)
    assert client.get(f"/api/customers/{made['customerId']}", headers=ADMIN).status_code == 200


def test_the_chart_of_a_long_window(console, client, sql):
    made = make_customer(client, plan="professional")
    for days, active in ((1, 10), (34, 50)):
        body = report_body(made["customerId"], active, 50, timestamp=ago(days=days))
        assert client.post("/api/usage/report", json=body, headers=ADMIN).status_code == 201
    show = ("usage", "show", "--customer", made["customerId"], "--days")
    chart = console(*show, "40").stdout.partition("Active Devices per Day")[2].splitlines()
    assert chart[0] == " (limit 50, newest 31):"
    assert [line.split()[-1] for line in chart if "█" in line] == ["10"]
    assert console(*show, "30").stdout.count("█") == 8
    sql("DELETE FROM usage_reports WHERE active_devices = 10")
    chart = console(*show, "40").stdout.partition("Active Devices per Day")[2]
    assert chart.startswith(" (limit 50):")
    assert chart.count("█") == 40


def test_what_has_ended_is_not_renewed(console, client):
    made = make_customer(client)
    path = f"/api/subscriptions/{made['subscription']['subscriptionId']}/cancel"
    assert client.post(path, headers=ADMIN).status_code == 200
    for args in (("customer", "show", "--id"), ("usage", "show", "--customer")):
        assert re.search(r"^Renewal Date: +-$", console(*args, made["customerId"]).stdout, re.MULTILINE)


def test_machines_are_told_of_an_erasure(console, client):
    made = make_customer(client)
    done = console("customer", "erase", "--id", made["customerId"], "--yes", "--json")
    assert json.loads(done.stdout) == {"customerId": made["customerId"], "erased": True}


def test_quick_test_workflow_of_the_readme(console, client):
    added = json.loads(
        console(
            "customer",
            "add",
            "--email",
            "test@example.com",
            "--name",
            "Test Customer",
            "--company",
            "Test Corp",
            "--json",
        ).stdout
    )
    customer_id, token = added["customerId"], added["license"]
    assert "No usage reports yet." in console("usage", "show", "--customer", customer_id).stdout

    flat = {"customer_id": customer_id, "instance_id": "dev-1", "active_devices": 5, "total_devices": 10}
    nested = {
        "customerId": customer_id, "instanceId": "us-east-1", "timestamp": ago(seconds=1),
        "metrics": {"activeDevices": 2, "totalDevices": 3},
    }  # fmt: skip
    for body in (flat, nested):
        assert client.post("/api/usage/report", json=body, headers=bearer(token)).status_code == 201

    lines = console("usage", "show", "--customer", customer_id).stdout.splitlines()
    for line in (
        "Total Reports:    2",
        "Avg Active:       7.0 devices",
        "Peak Active:      7 devices",
        "Current Active:   7 devices",
        "Current Total:    13 devices",
        "Limit:            5 devices",
        "Remaining:        0 devices",
        "⚠️  WARNING: 140.0% of device limit used!",
    ):
        assert line in lines
    assert console("customer", "deactivate", "--id", customer_id).exit_code == 0
