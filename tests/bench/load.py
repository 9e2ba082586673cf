"""Load on a service: wrk where it is installed, else threads of this process, which cost more."""

import json
import os
import random
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

from tests.bench.checkout import ADMIN, DAYS, Checkout

CONNECTIONS: Final = 32
CONNECTIONS_OF: Final = {"overview": 8}
THREADS: Final = 8


def load(checkout: Checkout, url: str, what: str, seconds: int) -> dict[str, float]:
    """Requests of one kind for some seconds: `rate` per second, `p99_ms`, and how many `failed`."""
    program = shutil.which("wrk")
    if program is None:
        return _python_load(checkout, url, what, seconds)
    connections = str(CONNECTIONS_OF.get(what, CONNECTIONS))
    done = subprocess.run(
        [program, "-t1", "-c", connections, "-d", f"{seconds}s", "--timeout", "30s",
         "-s", str(Path(__file__).with_name("load.lua")), url],
        env=os.environ | {
            "BENCH_WHAT": what, "BENCH_LICENSES": str(checkout.licenses),
            "BENCH_ADMIN": ADMIN["Authorization"].removeprefix("Bearer "),
        },
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    found = re.search(r"RESULT (.*)", done.stdout)
    if not found:
        raise SystemExit(f"wrk said:\n{done.stdout}{done.stderr}")
    return dict(json.loads(found[1]))


def _python_load(checkout: Checkout, url: str, what: str, seconds: int) -> dict[str, float]:
    customers = checkout.customers()
    end = time.perf_counter() + seconds

    def run(_: int) -> list[float]:
        """Milliseconds of each request; a negative number where it failed."""
        connection, took = HTTPConnection(url.removeprefix("http://"), timeout=30), []
        while (began := time.perf_counter()) < end:
            method, path, body, authorization = _request(what, *random.choice(customers))
            headers = {"Authorization": authorization, "Content-Type": "application/json"}
            connection.request(method, path, body and json.dumps(body), headers)
            answer = connection.getresponse()
            answer.read()
            took.append((time.perf_counter() - began) * (1000 if answer.status < 300 else -1))
        connection.close()
        return took

    with ThreadPoolExecutor(THREADS) as pool:
        took = [ms for times in pool.map(run, range(THREADS)) for ms in times]
    failed = sum(ms < 0 for ms in took)
    return {"rate": len(took) / seconds, "p99_ms": quantiles(took, n=100)[-1], "failed": failed}


def _request(what: str, customer_id: str, license: str) -> tuple[str, str, Any, str]:
    """The same requests as in load.lua: method, path, body, Authorization."""

    def report(**more: str) -> dict[str, Any]:
        figures = {"activeDevices": random.randint(12, 19), "totalDevices": 30}
        return {"customerId": customer_id, "instanceId": "i0", **figures, **more}

    def some_time() -> str:
        return (datetime.now(UTC) - timedelta(days=random.uniform(0.001, DAYS))).isoformat()

    own = f"Bearer {license}"
    if what == "report":
        return "POST", "/api/usage/report", report(), own
    if what == "batch":
        reports = [report(timestamp=some_time()) for _ in range(100)]
        return "POST", "/api/usage/reports", {"reports": reports}, own
    if what == "overview":
        return "GET", "/api/usage?limit=200", None, ADMIN["Authorization"]
    paths = {
        "license": f"/api/licenses/{customer_id}",
        "customer": f"/api/customers/{customer_id}",
        "history": f"/api/usage/{customer_id}?days=30&limit=100",
    }
    return "GET", paths[what], None, own
