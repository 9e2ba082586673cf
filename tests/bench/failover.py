"""Fails over under load: `python -m tests.bench.failover`.

A primary and its synchronous standby, the service with a DATABASE_URL that names both, instances that report
all the time. The primary is killed, the standby promoted. No acknowledged report may be missing.
"""

import os
import subprocess
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import requests

from app import embedded
from tests.bench.checkout import ADMIN, ROOT, Checkout, execute, postgres

INSTANCES: Final = 8
DETECTION_SECONDS: Final = 2
"""How long a cluster manager takes to notice; Patroni's default is 30."""


def main() -> None:
    with postgres() as (url, folder):
        primary, sockets = folder / "data" / "postgres", parse_qs(urlsplit(url).query)["host"][0]
        checkout = Checkout(ROOT, folder / "service", url)
        standby, standby_sockets = start_standby(folder, primary, sockets)
        hosts = f"{sockets},{standby_sockets}"
        checkout.database_url = f"postgresql://billing@/billing?host={hosts}&target_session_attrs=read-write"
        try:
            with checkout.serving() as service:
                checkout.add_customers(service.url, 1)
                answers = report_through_failover(checkout, service.url, primary, standby)
            rows = execute(
                f"postgresql://billing@/billing?host={standby_sockets}", "SELECT id FROM usage_reports"
            )
        finally:
            run(standby, "pg_ctl", "stop", "-m", "immediate")
    statuses = Counter(status for status, _ in answers)
    missing = {report for status, report in answers if status == 201} - {id for (id,) in rows}
    print(f"answers: {dict(statuses)}; acknowledged but missing: {len(missing)}")
    is_good = not missing and set(statuses) <= {201, 503} and answers[-1][0] == 201
    raise SystemExit(0 if is_good else 1)


def run(cluster: Path, program: str, *args: str) -> None:
    """A program of PostgreSQL on this data directory, as its owner."""
    owner = cluster.stat()
    subprocess.run(
        [embedded.bin_dir() / program, "-D", cluster, *args], check=True, stdout=subprocess.DEVNULL,
        user=owner.st_uid, group=owner.st_gid, extra_groups=[], cwd=cluster,
    )  # fmt: skip


def start_standby(folder: Path, primary: Path, sockets: str) -> tuple[Path, Path]:
    """Its data directory, and where it listens; from then on each commit waits for it."""
    owner = primary.stat()
    standby, standby_sockets = folder / "standby", Path(tempfile.mkdtemp(prefix="zemfyre-standby-"))
    standby.mkdir(mode=0o700)
    for path in (standby, standby_sockets):
        os.chown(path, owner.st_uid, owner.st_gid)
    run(standby, "pg_basebackup", "-R", "-c", "fast", "-h", sockets, "-U", "postgres")
    options = f"-c max_connections=200 -c listen_addresses='' -c unix_socket_directories='{standby_sockets}'"
    run(standby, "pg_ctl", "start", "-w", "-l", str(standby / "server.log"), "-o", options)
    superuser = f"postgresql://postgres@/postgres?host={sockets}"
    execute(superuser, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    execute(superuser, "SELECT PG_RELOAD_CONF()")
    return standby, standby_sockets


def report_through_failover(
    checkout: Checkout, url: str, primary: Path, standby: Path
) -> list[tuple[int, Any]]:
    """Statuses and report ids, in the order of the answers."""
    answers: list[tuple[int, Any]] = []
    ended = threading.Event()
    customer_id = checkout.customers()[0][0]

    def report(number: int) -> None:
        body = {"customerId": customer_id, "instanceId": f"i{number}", "activeDevices": 1, "totalDevices": 1}
        with requests.Session() as session:
            while not ended.is_set():
                answer = session.post(f"{url}/api/usage/report", json=body, headers=ADMIN, timeout=60)
                answers.append((answer.status_code, answer.json().get("reportId")))
                if answer.status_code != 201:
                    time.sleep(0.1)

    with ThreadPoolExecutor(INSTANCES) as pool:
        running = [pool.submit(report, number) for number in range(INSTANCES)]
        time.sleep(3)
        run(primary, "pg_ctl", "stop", "-m", "immediate")
        time.sleep(DETECTION_SECONDS)
        run(standby, "pg_ctl", "promote", "-w")
        time.sleep(5)
        ended.set()
        for future in running:
            future.result()
    return answers


if __name__ == "__main__":
    main()
