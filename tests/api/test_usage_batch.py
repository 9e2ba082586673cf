"""Many reports in one call, each judged by itself."""

import json
import threading
from collections.abc import Callable
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from tests.conftest import ADMIN
from tests.factories import ago, bearer, make_customer, report_body

Sql = Callable[..., list[dict[str, Any]]]


def post(client: FlaskClient, items: Any, headers: dict[str, str] = ADMIN) -> Any:
    return client.post("/api/usage/reports", json={"reports": items}, headers=headers)


def stored(sql: Sql) -> int:
    return int(sql("SELECT COUNT(*) AS n FROM usage_reports")[0]["n"])


def test_each_item_is_on_its_own(client: FlaskClient, sql: Sql) -> None:
    customer, other = make_customer(client), make_customer(client)
    own = bearer(customer["license"])
    one, two, three = (report_body(customer["customerId"], timestamp=ago(hours=n)) for n in (1, 2, 3))
    client.post("/api/usage/report", json=three, headers=own)
    items = [
        one,
        one | {"activeDevices": -1},
        report_body(other["customerId"]),
        "nonsense",
        one | {"activeDevices": 4},
        two | {"timestamp": "2020-01-01T00:00:00Z"},
        one,
        three,
        three | {"totalDevices": 12},
        two,
        report_body("cust_zzzzzzzzzzzzzzzz"),
        None,
        {},
    ]
    answer = post(client, items, own)
    assert answer.status_code == 200
    body = answer.json
    assert [result["index"] for result in body["results"]] == list(range(len(items)))
    assert [result["status"] for result in body["results"]] == [
        201, 422, 403, 422, 409, 422, 200, 200, 409, 201, 403, 422, 422
    ]  # fmt: skip
    assert (body["accepted"], body["duplicates"], body["rejected"]) == (2, 2, 9)
    assert body["results"][0]["reportId"] == body["results"][6]["reportId"]
    assert list(body["results"][1]["errors"]["json"]) == ["activeDevices"]
    assert all(("reportId" in r) != ("errors" in r) for r in body["results"])
    assert stored(sql) == 3
    assert sql("SELECT DISTINCT customer_id AS c FROM usage_reports") == [{"c": customer["customerId"]}]


def test_unknown_customer_is_that_items_404_for_an_operator(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    answer = post(client, [report_body("cust_zzzzzzzzzzzzzzzz"), report_body(customer_id)])
    assert [result["status"] for result in answer.json["results"]] == [404, 201]
    assert post(client, [report_body("cust_zzzzzzzzzzzzzzzz")]).json["rejected"] == 1
    assert stored(sql) == 1


def test_sent_again_all_are_duplicates(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    items = [report_body(customer_id, timestamp=ago(hours=n)) for n in range(50)]
    first, again = post(client, items).json, post(client, items).json
    assert (first["accepted"], again["accepted"], again["duplicates"]) == (50, 0, 50)
    ids = [[result["reportId"] for result in answer["results"]] for answer in (first, again)]
    assert ids[0] == ids[1]
    assert stored(sql) == 50


def test_backlog_of_a_month_in_one_call(client: FlaskClient, sql: Sql) -> None:
    customer = make_customer(client)
    items = [report_body(customer["customerId"], timestamp=ago(hours=n * 0.8)) for n in range(1000)]
    answer = post(client, items, bearer(customer["license"]))
    assert (answer.status_code, answer.json["accepted"]) == (200, 1000)
    assert stored(sql) == 1000
    newest = client.post(
        "/api/usage/report",
        json=report_body(customer["customerId"], timestamp=ago(minutes=-1)),
        headers=ADMIN,
    )
    assert newest.json["lastReportAt"] == items[0]["timestamp"]


def test_many_customers_in_one_call(client: FlaskClient, sql: Sql) -> None:
    customers = [make_customer(client)["customerId"] for _ in range(5)]
    items = [report_body(customer_id, timestamp=ago(hours=n)) for n in range(4) for customer_id in customers]
    assert post(client, items).json["accepted"] == 20
    rows = sql("SELECT customer_id, COUNT(*) AS n FROM usage_reports GROUP BY customer_id")
    assert {row["customer_id"]: row["n"] for row in rows} == dict.fromkeys(customers, 4)
    assert sql("SELECT COUNT(*) AS n FROM usage_levels WHERE level = 100") == [{"n": 5}]


def test_size_of_a_batch(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    item = report_body(customer_id, timestamp=ago(hours=1))
    for items in ([], [item] * 1001, {}, None, "x", 5):
        assert (post(client, items).status_code, len(str(items)) < 99) in [(422, True), (422, False)]
    assert client.post("/api/usage/reports", json=[item], headers=ADMIN).status_code == 422
    assert (
        client.post("/api/usage/reports", json={"reports": [item], "x": 1}, headers=ADMIN).status_code == 422
    )
    assert stored(sql) == 0
    assert post(client, [item] * 1000).json["duplicates"] == 999
    assert stored(sql) == 1


def test_a_mebibyte_and_no_more(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    text = json.dumps({"reports": [report_body(customer_id)]})

    def sized(size: int) -> int:
        return client.post(
            "/api/usage/reports", data=text.ljust(size), content_type="application/json", headers=ADMIN
        ).status_code

    assert (sized(2**20 + 1), stored(sql)) == (413, 0)
    assert (sized(2**20), stored(sql)) == (200, 1)


def test_single_report_is_capped_lower(client: FlaskClient, sql: Sql) -> None:
    text = json.dumps(report_body(make_customer(client)["customerId"]))
    for size, status in ((2**16 + 1, 413), (2**16, 201)):
        answer = client.post(
            "/api/usage/report", data=text.ljust(size), content_type="application/json", headers=ADMIN
        )
        assert answer.status_code == status
    assert stored(sql) == 1


def test_batches_at_once_neither_block_nor_double(app: Flask, client: FlaskClient, sql: Sql) -> None:
    customers = [make_customer(client)["customerId"] for _ in range(3)]
    items = [
        report_body(customer_id, timestamp=ago(hours=n), instanceId=f"i{n % 3}")
        for n in range(30)
        for customer_id in customers
    ]
    barrier, answers = threading.Barrier(4), []

    def send(order: list[dict[str, Any]]) -> None:
        own = app.test_client()
        barrier.wait()
        answers.append(post(own, order).json)

    orders = [items, items[::-1], items[45:] + items[:45], sorted(items, key=str)]
    threads = [threading.Thread(target=send, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(answer["accepted"] for answer in answers) == len(items)
    assert sum(answer["duplicates"] for answer in answers) == 3 * len(items)
    assert stored(sql) == len(items)


def test_other_customers_reports_are_refused_without_telling(client: FlaskClient, sql: Sql) -> None:
    one, other = make_customer(client), make_customer(client)
    items = [report_body(other["customerId"]), report_body("cust_zzzzzzzzzzzzzzzz")]
    results = post(client, items, bearer(one["license"])).json["results"]
    assert [result["status"] for result in results] == [403, 403]
    assert results[0]["errors"] == results[1]["errors"]
    assert stored(sql) == 0
