"""A durable database of its own that may be killed, a server on it, and instances that keep reporting."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import requests
from flask import Flask

from app import embedded, migrations
from app.db import Database
from tests.conftest import ADMIN
from tests.factories import bearer, report_body
from tests.server import Server, wait_until


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for servers to end and start again has time enough on a busy machine."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(600))


class Postgres:
    """A server with all its safety on; `kill` is `kill -9`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = embedded.start(folder)
        database = Database(lambda: self.url)
        with Flask(__name__).app_context():
            migrations.migrate(database)
        database.close()

    def kill(self) -> None:
        pid = int((self.folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)

    def start(self) -> None:
        embedded.revive(self.folder)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self.url)
        with connection, connection.cursor() as cur:
            cur.execute(statement)
            found = cur.fetchall()
        connection.close()
        return found


@pytest.fixture
def postgres(open_folder: Path) -> Iterator[Postgres]:
    running = Postgres(open_folder)
    yield running
    embedded.stop(open_folder)


@pytest.fixture
def server(postgres: Postgres, serve: Callable[..., Server]) -> Server:
    return serve(DATABASE_URL=postgres.url)


class Load:
    """Instances that report, each report under a time of its own; `answers` has the status of each."""

    def __init__(self, server: Server) -> None:
        self.server = server
        made = server.post("/api/customers", {"email": "ada@example.com"}, headers=ADMIN).json()
        self.customer_id, self.headers = made["customerId"], bearer(made["license"])
        self.begin = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
        self.answers: dict[int, int | None] = {}
        self._next = iter(range(1_000_000))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(6)
        self._running = [self._pool.submit(self._run) for _ in range(6)]

    def report(self, number: int) -> int | None:
        """The status, or None when the connection broke: then nobody knows."""
        timestamp = (self.begin + timedelta(seconds=number)).isoformat()
        body = report_body(self.customer_id, active=3, total=4, timestamp=timestamp)
        try:
            return self.server.post("/api/usage/report", body, headers=self.headers).status_code
        except requests.RequestException:
            return None

    def acknowledged(self) -> int:
        return sum(status == 201 for status in self.answers.values())

    def wait_for_more(self, count: int = 30) -> None:
        """Until that many more reports are acknowledged: it works, again."""
        enough = self.acknowledged() + count
        wait_until(lambda: self.acknowledged() >= enough, 60)

    def stop(self) -> None:
        self._stop.set()
        for future in self._running:
            future.result()
        self._pool.shutdown()

    def check(self, postgres: Postgres) -> None:
        """Acknowledged is stored, once; the rest can be sent again; nothing was answered by a 500."""
        self.stop()
        assert set(self.answers.values()) <= {201, 503, None}
        stored = {
            int((at - self.begin).total_seconds())
            for (at,) in postgres.rows("SELECT reported_at FROM usage_reports")
        }
        acknowledged = {number for number, status in self.answers.items() if status == 201}
        assert acknowledged <= stored
        for number in sorted(set(self.answers) - acknowledged):
            assert self.report(number) == (200 if number in stored else 201)
        assert len(postgres.rows("SELECT 1 FROM usage_reports")) == len(self.answers)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                number = next(self._next)
            self.answers[number] = self.report(number)
            if self.answers[number] is None:
                self._stop.wait(0.05)


@pytest.fixture
def load(server: Server) -> Iterator[Load]:
    running = Load(server)
    yield running
    running.stop()
