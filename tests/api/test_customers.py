"""Customers over HTTP: joining, reading, changing; what is refused stores nothing."""

import random
import re
from collections.abc import Callable
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from app.queries.subscriptions import OF_CUSTOMER, SUBSCRIPTION
from tests.api.conftest import at_once, pages
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer

Sql = Callable[..., list[dict[str, Any]]]


def without_license(customer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in customer.items() if name != "license"}


def listed(client: FlaskClient, **query: Any) -> list[str]:
    answer = client.get("/api/customers", query_string=query, headers=ADMIN)
    assert answer.status_code == 200, answer.json
    return [customer["customerId"] for customer in answer.json["customers"]]


def counts(sql: Sql) -> dict[str, int]:
    tables = ("customers", "subscriptions", "licenses")
    return {table: sql(f"SELECT COUNT(*) AS n FROM {table}")[0]["n"] for table in tables}


def test_joins_in_trial_mode(client: FlaskClient, sql: Sql) -> None:
    created = make_customer(client, email="Ada@Example.com", name="Ada", companyName="Engines Ltd")
    assert re.fullmatch(r"cust_[a-z0-9]{12,}", created["customerId"])
    assert (created["email"], created["companyName"]) == ("Ada@Example.com", "Engines Ltd")
    assert created["stripeCustomerId"] is None
    subscription = created["subscription"]
    assert subscription["subscriptionId"].startswith("trial_")
    assert [subscription[name] for name in ("plan", "status", "deviceLimit")] == ["trial", "trialing", 5]
    assert subscription["features"]["dataRetentionDays"] == 30
    assert subscription["limits"] == {"maxUsers": 5, "maxAlertRules": 25, "maxDashboards": 10}
    [row] = sql("SELECT trial_ends_at - created_at AS length, plan FROM subscriptions")
    assert (row["length"].days, row["plan"]) == (14, "trial")
    for headers in (ADMIN, bearer(created["license"])):
        answer = client.get(f"/api/customers/{created['customerId']}", headers=headers)
        assert (answer.status_code, answer.json) == (200, without_license(created))


def test_a_plan_begins_its_trial(client: FlaskClient, sql: Sql) -> None:
    begun = make_customer(client, plan="enterprise")["subscription"]
    assert [begun["plan"], begun["deviceLimit"]] == ["enterprise", None]
    assert [begun["features"]["maxDevices"], begun["limits"]["maxUsers"]] == [None, None]
    assert sql("SELECT trial_used_at FROM customers")[0]["trial_used_at"] is not None


def test_other_spellings(client: FlaskClient) -> None:
    for spelling in ("company_name", "company"):
        body = {"email": f"{spelling}@example.com", spelling: "Acme Corp"}
        answer = client.post("/api/customers", json=body, headers=ADMIN)
        assert (answer.status_code, answer.json["companyName"], answer.json["name"]) == (
            201,
            "Acme Corp",
            None,
        )


def test_the_columns_of_a_customer_with_its_subscriptions_are_what_they_are_called(app: Flask) -> None:
    """They are read by their places; two names that subscriptions share with customers have a prefix."""
    with app.extensions["billing.db"].statement() as cur:
        cur.execute("SELECT * FROM find_customer('cust_0', NULL)")
        names = [column[0] for column in cur.description]
    width = len(OF_CUSTOMER)
    assert tuple(names[:width]) == OF_CUSTOMER
    assert tuple(re.sub("^subscription_(?!id)", "", name) for name in names[width:]) == SUBSCRIPTION


BAD: dict[str, list[Any]] = {
    "email": [
        "a b@example.com", " a@example.com", "a@example.com ", "a@", "a" * 290 + "@example.com",
        "é@example.com", "a@exa\u017fmple.com", "a@example.com\x00", ["a@example.com"], None, 5, True,
        {"$ne": ""}, "a@localhost", "a" * 65 + "@example.com", "a@[192.0.2.1]",
    ],
    "name": [
        "a\u202eb", "a\u2028b", "", "   ", "a\x00b", "a\ud800b", "a\nb", "x" * 256, 7,
    ],
    "companyName": ["x" * 256],
    "plan": ["platinum", "Professional", 1],
    "company__name": ["A"],
    "company_Name": ["A"],
    "role": ["admin"],
    "customerId": ["cust_mine00000000"],
    "subscription": [{"plan": "enterprise"}],
}  # fmt: skip


def test_bad_fields_are_named_and_nothing_is_stored(client: FlaskClient, sql: Sql) -> None:
    for fields in (
        *({name: value} for name, values in BAD.items() for value in values),
        {"companyName": "A", "company_name": "B"},
        {"companyName": "A", "company": "B"},
    ):
        answer = client.post("/api/customers", json={"email": "ok@example.com"} | fields, headers=ADMIN)
        assert (fields, answer.status_code) == (fields, 422)
        assert next(iter(fields)) in answer.json["errors"]["json"]
    assert sql("SELECT 1 FROM customers UNION ALL SELECT 1 FROM audit_log") == []


def test_the_same_email_is_taken_in_any_letter_case_also_at_once(app: Flask, sql: Sql) -> None:
    def create(number: int) -> Any:
        email = ("same@example.com", "SAME@EXAMPLE.COM", "Same@Example.com")[number % 3]
        return app.test_client().post("/api/customers", json={"email": email}, headers=ADMIN)

    *refused, made = sorted(at_once(12, create), key=lambda answer: -answer.status_code)
    assert [answer.status_code for answer in (*refused, made)] == [409] * 11 + [201]
    assert made.json["customerId"] in create(0).json["message"]
    assert counts(sql) == {"customers": 1, "subscriptions": 1, "licenses": 1}


def test_list_pages_meet_everybody_once(client: FlaskClient) -> None:
    made, met = [make_customer(client)["customerId"] for _ in range(5)], []
    for number, page in enumerate(pages(client, "/api/customers", limit=3)):
        met += [customer["customerId"] for customer in page["customers"]]
        if number == 0:
            made.append(make_customer(client)["customerId"])
    assert (met, number) == (made, 1)  # the last page is full, and says that it is the last


def test_find_by_email_or_a_part_of_what_names_them(client: FlaskClient) -> None:
    ada = make_customer(client, email="Find.Me@example.com", name="Ada", companyName="Engines_100% Ltd")
    other = make_customer(client, name="Grace")
    ids = [ada["customerId"]]
    assert listed(client, email="find.me@EXAMPLE.com") == ids
    assert listed(client, email="find.me") == listed(client, email="%") == []
    for part in ("find.ME", "ada", "ENGINES", "_100%", ada["customerId"][7:]):
        assert listed(client, q=part) == ids
    assert listed(client, q="example.com") == [*ids, other["customerId"]]
    assert listed(client, q="ada\\") == listed(client, q="g%e") == []


def test_find_by_plan_and_status_of_the_subscription_that_counts(client: FlaskClient, sql: Sql) -> None:
    plain, trying, lapsed = (
        make_customer(client, **fields)["customerId"]
        for fields in ({}, {"plan": "starter"}, {"plan": "starter"})
    )
    sql("UPDATE subscriptions SET trial_ends_at = CURRENT_TIMESTAMP WHERE customer_id = %(id)s", id=lapsed)
    assert listed(client, plan="trial") == [plain]
    assert listed(client, plan="starter") == [trying, lapsed]
    assert listed(client, status="trialing") == [plain, trying]
    assert listed(client, status="expired", plan="starter") == [lapsed]
    assert listed(client, status="active") == listed(client, plan="unknown") == []
    first = client.get("/api/customers?plan=starter&limit=1", headers=ADMIN).json
    assert listed(client, plan="starter", limit=1, cursor=first["nextCursor"]) == [lapsed]


def test_a_list_shows_what_each_customer_shows(client: FlaskClient, sql: Sql) -> None:
    """The list finds the subscription that counts in SQL, everything else by `entitle`: both must agree."""
    lives = random.Random(7)
    for _ in range(60):
        id = make_customer(client)["customerId"]
        if lives.random() < 0.6:
            sql(
                "UPDATE subscriptions SET trial_ends_at = CURRENT_TIMESTAMP WHERE customer_id = %(id)s", id=id
            )
        for _ in range(lives.randint(0, 4)):
            sql(
                """INSERT INTO subscriptions (subscription_id, stripe_subscription_id, customer_id, plan,
                                              status, paid, created_at)
                   VALUES (%(sub)s, %(sub)s, %(id)s, %(plan)s, %(status)s, TRUE,
                           CURRENT_TIMESTAMP - %(days)s * INTERVAL '1 day')""",
                id=id,
                sub=f"sub_{lives.getrandbits(64):x}",
                plan=lives.choice(("starter", "professional", "enterprise", "unknown")),
                status=lives.choice(("active", "past_due", "trialing", "unpaid", "canceled", "frozen")),
                days=lives.choice((0, 1, 2, 300)),
            )
    found = client.get("/api/customers?limit=200", headers=ADMIN).json["customers"]
    assert len({(c["subscription"]["plan"], c["subscription"]["status"]) for c in found}) > 10
    for customer in found:
        assert client.get(f"/api/customers/{customer['customerId']}", headers=ADMIN).json == customer


def test_bad_queries_are_422(client: FlaskClient) -> None:
    for query in (
        "limit=0", "limit=201", "limit=-1", "limit=x", "limit=1e2", "limit=", "cursor=abc", "cursor=",
        "cursor=%00", "limit=5&limit=6", "offset=3", "email=", "cursor=" + "A" * 5000,
        "email=%00", "email=a%00b@example.com", "q=", "q=%00", "plan=gold", "plan=", "status=frozen",
        "limit=1_0", "limit=%2B5", "limit=%205", "limit=%D9%A3",
    ):  # fmt: skip
        answer = client.get(f"/api/customers?{query}", headers=ADMIN)
        assert (query, answer.status_code) == (query, 422)
        assert query.partition("=")[0] in answer.json["errors"]["query"]


def test_change_details(client: FlaskClient, sql: Sql) -> None:
    made = make_customer(client, name="Old", companyName="Old Corp")
    path = f"/api/customers/{made['customerId']}"
    changes = {"email": "new@example.com", "company_name": None}
    answer = client.patch(path, json=changes, headers=ADMIN)
    assert answer.status_code == 200
    assert [answer.json[n] for n in ("email", "name", "companyName")] == ["new@example.com", "Old", None]
    assert answer.json["updatedAt"] > made["updatedAt"]
    [line] = sql("SELECT actor, before, after FROM audit_log WHERE action = 'customer.update'")
    assert (line["actor"][:6], line["before"]["company_name"]) == ("admin:", "Old Corp")
    assert line["after"] == changes


def test_refused_changes_change_nothing(client: FlaskClient) -> None:
    make_customer(client, email="taken@example.com")
    made = make_customer(client)
    path = f"/api/customers/{made['customerId']}"
    for fields, status in (
        ({"email": None}, 422), ({"email": "nonsense"}, 422), ({"name": "x" * 300}, 422),
        ({"plan": "starter"}, 422), ({"email": "taken@example.com"}, 409),
        ({"email": "TAKEN@example.com"}, 409),
    ):  # fmt: skip
        answer = client.patch(path, json=fields, headers=ADMIN)
        assert (fields, answer.status_code) == (fields, status)
    assert client.get(path, headers=ADMIN).json == without_license(made)


def test_an_empty_change_and_its_own_email_in_another_case(client: FlaskClient) -> None:
    made = make_customer(client, email="ada@example.com")
    path, expected = f"/api/customers/{made['customerId']}", without_license(made)
    answer = client.patch(path, json={}, headers=ADMIN)
    assert (answer.status_code, answer.json) == (200, expected)
    answer = client.patch(path, json={"email": "Ada@Example.com"}, headers=ADMIN)
    changed = {"email": "Ada@Example.com", "updatedAt": answer.json["updatedAt"]}
    assert (answer.status_code, answer.json) == (200, expected | changed)


def test_changes_at_once_are_all_kept(app: Flask, client: FlaskClient, sql: Sql) -> None:
    made = make_customer(client, name="Old")
    path = f"/api/customers/{made['customerId']}"
    changes = [{"name": "New"}, {"companyName": "Corp"}, {"email": "new@example.com"}]
    answers = at_once(3, lambda n: app.test_client().patch(path, json=changes[n], headers=ADMIN))
    assert {answer.status_code for answer in answers} == {200}
    shown = client.get(path, headers=ADMIN).json
    assert (shown["name"], shown["companyName"], shown["email"]) == ("New", "Corp", "new@example.com")
    lines = sql("SELECT after FROM audit_log WHERE action = 'customer.update'")
    assert sorted(next(iter(line["after"])) for line in lines) == ["company_name", "email", "name"]
