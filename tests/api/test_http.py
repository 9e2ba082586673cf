"""The conventions of every route: bodies, errors, headers, idempotency keys."""

import gzip
import io
import json
import re
import socket
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.conftest import ADMIN, ADMIN_KEY
from tests.factories import bearer, make_customer, report_body

JSON = {"Content-Type": "application/json"}
ADA = b'{"email": "ada@example.com"}'
KIB = 1024


@pytest.fixture
def emails(client):
    """Of all customers."""
    return lambda: [c["email"] for c in client.get("/api/customers", headers=ADMIN).json["customers"]]


BODIES = [
    (b"", 400),
    (b"null", 400),
    (b"not json", 400),
    (b'{"email": "a@example.com", "email": "b@example.com"}', 400),
    (b'{"email": NaN}', 400),
    (b"\xff\xfe", 400),
    (ADA.decode().encode("utf-16"), 400),
    (b"\xef\xbb\xbf{}", 422),
    (b"[" * 20_000, 400),
    (b'{"a":' * 12_000 + b"1" + b"}" * 12_000, 413),
    (b'{"email": ' + b"9" * 5000 + b"}", 400),
    (b"[]", 422),
    (b"true", 422),
    (b'{"email": 1e400}', 422),
    (b'{"email": "ada@example.com", "nmae": "Ada"}', 422),
    (b'{"email": "ada@example.com", "companyName": "A", "company_name": "A"}', 422),
    (b"x" * (64 * KIB + 1), 413),
    (b"x" * 10_000_000, 413),
]


def test_a_body_that_cannot_be_taken(client, emails):
    for body, status in BODIES:
        answer = client.post("/api/customers", data=body, headers=ADMIN | JSON)
        assert (body[:50], answer.status_code, answer.json["code"]) == (body[:50], status, status)
        assert answer.json["requestId"] == answer.headers["X-Request-ID"]
        assert body != b"[]" or "JSON object" in answer.text  # what to send
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = ADMIN | {"Content-Type": content_type}
        assert client.post("/api/customers", data=ADA, headers=headers).status_code == 415
    assert emails() == []


PACKED = gzip.compress(ADA)
ZIPPED = zlib.compress(ADA)
CODINGS = [
    ("gzip", PACKED, 201),
    ("GZIP", PACKED, 201),
    ("x-gzip", PACKED, 201),
    ("deflate", ZIPPED, 201),
    ("identity", ADA, 201),
    ("gzip", gzip.compress(ADA + b" " * (64 * KIB - len(ADA))), 201),
    ("gzip", gzip.compress(ADA + b" " * 64 * KIB), 413),
    ("deflate", zlib.compress(b" " * 50_000_000), 413),
    ("gzip", PACKED[:-4], 400),
    ("gzip", PACKED[:-8] + bytes(4) + PACKED[-4:], 400),  # wrong check sum
    ("gzip", PACKED + b"x", 400),
    ("gzip", ADA, 400),
    ("gzip", ZIPPED, 400),
    ("deflate", ZIPPED[:-1], 400),
    ("deflate", ZIPPED[:-1] + bytes([ZIPPED[-1] ^ 1]), 400),
    ("deflate", ZIPPED[2:-4], 400),  # raw, without zlib's frame
    ("br", ADA, 415),
    ("gzip, gzip", gzip.compress(PACKED), 415),
]


def test_compressed_bodies(client, emails):
    for number, (coding, body, status) in enumerate(CODINGS):
        headers = ADMIN | JSON | {"Content-Encoding": coding}
        answer = client.post("/api/customers", data=body, headers=headers)
        expected = 409 if number and status == 201 else status  # it was read, and its address is taken
        assert (number, answer.status_code) == (number, expected)
        assert answer.headers.get("Accept-Encoding") == ("gzip, deflate" if status == 415 else None)
    assert emails() == ["ada@example.com"]


def test_a_compressed_backlog_of_reports(client):
    made = make_customer(client)
    reports = [report_body(made["customerId"], instanceId=f"i{n}" + "x" * 90) for n in range(500)]
    body = json.dumps({"reports": reports}).encode()
    assert len(body) > 64 * KIB > len(gzip.compress(body))
    headers = bearer(made["license"]) | JSON | {"Content-Encoding": "gzip"}
    answer = client.post("/api/usage/reports", data=gzip.compress(body), headers=headers)
    assert answer.json["accepted"] == 500


class Broken(io.BytesIO):
    """Chunks that are none."""

    def read(self, size=-1):
        raise OSError("no chunk")


def test_a_body_that_ends_early_is_400(client, emails):
    for stream, given in (
        (io.BytesIO(ADA), {"CONTENT_LENGTH": str(len(ADA) + 1)}),
        (Broken(), {"CONTENT_LENGTH": "29"}),
        (Broken(), {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}),
    ):
        environ = given | {"wsgi.input": stream, "CONTENT_TYPE": "application/json"}
        answer = client.post("/api/customers", headers=ADMIN, environ_overrides=environ)
        assert answer.status_code == 400
    assert emails() == []


def test_an_optional_body_may_be_absent(client):
    path = f"/api/licenses/{make_customer(client)['customerId']}/revoke"
    for body in (None, b"", b"{}", b"null"):
        answer = client.post(path, data=body, headers=ADMIN | JSON)
        assert (answer.status_code, answer.json["revoked"]) == (200, True)


def test_errors_have_one_shape(client):
    answer = client.get("/nowhere")
    assert set(answer.json) == {"code", "status", "message", "requestId"}
    assert (answer.status_code, answer.json["code"], answer.json["status"]) == (404, 404, "Not Found")
    answer = client.delete("/api/customers", headers=ADMIN)
    assert (answer.status_code, answer.json["code"], "GET" in answer.headers["Allow"]) == (405, 405, True)


def test_a_failure_of_ours_shows_nothing_of_itself(app, client, caplog):
    def broken():
        raise RuntimeError("SELECT secret FROM internals")

    app.add_url_rule("/broken", view_func=broken)
    answer = client.get("/broken")
    assert (answer.status_code, "secret" in answer.text) == (500, False)
    [line] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert (line.error, line.request_id) == ("RuntimeError", answer.headers["X-Request-ID"])
    assert line.at[-1].startswith("test_http.py:")
    assert "SELECT" not in caplog.text


def test_request_ids(client):
    others = ("", "x" * 65, "a b", "a/b", "é", "a\tb", "<script>")
    for given in ("A.b_c-9", "x" * 64, *others):
        answered = client.get("/health", headers={"X-Request-ID": given}).headers["X-Request-ID"]
        assert (answered == given) is (given not in others)
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answered)


def test_no_caller_is_redirected(client):
    for path in ("/api//customers", "//api/customers", "/health//ready", "/docs//"):
        answer = client.get(path, headers=ADMIN | {"Host": "evil.example"})
        assert (answer.status_code, answer.headers.get("Location")) == (404, None)


def test_headers_of_every_answer(make_app, client):
    secure = make_app(BASE_URL="https://billing.example.com").test_client()
    expected = {
        "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store", "Keep-Alive": "timeout=15",
    }  # fmt: skip
    for path in ("/health", "/api/customers", "/nowhere", "/docs/", "/checkout/cancel", "/openapi.json"):
        for given, has_tls in ((client, False), (secure, True)):
            headers = given.get(path).headers
            assert {name: headers[name] for name in expected} == expected
            assert ("Strict-Transport-Security" in headers) is has_tls
            if headers["Content-Type"].startswith("text/html"):
                assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "script-src 'none'" in client.get("/checkout/cancel").headers["Content-Security-Policy"]


def test_the_page_of_the_api_works_without_internet(client):
    for path in ("/docs", "/docs/"):
        page = client.get(path)
        assert page.status_code == 200
        assert not re.search(r"https?://(?!localhost)", page.text)
        for asset in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            with client.get(asset) as file:
                assert file.status_code == 200, asset


class TestIdempotencyKey:
    def create(self, client, key="k1", **fields):
        body = {"email": "ada@example.com"} | fields
        return client.post("/api/customers", json=body, headers=ADMIN | {"Idempotency-Key": key})

    def test_again_gives_the_first_answer_and_does_nothing_for_a_day(self, client, emails, sql):
        first = self.create(client, name="Ada")
        respelled = b'{ "name":"Ada",   "email":"ada@example.com" }'
        headers = ADMIN | JSON | {"Idempotency-Key": "k1"}
        for again in (
            self.create(client, name="Ada"),
            client.post("/api/customers", data=respelled, headers=headers),
        ):
            assert (again.status_code, again.json) == (201, first.json)
        other = self.create(client, email="bob@example.com")
        assert (other.status_code, "headers" in other.json["errors"]) == (422, True)
        assert self.create(client, name="Ada").json == first.json
        assert emails() == ["ada@example.com"]
        sql("UPDATE idempotency_keys SET created_at = created_at - INTERVAL '25 hours'")
        assert self.create(client, name="Ada").status_code == 409  # forgotten: this address is taken

    def test_a_refusal_is_kept_unless_it_was_of_the_caller_or_the_form(self, client, emails):
        for key in ("", " ", "a b", "x" * 256):
            assert self.create(client, key).status_code == 422
        headers = {"Idempotency-Key": "k1"}
        assert client.post("/api/customers", data=ADA, headers=headers | bearer("guess")).status_code == 401
        text = {"content_type": "text/plain", "headers": headers | ADMIN}
        assert client.post("/api/customers", data=ADA, **text).status_code == 415
        first = self.create(client, plan="nonsense")
        again = self.create(client, plan="nonsense")
        assert (first.status_code, again.status_code, again.json) == (422, 422, first.json)
        assert "headers" in self.create(client).json["errors"]
        assert emails() == []

        made = make_customer(client, email="ada@example.com")
        taken = self.create(client, "k2")
        moved = {"email": "moved@example.com"}
        client.patch(f"/api/customers/{made['customerId']}", json=moved, headers=ADMIN)
        assert (taken.status_code, self.create(client, "k2").json) == (409, taken.json)
        assert self.create(client, "k3").status_code == 201

    def test_it_belongs_to_its_route(self, client):
        body = {"customerId": self.create(client).json["customerId"], "plan": "starter"}
        headers = ADMIN | {"Idempotency-Key": "k1"}
        answers = [client.post("/api/subscriptions/create-trial", json=body, headers=headers) for _ in "ab"]
        assert [a.status_code for a in answers] == [201, 201]
        assert answers[0].json == answers[1].json

    def test_of_many_at_once_one_works_and_the_others_wait_or_repeat(self, app, emails):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: self.create(app.test_client()), range(16)))
        assert {answer.status_code for answer in answers} <= {201, 409}
        assert len({answer.json["customerId"] for answer in answers if answer.status_code == 201}) == 1
        assert all("still running" in a.json["message"] for a in answers if a.status_code == 409)
        assert emails() == ["ada@example.com"]

    @pytest.mark.parametrize("table", ["licenses", "idempotency_keys"])
    def test_effect_and_answer_are_stored_together_or_not_at_all(self, client, sql, emails, table):
        sql(f"ALTER TABLE {table} ADD CONSTRAINT never CHECK (FALSE) NOT VALID")
        assert self.create(client).status_code == 500
        assert emails() == []
        sql(f"ALTER TABLE {table} DROP CONSTRAINT never")
        assert self.create(client).status_code == 201

    def test_where_stripe_may_be_called_the_key_is_claimed_first(self, client, sql):
        """The claim of a process that was killed ends after a minute."""
        made = make_customer(client)

        def send():
            headers = bearer(made["license"]) | {"Idempotency-Key": "k1"}
            return client.post("/api/usage/report", json=report_body(made["customerId"]), headers=headers)

        def total():
            path = f"/api/usage/{made['customerId']}"
            return client.get(path, headers=ADMIN).json["summary"]["totalReports"]

        first = send()
        assert (send().json, total()) == (first.json, 1)
        sql("UPDATE idempotency_keys SET status_code = NULL, response = NULL")  # as if it were running still
        running = send()
        assert (running.status_code, "still running" in running.json["message"]) == (409, True)
        sql("UPDATE idempotency_keys SET created_at = created_at - INTERVAL '2 minutes'")
        assert (send().status_code, total()) == (201, 2)

    def test_a_kept_answer_is_not_for_a_license_that_was_revoked_since(self, client):
        made = make_customer(client)
        headers = bearer(made["license"]) | {"Idempotency-Key": "k1"}
        answers = []
        for action in ("", "/revoke", "/reinstate"):
            if action:
                client.post(f"/api/licenses/{made['customerId']}{action}", headers=ADMIN)
            answers.append(
                client.post("/api/usage/report", json=report_body(made["customerId"]), headers=headers)
            )
        assert [answer.status_code for answer in answers] == [201, 403, 403]
        unfit = client.post("/api/usage/report", headers=headers | {"Idempotency-Key": "a b"})
        assert unfit.status_code == 403


def send_by_hand(server, method, path, headers, body=()):
    """The answer to a request that no library would send; what cannot be sent any more is not."""
    head = [b"%s %s HTTP/1.1" % (method, path), b"Host: test", b"Connection: close", *headers, b"", b""]
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        with suppress(OSError):
            connection.sendall(b"\r\n".join(head))
            for part in body:
                connection.sendall(part)
        answer = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    return answer


def in_chunks(size):
    """So many bytes of white space, of which JSON may have as much as it likes."""
    return [*[b"2000\r\n%s\r\n" % (b" " * 8192)] * (size // 8192), b"%x\r\n " % (1 + size % 8192),
            b" " * (size % 8192) + b"\r\n0\r\n\r\n"]  # fmt: skip


def test_what_no_library_sends_to_the_real_server(serve):
    server = serve(LOG_LEVEL="debug")
    login = b"Authorization: Bearer " + ADMIN_KEY.encode()
    for header, status in {
        login: b"200",
        b"Authorization: Bearer \t " + login[22:] + b" \t": b"200",
        login + b"\r\n" + login: b"401",
        login + b"\xff": b"401",
        login + b"A" * 8_000: b"401",
        # What gunicorn refuses by itself.
        login + b"\x00": b"400",
        b"Authorization: Bearer\r\n " + login[22:]: b"400",
        b"Authorization : Bearer " + login[22:]: b"400",
        login + b"A" * 16_000: b"431",
    }.items():
        answer = send_by_hand(server, b"GET", b"/api/customers", [header])
        assert answer.split(b" ")[1] == status, (header[:80], answer[:200])

    chunked, json_type = b"Transfer-Encoding: chunked", b"Content-Type: application/json"
    for path in (b"/api/customers", b"/webhooks/stripe"):
        for chunk in (b"zz\r\nabc\r\n", b"0xf\r\n", b"-5\r\nabc\r\n", b"3\r\nabcd\r\n", b"3;\x00\r\nabc\r\n"):
            headers = [login, json_type, chunked]
            answer = send_by_hand(server, b"POST", path, headers, [chunk, b"0\r\n\r\n"])
            assert answer.startswith(b"HTTP/1.1 400 "), (chunk, answer[:200])

    for path, limit in ((b"/api/customers", 64 * KIB), (b"/api/usage/reports", KIB * KIB)):
        for size, status in ((limit, b"400"), (limit + 1, b"413"), (2 * limit, b"413")):
            length = b"Content-Length: %d" % size
            for headers, body in (([length], [b" " * size]), ([chunked], in_chunks(size - 1))):
                answer = send_by_hand(server, b"POST", path, [login, json_type, *headers], body)
                assert answer.split(b" ")[1] == status, (path, size, answer[:200])
        # Ten gigabytes that never come are refused at once, and credentials before that.
        length = b"Content-Length: 10000000000"
        assert b" 413 " in send_by_hand(server, b"POST", path, [login, json_type, length])[:20]
        assert b" 401 " in send_by_hand(server, b"POST", path, [json_type, length])[:20]
    server.stop()
    log = server.log.read_bytes()
    assert b"/api/customers" in log
    assert ADMIN_KEY.encode() not in log
