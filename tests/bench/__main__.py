"""`make bench`: how fast the service is, beside what this machine could do at best, in one run.

`python -m tests.bench --quick` takes a minute on little data, for trying out. Figures of different
runs are not comparable: other work on the machine changes them. Ratios within one run are, because
each pair is measured in turns.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

from app.config import ROOT
from app.keyring import load_signing_key
from app.licenses import sign
from app.queries.usage import insert_usage_report, select_usage_reports
from tests.bench.clock import milliseconds
from tests.bench.servers import gunicorn, pgbench, postgres, wrk
from tests.bench.statements import captured, for_pgbench
from tests.bench.world import ADMIN_KEY, World, build, customer_id

REPLACED: dict[str, float] = {
    "report": 3172,
    "license": 716,
    "history": 793,
    "customer": 2893,
    "health": 7753,
}
"""Requests per second of the service that this one replaces, where its health route did 7 753."""

GOALS = {"report": 0.8, "license": 0.8, "history": 0.5, "customer": 0.7}
"""Of the bare route's rate."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--customers", type=int, default=1_000)
    parser.add_argument("--reports", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=4, help="of one turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the JSON to this file too")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.reports, chosen.seconds, chosen.turns = 100_000, 2, 1
    with postgres() as (url, folder):
        began = time.monotonic()
        world = build(url, folder, chosen.customers, chosen.reports)
        say(f"{world.reports} reports of {world.customers} customers in {time.monotonic() - began:.0f} s")
        results = measure(world, chosen.seconds, chosen.turns)
    print(table(results))
    text = json.dumps(results, indent=2)
    print(text)
    if chosen.json:
        chosen.json.write_text(text + "\n")


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def measure(world: World, seconds: float, turns: int) -> list[dict[str, Any]]:
    results = []
    with gunicorn(world) as service, gunicorn(world, "tests.bench.bare:app") as bare:

        def turn(what: str, url: str = service) -> dict[str, Any]:
            return wrk(world, url, what, seconds=seconds, bare=url == bare)

        def beside_bare(what: str) -> None:
            for url in (service, bare):
                wrk(world, url, what, seconds=1, bare=url == bare)  # warm up
            pairs = [(turn(what), turn(what, bare)) for _ in range(turns)]
            results.append(result(what, pairs, "bare Flask route"))
            say(f"{what}: done")

        # What writes comes last: reading is measured on the data as it was made.
        for what in ("health", "customer", "license", "history"):
            beside_bare(what)
        results.append(result("overview, 200 a page", [(turn("overview"), None) for _ in range(turns)]))
        results.append(one_by_one("overview, all pages of 200", lambda: overview(service), turns * 5))
        results.append(one_by_one("overview, console --json", lambda: console(world), turns))
        say("overview: done")
        beside_bare("report")
        pairs = [(turn("report"), turn("plain-report", bare)) for _ in range(turns)]
        results.append(result("report", pairs, "bare, INSERT only") | {"goal": None})
        batches = [(turn("batch"), None) for _ in range(turns)]
        results.append(result("batch of 100, reports", batches, items=100))
        say("batch: done")
    return results + floors(world, seconds)


def overview(service: str) -> None:
    """Every customer's figures, page by page on one connection, as a dashboard would fetch them.

    With the plainest client: others take a millisecond of their own for a page.
    """
    connection = HTTPConnection(service.removeprefix("http://"), timeout=30)
    path: str | None = "/api/usage?limit=200"
    while path is not None:
        connection.request("GET", path, headers={"Authorization": f"Bearer {ADMIN_KEY}"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"the overview was answered {answer.status}")
        cursor = json.loads(answer.read())["nextCursor"]
        path = cursor and f"/api/usage?limit=200&cursor={cursor}"
    connection.close()


def console(world: World) -> None:
    """The same on the console; the start of Python included."""
    subprocess.run(
        [sys.executable, "-m", "flask", "usage", "show", "--all", "--json"],
        cwd=ROOT, env=os.environ | world.environ, stdout=subprocess.DEVNULL, check=True, timeout=120,
    )  # fmt: skip


def floors(world: World, seconds: float) -> list[dict[str, Any]]:
    """What PostgreSQL and the processor do without any web server."""
    someone = f"\\set n random(1, {world.customers})\n"
    of_n = "('cust_' || LPAD(:n::TEXT, 12, '0'))"
    report_sql, _ = captured(insert_usage_report, {})
    report = for_pgbench(
        report_sql,
        {
            "customer_id": of_n, "instance_id": "'i0'", "active_devices": "15", "total_devices": "30",
            "reported_at": "CLOCK_TIMESTAMP()", "since": "(CURRENT_TIMESTAMP - INTERVAL '7 days')",
            "jti": "LPAD(TO_HEX(:n), 32, '0')::UUID",
        },
    )  # fmt: skip
    insert = (  # an instance per client, as two of them may insert in one microsecond
        "INSERT INTO usage_reports (customer_id, instance_id, active_devices, total_devices, reported_at)"
        f" VALUES ({of_n}, 'i' || :client_id, 15, 30, CLOCK_TIMESTAMP());\n"
    )
    history_sql, _ = captured(select_usage_reports, "", since=None, limit=0)
    history = for_pgbench(
        history_sql,
        {
            "customer_id": of_n, "since": f"'{datetime.now(UTC) - timedelta(days=90)}'", "limit": "100",
            "before_at": "'infinity'", "before_id": "0",
        },
    )  # fmt: skip
    customer = f"SELECT customer_id, email, name, company_name FROM customers WHERE customer_id = {of_n};\n"
    scripts = {
        "report's statement": report, "INSERT only": insert, "history's statement": history,
        "customer by index": customer,
    }  # fmt: skip
    found = [
        {"what": f"pgbench: {name}", "per_second": pgbench(world, someone + script, seconds=seconds)}
        for name, script in scripts.items()
    ]
    key, claims, signed = load_signing_key(world.settings), {"sub": customer_id(1), "x": "y" * 600}, 0
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        sign(claims, key)
        signed += 1
    return [*found, {"what": "RSA signing, one core", "per_second": signed / seconds}]


def result(what: str, pairs: list[Any], floor: str | None = None, *, items: int = 1) -> dict[str, Any]:
    """The median of turns, each of them ours and, right after it, the floor's."""
    ours = [pair[0] for pair in pairs]
    found: dict[str, Any] = {
        "what": what,
        "per_second": median(turn["rate"] for turn in ours) * items,
        "p50_ms": median(turn["p50_ms"] for turn in ours),
        "p99_ms": median(turn["p99_ms"] for turn in ours),
        "failed": sum(turn["failed"] for pair in pairs for turn in pair if turn),
    }
    if floor:
        found |= {"floor": floor, "floor_per_second": median(other["rate"] for _, other in pairs)}
        found |= {"ratio": median(one["rate"] / other["rate"] for one, other in pairs)}
        found |= {"goal": GOALS.get(what), "replaced": REPLACED.get(what)}
    return found


def one_by_one(what: str, run: Callable[[], None], times: int) -> dict[str, Any]:
    """Something done again and again, never two at once."""
    run()
    took = milliseconds(run, times)
    return {"what": what, "per_second": 1000 / median(took), "p50_ms": median(took), "p99_ms": max(took)}


def table(results: list[dict[str, Any]]) -> str:
    """The same for people. `scaled`: the replaced service on the machine as it was in this run."""
    bare_health = next(line["floor_per_second"] for line in results if line["what"] == "health")
    head = f"{'':32} {'/s':>8} {'p50 ms':>8} {'p99 ms':>8}  {'held against':18}"
    head += f" {'/s':>8} {'ratio':>6} {'goal':>5} {'scaled':>7}"
    lines = [head, "─" * len(head)]
    for line in results:
        text = f"{line['what']:32} {line['per_second']:8.0f}"
        if "p50_ms" in line:
            text += f" {line['p50_ms']:8.1f} {line['p99_ms']:8.1f}"
        if "floor" in line:
            goal = f"{line['goal']:5.1f}" if line["goal"] else " " * 5
            text += f"  {line['floor']:18} {line['floor_per_second']:8.0f} {line['ratio']:6.2f} {goal}"
            if line["replaced"]:
                text += f" {line['replaced'] * bare_health / REPLACED['health']:7.0f}"
        lines.append(text + (f"  FAILED: {line['failed']}" if line.get("failed") else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
