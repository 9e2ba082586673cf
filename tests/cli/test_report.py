"""`flask report`, and the gauges of /metrics that are counted in the same way."""

import csv
import io
import json

from tests.conftest import ADMIN
from tests.factories import ago, make_customer, report_body


def test_of_nobody(console):
    assert json.loads(console("report", "--json").stdout) == {
        "customers": [],
        "revenue": [],
        "pastDue": [],
        "trialsEnding": 0,
        "paymentsFailed": 0,
        "licensesLapsing": 0,
        "silentInstances": {"count": 0, "customers": 0},
        "overage": {"deviceDays": 0, "amount": 0},
    }


def test_figures_and_names(shop, console, sql):
    paying = [shop.subscribe("starter", email=f"starter{n}@example.com")[0] for n in range(2)]
    failing, _ = shop.subscribe("professional", email="failing@example.com")
    shop.sandbox.set_card(shop.stripe_id(failing), "decline")
    ending = make_customer(shop.client, email="ending@example.com", plan="starter")
    quiet = make_customer(shop.client, email="quiet@example.com")
    body = report_body(quiet["customerId"], timestamp=ago(hours=49))
    shop.client.post("/api/usage/report", json=body, headers=ADMIN)
    sql("UPDATE subscriptions SET status = 'past_due' WHERE plan = 'professional'")
    sql(
        """UPDATE subscriptions SET trial_ends_at = now() + interval '6 days' WHERE customer_id = %(id)s""",
        id=ending["customerId"],
    )
    sql(
        """UPDATE licenses SET issued_at = now() - interval '3 days', renews_at = now() - interval '2 days',
                  expires_at = now() - interval '1 day'
            WHERE customer_id = %(id)s AND superseded_at IS NULL""",
        id=paying[0],
    )

    found = json.loads(console("report", "--details", "--json").stdout)
    assert found["customers"] == [
        {"plan": "professional", "status": "past_due", "count": 1},
        {"plan": "starter", "status": "active", "count": 2},
        {"plan": "starter", "status": "trialing", "count": 1},
        {"plan": "trial", "status": "trialing", "count": 1},
    ]
    month = {"interval": "month", "currency": "usd"}
    assert found["revenue"] == [{"plan": "starter", "amount": 5800} | month]
    assert found["pastDue"] == [{"plan": "professional", "amount": 9900} | month]
    assert found["silentInstances"] == {"count": 1, "customers": 1}
    details = found["details"]
    assert (found["trialsEnding"], details["trialsEnding"]) == (
        1, [f"ending@example.com ({ending['customerId']})"],
    )  # fmt: skip
    assert (found["paymentsFailed"], details["paymentsFailed"]) == (1, [f"failing@example.com ({failing})"])
    assert details["licensesLapsing"] == [f"starter0@example.com ({paying[0]})"]

    screen = console("report", "--details").stdout
    for text in ("$58.00", "$99.00", "past due", "Trials Ending:      1 within", "ending@example.com"):
        assert text in screen
    assert "ending@example.com" not in console("report").stdout
    rows = list(csv.DictReader(io.StringIO(console("report", "--csv").stdout)))
    assert [(row["kind"], row["plan"], row["amount"]) for row in rows] == [
        ("revenue", "starter", "5800"), ("past_due", "professional", "9900"), ("overage", "", "0"),
    ]  # fmt: skip
    gauges = shop.client.get("/metrics").text
    for line in (
        'billing_customers{plan="starter",status="active"} 2.0',
        'billing_monthly_revenue_usd{plan="starter"} 58.0',
        "billing_trials_ending_7d 1.0",
    ):
        assert line in gauges
