"""The service behind the nginx of deploy/nginx: slow clients, reloads and restarts cost nobody a request."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import ADMIN, ROOT
from tests.factories import bearer, report_body
from tests.server import PATIENCE, Server, free_port, wait_until

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")

SLOW_CLIENTS = 200
LENGTH = 60_000
PATHS = ("/health", "/api/customers", "/openapi.json")
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /api/usage/report HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SLOW = {
    "says nothing": b"",
    "has not finished its head": GET + b"X-Slow: ",
    "has not finished its body": POST + b"Content-Length: %d\r\n\r\n{" % LENGTH,
    "has not finished a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n{",
    "does not read its answers": 8 * b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n",
    "stays connected when answered": GET + b"\r\n",
}


@pytest.fixture
def behind_nginx(open_folder: Path) -> Iterator[Callable[[Server], int]]:
    """Start an nginx with the configuration that is deployed, addresses and folders apart: its port."""
    started: list[subprocess.Popen[bytes]] = []

    def start(server: Server) -> int:
        port = free_port()
        text = (ROOT / "deploy" / "nginx" / "nginx.conf").read_text()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        folders = " ".join(f"{kind}_temp_path {open_folder}/{kind};" for kind in kinds)
        for written, here in (
            ("api:3100", f"127.0.0.1:{server.port}"),
            ("listen 80", f"listen 127.0.0.1:{port}"),
            ("http {", f"http {{ {folders}"),
        ):
            assert written in text
            text = text.replace(written, here)
        settings = f"daemon off; pid {open_folder}/nginx.pid; error_log {open_folder}/nginx.log;"
        (open_folder / "nginx.conf").write_text(f"{settings}\n{text}")
        command = [str(NGINX), "-c", str(open_folder / "nginx.conf"), "-e", str(open_folder / "nginx.log")]
        started.append(subprocess.Popen(command))
        url = f"http://127.0.0.1:{port}/health"
        wait_until(lambda: requests.get(url, timeout=PATIENCE).status_code == 200)
        return port

    yield start
    for process in started:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture
def connect() -> Iterator[Callable[[int, bytes], socket.socket]]:
    """A connection to a port that sends this and nothing more, and reads nothing."""
    with ExitStack() as opened:

        def open_one(port: int, sent: bytes) -> socket.socket:
            connection = opened.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(PATIENCE)
            connection.connect(("127.0.0.1", port))
            connection.sendall(sent)
            return connection

        yield open_one


def test_bodies_that_are_not_read_cost_nobody_an_answer(serve, behind_nginx):
    """Refused before they are read: too large, or with a credential that is none."""
    server = serve()
    made = server.post("/api/customers", {"email": "ada@example.com"}, headers=ADMIN).json()
    url = f"http://127.0.0.1:{behind_nginx(server)}/api"
    answers = {"refused": set(), "stored": set()}

    def refused(number: int) -> None:
        headers = ADMIN if number % 2 else bearer("guess")
        sent = requests.post(f"{url}/customers", data=b"x" * 300_000, headers=headers, timeout=PATIENCE)
        answers["refused"].add(sent.status_code)

    def stored(number: int) -> None:
        body, headers = report_body(made["customerId"], instanceId=f"i{number}"), bearer(made["license"])
        sent = requests.post(f"{url}/usage/report", json=body, headers=headers, timeout=PATIENCE)
        answers["stored"].add(sent.status_code)

    with ThreadPoolExecutor(4) as pool:
        for number in range(600):
            pool.submit(refused if number % 2 else stored, number // 2)
    assert answers == {"refused": {401, 413}, "stored": {201}}


def test_slow_clients_keep_nobody_from_being_answered(serve, behind_nginx, connect):
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="2")
    made = server.post("/api/customers", {"email": "ada@example.com"}, headers=ADMIN).json()
    port = behind_nginx(server)
    url = f"http://127.0.0.1:{port}"
    slow = {kind: [] for kind in SLOW}
    for kind in islice(cycle(SLOW), SLOW_CLIENTS):
        slow[kind].append(connect(port, SLOW[kind]))
    dribbling = dict.fromkeys(slow["has not finished its head"] + slow["has not finished its body"], 0)
    stop = threading.Event()

    def dribble() -> None:
        while not stop.wait(0.2):
            for connection in dribbling:
                with suppress(OSError):  # its time is up
                    dribbling[connection] += connection.send(b" ")

    def ask(number: int) -> int:
        body = report_body(made["customerId"], instanceId=f"i{number}")
        with requests.Session() as session:
            for path in PATHS:
                assert session.get(url + path, headers=ADMIN, timeout=PATIENCE).status_code == 200
            session.headers.update(bearer(made["license"]))
            return session.post(f"{url}/api/usage/report", json=body, timeout=PATIENCE).status_code

    with ThreadPoolExecutor(9) as pool:
        dribbler = pool.submit(dribble)
        assert list(pool.map(ask, range(24))) == 24 * [201]
        stop.set()
        dribbler.result()
    reports = server.get(f"/api/usage/{made['customerId']}?limit=100", headers=ADMIN).json()["reports"]
    assert {report["instanceId"] for report in reports} == {f"i{number}" for number in range(24)}
    slowest = slow["has not finished its body"][0]
    slowest.sendall(b" " * (LENGTH - 1 - dribbling[slowest]))
    assert slowest.recv(100).startswith(b"HTTP/1.1 401 ")
    # What the service refuses as too long is refused by it, not by the proxy.
    options = {"data": b" " * (1024 * 1024 + 1), "headers": ADMIN | {"Content-Type": "application/json"}}
    answer = requests.post(f"{url}/api/usage/reports", timeout=PATIENCE, **options)
    assert (answer.status_code, answer.json()["requestId"]) == (413, answer.headers["X-Request-ID"])


@contextmanager
def reporting(url: str, customer: dict[str, Any]) -> Iterator[list[int]]:
    """Instances that report without a pause; the list holds all statuses."""
    stop, statuses = threading.Event(), []

    def report(number: int) -> None:
        body = report_body(customer["customerId"], instanceId=f"i{number}")
        with requests.Session() as session:
            session.headers.update(bearer(customer["license"]))
            while not stop.is_set():
                statuses.append(session.post(url, json=body, timeout=PATIENCE).status_code)

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(report, number) for number in range(8)]
        try:
            yield statuses
        finally:
            stop.set()
        for future in running:
            future.result()


def test_a_reload_and_a_restart_with_a_socket_of_systemd_lose_no_request(
    environ, behind_nginx, sql, tmp_path
):
    def stored() -> int:
        return sql("SELECT COUNT(*) AS reports FROM usage_reports")[0]["reports"]

    settings = {name: value for name, value in environ.items() if name != "LOG_LEVEL"}
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        server = Server(settings, tmp_path, listener=listener).start()
        made = server.post("/api/customers", {"email": "ada@example.com"}, headers=ADMIN).json()
        with reporting(f"http://127.0.0.1:{behind_nginx(server)}/api/usage/report", made) as statuses:
            for _ in range(2):
                before = stored()
                wait_until(lambda before=before: stored() > before)
                server.reload()
                before = stored()
                wait_until(lambda before=before: stored() > before)
                assert server.stop() == 0
                server.restart()
        assert server.stop() == 0
    assert set(statuses) == {201}
    assert stored() == len(statuses) > 8
