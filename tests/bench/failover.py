"""Fails over under load: `python -m tests.bench.failover`.

A primary and its synchronous standby, the service with a DATABASE_URL that names both, instances that
report all the while. The primary is killed, the standby promoted. Nothing acknowledged may be missing.
"""

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import psycopg2
import requests

from app import embedded
from tests.bench.servers import gunicorn, postgres
from tests.bench.world import World, build

INSTANCES: Final = 8
DETECTION_SECONDS: Final = 2
"""How long a cluster manager takes to notice; Patroni's default is 30."""


def main() -> None:
    with postgres() as (url, folder):
        primary = folder / "data" / "postgres"
        sockets = parse_qs(urlsplit(url).query)["host"][0]
        build(url, folder, 10, 10)
        standby, standby_sockets = _make_standby(folder, primary, sockets)
        both = (
            f"postgresql://billing@/billing?host={sockets},{standby_sockets}&target_session_attrs=read-write"
        )
        world = World(both, folder, 10, 10)
        try:
            with gunicorn(world) as service:
                answers = _report_through_failover(service, world, primary, standby)
            stored = _stored(f"postgresql://billing@/billing?host={standby_sockets}")
        finally:
            embedded._run(standby, "pg_ctl", "stop", "-m", "immediate", check=False)
    _tell(answers, stored)


def _make_standby(folder: Path, primary: Path, sockets: str) -> tuple[Path, Path]:
    owner = primary.stat()
    standby, standby_sockets = folder / "standby", Path(tempfile.mkdtemp(prefix="zemfyre-standby-"))
    standby.mkdir(mode=0o700)
    for path in (standby, standby_sockets):
        os.chown(path, owner.st_uid, owner.st_gid)
    embedded._run(standby, "pg_basebackup", "-R", "-c", "fast", "-h", sockets, "-U", "postgres")
    options = f"-c max_connections=200 -c listen_addresses='' -c unix_socket_directories='{standby_sockets}'"
    embedded._run(standby, "pg_ctl", "start", "-w", "-l", str(standby / "server.log"), "-o", options)
    connection = psycopg2.connect(f"postgresql://postgres@/postgres?host={sockets}")
    connection.autocommit = True
    with connection.cursor() as cur:
        cur.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        cur.execute("SELECT PG_RELOAD_CONF()")
    connection.close()
    return standby, standby_sockets


def _report_through_failover(service: str, world: World, primary: Path, standby: Path) -> list[Any]:
    answers: list[Any] = []
    ended = threading.Event()
    tokens = [line.split() for line in world.tokens.read_text().splitlines()]

    def instance(number: int) -> None:
        customer, token = tokens[number]
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {token}"
            while not ended.is_set():
                body = {"customerId": customer, "activeDevices": 1, "totalDevices": 1}
                answer = session.post(f"{service}/api/usage/report", json=body, timeout=60)
                answers.append((time.monotonic(), answer.status_code, answer.json().get("reportId")))
                if answer.status_code != 201:
                    time.sleep(0.1)

    threads = [threading.Thread(target=instance, args=(number,)) for number in range(INSTANCES)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    answers.append((time.monotonic(), "primary killed", None))
    embedded._run(primary, "pg_ctl", "stop", "-m", "immediate")
    time.sleep(DETECTION_SECONDS)
    embedded._run(standby, "pg_ctl", "promote", "-w")
    answers.append((time.monotonic(), "standby promoted", None))
    # The new primary has no standby of its own yet, and waits for none.
    time.sleep(5)
    ended.set()
    for thread in threads:
        thread.join()
    return answers


def _stored(url: str) -> set[int]:
    connection = psycopg2.connect(url)
    with connection.cursor() as cur:
        cur.execute("SELECT id FROM usage_reports")
        found = {row[0] for row in cur.fetchall()}
    connection.close()
    return found


def _tell(answers: list[Any], stored: set[int]) -> None:
    acknowledged = {report for _, status, report in answers if status == 201}
    statuses = sorted({status for _, status, _ in answers if isinstance(status, int)})
    promoted = next(at for at, status, _ in answers if status == "standby promoted")
    killed = next(at for at, status, _ in answers if status == "primary killed")
    first = min((at for at, status, _ in answers if status == 201 and at > promoted), default=None)
    print(f"answers: {[(code, sum(s == code for _, s, _ in answers)) for code in statuses]}")
    print(f"acknowledged: {len(acknowledged)}, of these missing afterwards: {len(acknowledged - stored)}")
    print(f"promoted {promoted - killed:.1f} s after the kill", end="; ")
    print("never served again" if first is None else f"first report stored {first - promoted:.2f} s later")
    failed = acknowledged - stored or first is None or set(statuses) - {201, 503}
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
