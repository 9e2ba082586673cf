"""A checkout of this repository as a service: its own code, its own database, the same Python."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg2
import requests

from app import embedded

ROOT: Final = Path(__file__).resolve().parent.parent.parent
ADMIN: Final = {"Authorization": "Bearer bench-admin-key-0123456789abcdef"}
REPORTS_EACH: Final = 365
DAYS: Final = 34
"""How far back reports are taken; the service refuses older ones."""


@dataclass
class Checkout:
    """`code` is its folder, `work` an empty folder for its keys, licenses and log."""

    code: Path
    work: Path
    database_url: str
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.work.mkdir()
        self.flask("keys", "generate")
        self.flask("db", "migrate")

    @property
    def environ(self) -> dict[str, str]:
        """Production settings but for the rate limits, which one load generator would exceed."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "DATABASE_URL": self.database_url,
            "ADMIN_API_KEY": ADMIN["Authorization"].removeprefix("Bearer "),
            "RATELIMIT_ENABLED": "false",
            "LICENSE_PRIVATE_KEY_PATH": str(self.work / "private-key.pem"),
            "LICENSE_PUBLIC_KEY_PATH": str(self.work / "public-key.pem"),
            **self.settings,
        }

    @property
    def licenses(self) -> Path:
        """One line for each customer: its id and its license."""
        return self.work / "licenses.txt"

    def customers(self) -> list[tuple[str, str]]:
        """Customer ids and licenses."""
        lines = self.licenses.read_text().splitlines()
        return [(customer_id, license) for customer_id, license in (line.split() for line in lines)]

    def flask(self, *args: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "flask", *args], cwd=self.code, env=self.environ,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{self.code}: flask {' '.join(args)} failed:\n{done.stderr}")

    @contextmanager
    def serving(self) -> Iterator["Service"]:
        port = free_port()
        with (self.work / "gunicorn.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "wsgi:app"], cwd=self.code,
                env=self.environ | {"PORT": str(port)}, stdout=log, stderr=log,
            )  # fmt: skip
            try:
                wait_for(f"http://127.0.0.1:{port}/health/ready", process)
                yield Service(f"http://127.0.0.1:{port}", process.pid)
            finally:
                process.terminate()
                process.wait(60)

    def add_customers(self, url: str, count: int, plan: str | None = "professional") -> None:
        """Customers, with a trial of `plan`, and the file of their licenses."""

        def add(_: int) -> str:
            body = {"email": f"customer-{secrets.token_hex(8)}@example.com", "name": "A Customer"}
            made = _post(f"{url}/api/customers", body | ({"plan": plan} if plan else {}))
            return f"{made['customerId']} {made['license']}\n"

        with ThreadPoolExecutor(8) as pool:
            self.licenses.write_text("".join(pool.map(add, range(count))))

    def add_reports(self, url: str) -> None:
        """REPORTS_EACH reports of each customer, evenly over DAYS."""
        step, now = timedelta(days=DAYS) / REPORTS_EACH, datetime.now(UTC)

        def report(customer: tuple[str, str]) -> None:
            reports = [
                {
                    "customerId": customer[0],
                    "instanceId": "i0",
                    "activeDevices": 12 + number % 8,
                    "totalDevices": 30,
                    "timestamp": (now - number * step).isoformat(),
                }
                for number in range(REPORTS_EACH)
            ]
            stored = _post(f"{url}/api/usage/reports", {"reports": reports})
            if stored["accepted"] != REPORTS_EACH:
                raise SystemExit(f"{self.code}: {stored['rejected']} reports were rejected")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(report, self.customers()))
        execute(self.database_url, "VACUUM (ANALYZE)")


@dataclass(frozen=True)
class Service:
    """A running gunicorn: its address and its master process."""

    url: str
    pid: int

    def unique_memory(self) -> float:
        """MiB that only this service uses, over all of its processes."""
        master = psutil.Process(self.pid)
        processes = [master, *master.children(recursive=True)]
        return sum(process.memory_full_info().uss for process in processes) / 2**20


@contextmanager
def postgres() -> Iterator[tuple[str, Path]]:
    """A fresh durable server: the URL of its database, and a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="zemfyre-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        try:
            yield (
                embedded.start(folder / "data", {"max_wal_size": "8GB", "checkpoint_timeout": "30min"}),
                folder,
            )
        finally:
            embedded.stop(folder / "data")


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    """One statement outside a transaction; its rows."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cur:
        cur.execute(statement)
        rows = cur.fetchall() if cur.description else []
    connection.close()
    return rows


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: "subprocess.Popen[Any]") -> None:
    """Until it answers there."""
    give_up = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise
            time.sleep(0.1)


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = requests.post(url, json=body, headers=ADMIN, timeout=60)
    answer.raise_for_status()
    return dict(answer.json())
