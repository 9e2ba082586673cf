"""Midnight: every instance reports within seconds. `python -m tests.bench.stampede [--instances 10000]`.

Rate limits are on, as in production. Each instance has a license of its own and reports once.
"""

import argparse
import random
import threading
import time
from collections import Counter
from queue import Empty, Queue
from typing import Final

import psycopg2
import requests

from tests.bench.servers import gunicorn, postgres
from tests.bench.world import World, build

SENDERS: Final = 64
"""Connections kept open; each plays many instances, one after the other."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10)
    chosen = parser.parse_args()
    with postgres() as (url, folder):
        world = build(url, folder, chosen.instances, chosen.instances)
        with gunicorn(world, RATELIMIT_ENABLED="true") as service:
            began = time.monotonic()
            statuses = _stampede(service, world, chosen.seconds)
            took = time.monotonic() - began
        stored = _stored(url)
    print(f"{chosen.instances} instances due within {chosen.seconds:.0f} s: {dict(statuses)} in {took:.1f} s")
    print(f"stored of them: {stored}")
    raise SystemExit(0 if stored == chosen.instances and set(statuses) == {201} else 1)


def _stampede(service: str, world: World, seconds: float) -> Counter[int]:
    waiting: Queue[tuple[float, str, str]] = Queue()
    lines = [line.split() for line in world.tokens.read_text().splitlines()]
    due = sorted(random.uniform(0, seconds) for _ in lines)
    for at, (customer, token) in zip(due, lines, strict=True):
        waiting.put((at, customer, token))
    statuses: Counter[int] = Counter()
    lock, began = threading.Lock(), time.monotonic()

    def send() -> None:
        with requests.Session() as session:
            while True:
                try:
                    at, customer, token = waiting.get_nowait()
                except Empty:
                    return
                time.sleep(max(0.0, began + at - time.monotonic()))
                answer = session.post(
                    f"{service}/api/usage/report",
                    json={"customerId": customer, "activeDevices": 1, "totalDevices": 1},
                    headers={"Authorization": f"Bearer {token}"},
                    timeout=120,
                )
                with lock:
                    statuses[answer.status_code] += 1

    threads = [threading.Thread(target=send) for _ in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def _stored(url: str) -> int:
    connection = psycopg2.connect(url)
    with connection.cursor() as cur:
        cur.execute("SELECT COUNT(*) FROM usage_reports WHERE active_devices = 1")
        row = cur.fetchone()
    connection.close()
    return int(row[0]) if row else 0


if __name__ == "__main__":
    main()
