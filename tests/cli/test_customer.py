"""`flask customer …` and `flask audit …`: the seed's text, and effects seen through the API."""

import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from tests.cli.conftest import RULE, SHORT_RULE
from tests.conftest import ADMIN
from tests.factories import make_customer, report_body
from tests.tokens import claims_of


def local(text: str) -> str:
    at = datetime.fromisoformat(text).astimezone()
    return f"{at.month}/{at.day}/{at.year}, {at.hour % 12 or 12}:{at:%M:%S %p}"


def test_add(console, client):
    company = ("--email", "customer@example.com", "--name", "Customer Name", "--company", "Company Inc")
    done = console("customer", "add", *company)

    assert (done.exit_code, done.stderr) == (0, "")
    [made] = client.get("/api/customers", headers=ADMIN).json["customers"]
    answer = client.get(f"/api/licenses/{made['customerId']}", headers=ADMIN).json
    token, public_key = answer["license"], answer["publicKey"].strip().replace("\n", "\\n")
    assert (
        done.stdout
        == f"""\
✅ Customer created successfully!
Customer Details:
{SHORT_RULE}
ID:               {made["customerId"]}
Email:            customer@example.com
Name:             Customer Name
Company:          Company Inc
Created:          {local(made["createdAt"])}
{SHORT_RULE}

📜 Initial License JWT (Trial):
{token}

💡 Add this to customer instance .env file:
LICENSE_JWT={token}
CUSTOMER_ID={made["customerId"]}
IOTISTIC_LICENSE_KEY={token}
LICENSE_PUBLIC_KEY="{public_key}"
BILLING_API_URL=http://localhost:3100
"""
    )
    refused = console("customer", "add", "--email", "CUSTOMER@example.com", "--name", "N")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert made["customerId"] in refused.stderr
    assert len(client.get("/api/customers", headers=ADMIN).json["customers"]) == 1


def test_list_says_the_same_in_every_form(console, client):
    company = {"name": "Customer Name", "companyName": "Test & Co"}
    first = make_customer(client, email="customer@example.com", plan="professional", **company)["customerId"]
    second = make_customer(client, email="a@test.com", name="A. Tester", plan="professional")
    subscription_id, second = second["subscription"]["subscriptionId"], second["customerId"]
    client.post("/api/usage/report", json=report_body(second, 7), headers=ADMIN)
    client.post(f"/api/subscriptions/{subscription_id}/cancel", headers=ADMIN)
    assert (
        console("customer", "list").stdout
        == f"""\
Found 2 customer(s):

{RULE}
ID                    | Email                        | Name                  | Company        \
| Plan         | Status   | Active
{RULE}
{first} | customer@example.com         | Customer Name         | Test & Co      \
| PROFESSIONAL | TRIALING |      0
{second} | a@test.com                   | A. Tester             | -              \
| TRIAL        | CANCELED |      7
{RULE}
"""
    )
    _, row = json.loads(console("customer", "list", "--json").stdout)
    assert (row["plan"], row["status"], row["activeDevices"]) == ("trial", "canceled", 7)
    assert row["subscription"]["plan"] == "professional"
    _, cells = csv.DictReader(io.StringIO(console("customer", "list", "--csv").stdout))
    assert (cells["plan"], cells["status"], cells["active_devices"]) == ("trial", "canceled", "7")

    def ids(*args: str) -> list[str]:
        return [row["customerId"] for row in json.loads(console("customer", "list", *args, "--json").stdout)]

    assert ids("--search", "test") == [first, second]
    assert ids("--search", "no such") == ids("--plan", "starter") == []
    assert ids("--plan", "professional") == [first]
    assert ids("--plan", "trial") == ids("--status", "canceled") == [second]
    assert ids("--sort", "email") == ids("--sort", "devices") == [second, first]
    assert ids("--sort", "name", "--limit", "1") == [second]


def test_show_explain_and_update(console, client):
    words = ("--name", "Ada", "--email", "ada@example.com", "--company", "Engines", "--plan", "enterprise")
    made = json.loads(console("customer", "add", *words, "--json").stdout)
    done = console("customer", "show", "--id", made["customerId"])
    for line in ("Plan:             ENTERPRISE", "Status:           TRIALING", "Device Limit:     Unlimited"):
        assert line in done.stdout.splitlines()
    shown = json.loads(console("customer", "show", made["customerId"], "--json").stdout)
    assert shown == {name: value for name, value in made.items() if name != "license"}
    lines = console("customer", "explain", "--id", made["customerId"]).stdout.splitlines()
    assert {"Plan:             ENTERPRISE", "Because:          running trial"} <= set(lines)
    said = json.loads(console("customer", "explain", made["customerId"], "--json").stdout)
    assert (said["plan"], said["reason"], said["deviceLimit"]) == ("enterprise", "running trial", None)

    update = ("customer", "update", made["customerId"])
    assert console(*update, "--email", "new@example.com", "--company", "").exit_code == 0
    found = client.get(f"/api/customers/{made['customerId']}", headers=ADMIN).json
    assert (found["email"], found["companyName"], found["name"]) == ("new@example.com", None, "Ada")
    assert console(*update).exit_code == 2


def test_deactivate_a_trial(console, client):
    made = make_customer(client, plan="professional")
    done = console("customer", "deactivate", "--id", made["customerId"])
    ended = client.get(f"/api/subscriptions/{made['customerId']}", headers=ADMIN).json["subscription"]
    assert ended["status"] == "canceled"
    assert re.sub(r"\d+/\d+/\d{4}, \d+:\d\d:\d\d [AP]M", "TIME", done.stdout) == (
        f"""\
✅ Customer deactivated successfully!
Deactivation Details:
{SHORT_RULE}
Customer ID:      {made["customerId"]}
Subscription ID:  {ended["subscriptionId"]}
Previous Plan:    professional
Cancelled At:     TIME
{SHORT_RULE}

💡 Customer will revert to trial mode.
   They can reactivate by subscribing again.
"""
    )
    assert console("customer", "deactivate", "--id", made["customerId"]).exit_code == 1
    assert "Renewal Date:     -" in console("customer", "show", made["customerId"]).stdout.splitlines()


def test_override_is_for_enterprise(console, client):
    made, small = make_customer(client, plan="enterprise"), make_customer(client)
    override = ("customer", "override", "--id", made["customerId"])
    assert console(*override, "--max-devices", "500", "--retention-days", "90").exit_code == 0
    token = client.get(f"/api/licenses/{made['customerId']}", headers=ADMIN).json["license"]
    features = claims_of(token)["features"]
    assert (features["maxDevices"], features["dataRetentionDays"]) == (500, 90)
    assert console(*override, "--clear").exit_code == 0
    assert client.get(f"/api/usage/{made['customerId']}", headers=ADMIN).json["deviceLimit"] is None
    for wrong in ([], ["--max-devices", "0"]):
        assert console(*override, *wrong).exit_code == 2
    for more in ([], ["--clear"]):
        refused = console("customer", "override", small["customerId"], "--max-devices", "7", *more)
        assert refused.exit_code == 1
    assert client.get(f"/api/usage/{small['customerId']}", headers=ADMIN).json["deviceLimit"] == 5


def test_audit_export_and_erase(console, client, terminal):
    made = make_customer(client, name="Ada", email="ada@example.com", plan="professional")
    client.patch(f"/api/customers/{made['customerId']}", json={"name": "Ada B."}, headers=ADMIN)
    console("license", "revoke", "--customer", made["customerId"], "--reason", "leaked")
    text = console("audit", "list", "--customer", made["customerId"]).stdout
    [update] = [line for line in text.splitlines() if "name: Ada → Ada B." in line]
    assert "admin:" in update
    assert re.search(r"console:.*license.revoke .*leaked", text)
    assert made["license"] not in text
    rows = json.loads(console("audit", "list", made["customerId"], "--json").stdout)
    assert ({"name": "Ada"}, {"name": "Ada B."}) in [(row["before"], row["after"]) for row in rows]

    exported = console("customer", "export", made["customerId"])
    assert json.loads(exported.stdout)["customer"]["email"] == "ada@example.com"
    unasked = console("customer", "erase", "--id", made["customerId"])
    assert (unasked.exit_code, unasked.stdout, "--yes" in unasked.stderr) == (2, "", True)
    code, screen = terminal("customer", "erase", "ada@example.com", typed="perhaps\n")
    assert (code, f"Erase Ada B. <ada@example.com> ({made['customerId']})" in screen) == (1, True)
    assert client.get(f"/api/customers/{made['customerId']}", headers=ADMIN).status_code == 200
    assert terminal("customer", "erase", "ada@example.com", typed="yes\n")[0] == 0
    assert client.get(f"/api/customers/{made['customerId']}", headers=ADMIN).status_code == 404
    assert "customer.erase" in console("audit", "list", made["customerId"]).stdout
    again = console("customer", "add", "--email", "ada@example.com", "--name", "Ada", "--json")
    assert "trial of this address was used up" in again.stderr
    assert json.loads(again.stdout)["subscription"]["status"] == "expired"


def test_import(console, client, tmp_path):
    there = make_customer(client, email="there@example.com")
    file = tmp_path / "customers.csv"
    file.write_text(
        "email,name,company,plan\nada@example.com,Ada,,starter\nthere@example.com,,,\nnonsense,,,\n"
    )
    dry = console("customer", "import", str(file), "--dry-run")
    assert (dry.exit_code, "1 customer(s) would be imported, 1 failed, 1 left." in dry.stdout) == (1, True)
    assert len(client.get("/api/customers", headers=ADMIN).json["customers"]) == 1

    rows = json.loads(console("customer", "import", str(file), "--json").stdout)
    outcomes = [(row["line"], row["outcome"]) for row in rows]
    assert outcomes == [(2, "created"), (3, "exists"), (4, "failed")]
    assert rows[1]["customerId"] == there["customerId"]
    made = client.get(f"/api/customers/{rows[0]['customerId']}", headers=ADMIN).json
    assert (made["name"], made["subscription"]["plan"]) == ("Ada", "starter")
    file.write_text("name\nAda\n")
    assert console("customer", "import", str(file)).exit_code == 1


@pytest.mark.parametrize("broken", [b"\xff@example.com", b'"eve@example.com'])
def test_an_import_names_each_line_also_before_one_that_cannot_be_read(console, client, tmp_path, broken):
    file = tmp_path / "customers.csv"
    file.write_bytes(b"email\n" + b"".join(b"ada%d@example.com\n" % n for n in range(500)) + broken)
    done = console("customer", "import", str(file))
    assert (done.exit_code, done.stdout.count(": created (cust_")) == (1, 500)
    assert done.stdout.splitlines()[-2].startswith("Line 502: ")
    assert done.stdout.splitlines()[-1] == "500 customer(s) imported, 1 failed, 0 left."
    file.write_bytes(b'"email\n')
    assert console("customer", "import", str(file)).stdout.startswith("Line 1: : failed (unexpected end")


class TestPaid:
    """With the local Stripe behind it."""

    def test_a_checkout_link(self, shop, console):
        customer_id = shop.customer()
        done = console("customer", "upgrade", "--id", customer_id, "--plan", "professional")
        session = shop.sandbox.every("checkout.session")[0]
        assert re.sub(r"Expires: .*", "Expires", done.stdout) == (
            f"""\
✅ Checkout session created!
Checkout Details:
{SHORT_RULE}
Session ID:       {session["id"]}
Plan:             professional
Expires
{SHORT_RULE}

🔗 Checkout URL:
{session["url"]}

💡 Send this URL to the customer to complete payment.
   After payment, webhook will auto-provision subscription.
"""
        )
        wrong = console("customer", "upgrade", customer_id, "--plan", "starter", "--promo-code", "NONE")
        assert (wrong.exit_code, wrong.stdout) == (1, "")
        assert "promoCode" in wrong.stderr

    def test_a_paid_change_says_its_price_and_asks(self, shop, console, terminal):
        customer_id, _ = shop.subscribe("starter", email="ada@example.com", name="Ada")
        upgrade = ("customer", "upgrade", "ada@example.com", "--plan", "professional")
        paid = shop.charges()
        code, screen = terminal(*upgrade, typed="no\n", columns=200)
        assert code == 1
        [charge] = re.findall(
            rf"Ada <ada@example.com> \({customer_id}\): starter .* charges \$([\d.]+)", screen
        )
        assert (shop.charges(), shop.plan_and_status(customer_id)[0]) == (paid, "starter")
        done = console(*upgrade)
        assert (done.exit_code, f"Stripe charges ${charge} now" in done.stderr) == (0, True)
        explained = console("customer", "explain", customer_id).stdout
        assert re.search(r"(?m)^\d+/\d+/\d{4}, .* [AP]M  customer\.subscription\.updated ", explained)
        assert shop.plan_and_status(customer_id) == ("professional", "active")
        assert shop.charges()[-1] == round(float(charge) * 100)
        same = terminal(*upgrade, columns=200)
        assert (same[0], "[y/N]" in same[1]) == (1, False)

    def test_portal_invoices_and_the_end_of_a_subscription(self, shop, console, terminal):
        customer_id, subscription_id = shop.subscribe("starter")
        assert console("customer", "portal", customer_id).stdout.splitlines()[-1].startswith("http")
        shown = console("customer", "invoices", customer_id)
        assert (shown.exit_code, "$29.00" in shown.stdout, "paid" in shown.stdout) == (0, True, True)
        [row] = json.loads(console("customer", "invoices", customer_id, "--json").stdout)
        assert [row] == shop.get(f"/api/customers/{customer_id}/invoices")["invoices"]

        done = console("customer", "deactivate", customer_id, "--at-period-end", "--yes")
        assert "deactivated" not in done.stdout
        assert re.search(r"Ends At: +\d", done.stdout)
        assert shop.subscription(subscription_id)["cancelAtPeriodEnd"] is True
        assert console("customer", "resume", customer_id).exit_code == 0
        assert shop.subscription(subscription_id)["cancelAtPeriodEnd"] is False
        assert console("customer", "resume", customer_id).exit_code == 1

        for refused in ("deactivate", "erase"):
            code, screen = terminal("customer", refused, customer_id, STRIPE_SECRET_KEY="")
            assert (code, screen) == (1, "Error: Stripe is not configured: STRIPE_SECRET_KEY is not set.\n")
        ends = datetime.now(UTC) + timedelta(days=5)
        shop.sandbox.update_subscription(subscription_id, cancel_at=int(ends.timestamp()))
        shop.deliver()
        shown = console("customer", "show", customer_id).stdout
        assert f"\nEnds:             {local(str(ends))}\n" in shown

        code, screen = terminal("customer", "deactivate", customer_id, typed="\n", columns=200)
        assert (code, f"Cancel starter {subscription_id} (active) of" in screen) == (1, True)
        assert shop.plan_and_status(customer_id) == ("starter", "active")
        assert terminal("customer", "deactivate", customer_id, typed="y\n")[0] == 0
        assert shop.subscription(subscription_id)["status"] == "canceled"
        assert "[y/N]" not in terminal("customer", "deactivate", customer_id)[1]
