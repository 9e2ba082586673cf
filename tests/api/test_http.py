"""The conventions of every route: bodies, errors, request ids, idempotency keys."""

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.queries import idempotency
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"null", 400),
        (b"{", 400),
        (b"not json", 400),
        (b'{"email": "a@example.com", "email": "b@example.com"}', 400),
        (b'{"email": NaN}', 400),
        (b'{"email": Infinity}', 400),
        (b"\xff\xfe", 400),
        ('{"email": "ada@example.com"}'.encode("utf-16"), 400),
        (b"\xef\xbb\xbf{}", 422),
        (b"[" * 20_000, 400),
        (b'{"a":' * 12_000 + b"1" + b"}" * 12_000, 413),
        (b'{"email": ' + b"9" * 5000 + b"}", 400),
        (b"[]", 422),
        (b"5", 422),
        (b'"text"', 422),
        (b"true", 422),
        (b"1e400", 422),
        (b'{"email": 1e400}', 422),
        (b"x" * 65_537, 413),
        (b"x" * 10_000_000, 413),
    ],
)
def test_bodies(client, sql, body: bytes, status: int):
    answer = client.post("/api/customers", data=body, headers=ADMIN | JSON)

    assert answer.status_code == status
    assert answer.json["code"] == status
    assert answer.json["requestId"] == answer.headers["X-Request-ID"]
    assert sql("SELECT 1 FROM customers") == []


class Broken(io.BytesIO):
    """Chunks that are none."""

    def read(self, size: int | None = -1) -> bytes:
        raise OSError("no chunk")


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (io.BytesIO(b'{"email": "ada@example.com"}'), {"CONTENT_LENGTH": "29"}),
        (Broken(), {"CONTENT_LENGTH": "29"}),
        (Broken(), {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}),
    ],
)
def test_a_body_that_breaks_off_is_none(client, sql, stream: io.BytesIO, told: dict):
    environ = told | {"wsgi.input": stream, "CONTENT_TYPE": "application/json"}
    answer = client.post("/api/customers", headers=ADMIN, environ_overrides=environ)
    assert answer.status_code == 400
    assert sql("SELECT 1 FROM customers") == []


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_content_types_are_415(client, content_type: str):
    body = json.dumps({"email": "a@example.com"})
    answer = client.post("/api/customers", data=body, headers=ADMIN | {"Content-Type": content_type})
    assert answer.status_code == 415


@pytest.mark.parametrize("body", [None, b"", b"{}", b"null"])
def test_an_optional_body_may_be_absent(client, body: bytes | None):
    made = make_customer(client)
    answer = client.post(f"/api/licenses/{made['customerId']}/revoke", data=body, headers=ADMIN | JSON)
    assert answer.status_code == 200


def test_credentials_come_before_the_body(client):
    for path in ("/api/customers", "/api/usage/report", "/api/subscriptions/create-trial"):
        assert client.post(path, data=b"{", headers=JSON).status_code == 401


def test_a_revoked_license_is_told_before_a_bad_body(client):
    made = make_customer(client)
    client.post(f"/api/licenses/{made['customerId']}/revoke", headers=ADMIN)
    answer = client.post("/api/usage/report", data=b"{", headers=bearer(made["license"]) | JSON)
    assert answer.status_code == 403


def test_errors_have_one_shape(client):
    answer = client.get("/nowhere")
    assert answer.status_code == 404
    assert set(answer.json) == {"code", "status", "message", "requestId"}
    assert (answer.json["code"], answer.json["status"]) == (404, "Not Found")
    answer = client.delete("/api/customers", headers=ADMIN)
    assert (answer.status_code, answer.json["code"]) == (405, 405)
    assert "GET" in answer.headers["Allow"]


def test_a_failure_of_ours_tells_nothing(app, client, caplog):
    def broken() -> None:
        raise RuntimeError("SELECT secret FROM internals")

    app.add_url_rule("/broken", view_func=broken)
    answer = client.get("/broken")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json["requestId"] == answer.headers["X-Request-ID"]
    [line] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert (line.error, line.request_id) == ("RuntimeError", answer.json["requestId"])
    assert line.at[-1].startswith("test_http.py:")
    assert "SELECT" not in caplog.text


@pytest.mark.parametrize("given", ["abc", "A.b_c-9", "x" * 64])
def test_a_good_request_id_is_kept(client, given: str):
    assert client.get("/health", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a/b", "é", "a\tb", "<script>"])
def test_another_one_is_replaced(client, given: str):
    told = client.get("/health", headers={"X-Request-ID": given}).headers["X-Request-ID"]
    assert told != given
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", told)


def test_times_are_utc_with_z(client):
    made = make_customer(client)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", made["createdAt"])


@pytest.mark.parametrize("path", ["/api//customers", "//api/customers", "/health//ready", "/docs//"])
def test_no_caller_is_sent_elsewhere(client, path: str):
    answer = client.get(path, headers=ADMIN | {"Host": "evil.example"})
    assert (answer.status_code, answer.headers.get("Location")) == (404, None)


class TestIdempotencyKey:
    def create(self, client, key: str, **fields):
        body = {"email": "ada@example.com"} | fields
        return client.post("/api/customers", json=body, headers=ADMIN | {"Idempotency-Key": key})

    def test_again_gives_the_first_answer_and_does_nothing(self, client, sql):
        first = self.create(client, "k1")
        second = self.create(client, "k1")
        assert (first.status_code, second.status_code) == (201, 201)
        assert second.json == first.json
        assert sql("SELECT COUNT(*) AS n FROM customers") == [{"n": 1}]
        assert sql("SELECT COUNT(*) AS n FROM audit_log WHERE action = 'customer.create'") == [{"n": 1}]

    def test_another_body_takes_nothing_from_the_first(self, client, sql):
        first = self.create(client, "k1")
        for _ in range(2):
            assert self.create(client, "k1", name="Other").status_code == 422
            again = self.create(client, "k1")
            assert (again.status_code, again.json) == (201, first.json)

    def test_what_was_wrong_with_the_request_and_not_its_body_is_not_kept(self, client):
        headers = ADMIN | {"Idempotency-Key": "k1"}
        body = json.dumps({"email": "ada@example.com"})
        for content_type, status in (("text/plain", 415), ("application/json", 201)):
            answer = client.post("/api/customers", data=body, content_type=content_type, headers=headers)
            assert answer.status_code == status

    def test_a_late_refusal_does_not_replace_an_answer(self, app):
        slot = {"caller": "c", "route": "/r", "key": "k"}
        with app.extensions["billing.db"].statement() as cur:
            for status in (201, 422):
                idempotency.upsert_answer(cur, **slot, body_hash="h", status_code=status, response="{}")
            assert idempotency.select_answer(cur, **slot)["status_code"] == 201

    def test_another_body_is_422(self, client, sql):
        self.create(client, "k1")
        answer = self.create(client, "k1", email="bob@example.com")
        assert answer.status_code == 422
        assert sql("SELECT COUNT(*) AS n FROM customers") == [{"n": 1}]

    def test_spacing_and_order_are_the_same_body(self, client):
        first = self.create(client, "k1", name="Ada")
        body = b'{ "name":"Ada",   "email":"ada@example.com" }'
        headers = ADMIN | JSON | {"Idempotency-Key": "k1"}
        assert client.post("/api/customers", data=body, headers=headers).json == first.json

    def test_a_refusal_is_kept_too(self, client, sql):
        made = make_customer(client, email="ada@example.com")
        assert self.create(client, "k1").status_code == 409
        sql(
            "UPDATE customers SET email = 'moved@example.com' WHERE customer_id = %(id)s",
            id=made["customerId"],
        )
        assert self.create(client, "k1").status_code == 409
        assert self.create(client, "k2").status_code == 201

    def test_a_wrong_body_is_answered_the_same_again(self, client, sql):
        first = self.create(client, "k1", plan="nonsense")
        again = self.create(client, "k1", plan="nonsense")
        assert (first.status_code, again.status_code, again.json) == (422, 422, first.json)
        put_right = self.create(client, "k1")
        assert (put_right.status_code, "headers" in put_right.json["errors"]) == (422, True)
        assert sql("SELECT 1 FROM customers") == []
        assert self.create(client, "k2").status_code == 201

    def test_who_was_not_let_in_has_used_up_no_key(self, client):
        headers = bearer("guess") | {"Idempotency-Key": "k1"}
        assert (
            client.post("/api/customers", json={"email": "a@example.com"}, headers=headers).status_code == 401
        )
        assert self.create(client, "k1").status_code == 201

    def test_it_belongs_to_its_route(self, client):
        made = self.create(client, "k1").json
        answer = client.post(
            "/api/subscriptions/create-trial",
            json={"customerId": made["customerId"], "plan": "starter"},
            headers=ADMIN | {"Idempotency-Key": "k1"},
        )
        assert answer.status_code == 201

    def test_it_is_forgotten_after_a_day(self, client, sql):
        self.create(client, "k1")
        sql("UPDATE idempotency_keys SET created_at = created_at - INTERVAL '25 hours'")
        assert self.create(client, "k1").status_code == 409

    def test_at_once_one_works_and_the_others_wait_or_repeat(self, app, sql):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: self.create(app.test_client(), "k1"), range(16)))
        assert {answer.status_code for answer in answers} <= {201, 409}
        created = {answer.json["customerId"] for answer in answers if answer.status_code == 201}
        assert len(created) == 1
        assert sql("SELECT COUNT(*) AS n FROM customers") == [{"n": 1}]
        assert all("still running" in a.json["message"] for a in answers if a.status_code == 409)

    def test_an_answer_of_500_is_not_kept(self, client, sql):
        sql("ALTER TABLE licenses ADD CONSTRAINT never CHECK (FALSE) NOT VALID")
        assert self.create(client, "k1").status_code == 500
        sql("ALTER TABLE licenses DROP CONSTRAINT never")
        assert self.create(client, "k1").status_code == 201

    @pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256])
    def test_a_malformed_key_is_422(self, client, sql, key: str):
        assert self.create(client, key).status_code == 422
        assert sql("SELECT 1 FROM customers") == []


def test_the_page_of_the_api_works_without_internet(client):
    for path in ("/docs", "/docs/"):
        page = client.get(path)
        assert page.status_code == 200
        assert "http://" not in page.text.replace("http://localhost", "")
        assert "https://" not in page.text
        for asset in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            with client.get(asset) as file:
                assert file.status_code == 200, asset


def test_the_document_tells_of_every_route(app, client):
    document = client.get("/openapi.json").json
    assert document["openapi"] == "3.1.0"
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith(("/api/", "/webhooks/", "/.well-known/")):
            path = re.sub(r"<(\w+)>", r"{\1}", rule.rule)
            for method in rule.methods - {"HEAD", "OPTIONS"}:
                assert method.lower() in document["paths"][path], rule
