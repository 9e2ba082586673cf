"""What each statement costs as the data grows: `python -m tests.bench.growth 100000 1000000 10000000`.

A thousand reports a customer over two years, so more reports are more customers. One connection, one
statement after the other, the median of many: milliseconds, and the 8 KiB blocks that the server touched,
which no other work on the machine changes. Prints tables and JSON; `--plot FILE.svg` draws the blocks' curve.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import psycopg2

from app.db import Cursor
from app.queries import usage
from app.services.usage import SILENT_AFTER
from tests.bench.clock import milliseconds
from tests.bench.servers import postgres
from tests.bench.world import build, customer_id, jti

EACH: Final = 1000
RUNS: Final = 200
COLOURS: Final = ("#1b6ca8", "#c0392b", "#27825b", "#8e5ea2", "#b8860b")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", type=int, nargs="+")
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    curve: dict[int, dict[str, float]] = {}
    blocks: dict[int, dict[str, float]] = {}
    with postgres() as (url, folder):
        for reports in chosen.reports:
            began = time.monotonic()
            named = _database(url, f"grown_{reports}")
            build(named, folder, reports // EACH, reports)
            print(
                f"{reports} reports: built in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True
            )
            curve[reports] = costs(named, reports // EACH)
            blocks[reports] = touched(named, reports // EACH)
            print(table("ms", curve), table("blocks", blocks), sep="\n", flush=True)
    print(json.dumps({"ms": curve, "blocks": blocks}))
    if chosen.plot:
        chosen.plot.write_text(plot(blocks))


def _database(url: str, name: str) -> str:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cur:
        cur.execute(f"CREATE DATABASE {name}")
    connection.close()
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@contextmanager
def cursor(url: str, kind: type[Cursor]) -> Iterator[Cursor]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor(cursor_factory=kind) as cur:
        yield cur
    connection.close()


def costs(url: str, people: int) -> dict[str, float]:
    """Milliseconds of each statement, the way to the server and back included."""
    found = {}
    with cursor(url, Cursor) as cur:
        for name, run in _statements(cur, people).items():
            times = RUNS // 5 if "overview" in name or "batch" in name else RUNS
            milliseconds(run, times // 4)
            found[name] = median(milliseconds(run, times))
    return found


class Counting(Cursor):
    """Notes how many blocks each statement touches."""

    blocks = 0.0

    def execute(self, query: Any, vars: Any = None) -> None:  # type: ignore[override]
        super().execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", vars)
        plan = self.fetchall()[0][0][0]["Plan"]
        Counting.blocks += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        super().execute(query, vars)


def touched(url: str, people: int) -> dict[str, float]:
    """Blocks per run of each statement, those found in memory included."""
    found = {}
    with cursor(url, Counting) as cur:
        for name, run in _statements(cur, people).items():
            counts = []
            for _ in range(20):
                Counting.blocks = 0
                run()
                counts.append(Counting.blocks)
            found[name] = median(counts)
    return found


def _statements(cur: Cursor, people: int) -> dict[str, Callable[[], Any]]:
    def who() -> int:
        return random.randint(1, people)

    def report(number: int, at: datetime) -> dict[str, Any]:
        return {
            "customer_id": customer_id(number), "instance_id": "i0", "active_devices": 15,
            "total_devices": 30, "reported_at": at,
        }  # fmt: skip

    def single() -> None:
        now, number = datetime.now(UTC), who()
        more = {"jti": jti(number), "since": now - timedelta(days=7)}
        usage.insert_usage_report(cur, report(number, now) | more)

    def batch() -> None:
        now, number = datetime.now(UTC), who()
        ages = (timedelta(seconds=random.uniform(60, 34 * 86400)) for _ in range(100))
        usage.insert_usage_reports(cur, [report(number, now - age) for age in ages])

    def history(deep: bool) -> None:
        now = datetime.now(UTC)
        before = (now - timedelta(days=random.randint(200, 300)), 2**62) if deep else None
        usage.select_usage_reports(
            cur, customer_id(who()), since=now - timedelta(days=400 if deep else 90), limit=101, before=before
        )

    def page() -> None:
        since = datetime.now(UTC) - timedelta(days=7)
        usage.select_usage_overview(cur, since=since, limit=100, after=max(0, who() - 100))

    def summary() -> None:
        since = datetime.now(UTC) - timedelta(days=30)
        usage.select_usage_of(
            cur, customer_id(who()), jti=None, since=since, silent_before=datetime.now(UTC) - SILENT_AFTER
        )

    return {
        "history, first page of 100": lambda: history(False),
        "history, deep page of 100": lambda: history(True),
        "standing and figures of 30 days": summary,
        "overview, page of 100": page,
        "report": single,
        "batch of 100": batch,
    }


def table(unit: str, curve: dict[int, dict[str, float]]) -> str:
    """Statements down, sizes across."""
    lines = [f"{unit:32}" + "".join(f"{reports:>12,}" for reports in curve)]
    for name in next(iter(curve.values())):
        lines.append(f"{name:32}" + "".join(f"{of_size[name]:12.2f}" for of_size in curve.values()))
    return "\n".join(lines)


def plot(curve: dict[int, dict[str, float]]) -> str:
    """An SVG: each statement's cost relative to the smallest size; flat is what is wanted."""
    sizes = list(curve)
    width, height, left, bottom = 720, 360, 60, 320

    def x(index: int) -> float:
        return left + index * (440 / max(1, len(sizes) - 1))

    def y(ratio: float) -> float:
        return bottom - min(ratio, 3) * 95

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<text x="60" y="18" font-size="14">Blocks that each statement touches,'
        " relative to the smallest size</text>",
    ]  # fmt: skip
    for ratio in (0, 1, 2, 3):
        parts.append(f'<line x1="{left}" x2="520" y1="{y(ratio)}" y2="{y(ratio)}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 30}" y="{y(ratio) + 4}">{ratio} ×</text>')
    for index, size in enumerate(sizes):
        parts.append(f'<text x="{x(index)}" y="{bottom + 20}" text-anchor="middle">{size:,} reports</text>')
    for row, name in enumerate(curve[sizes[0]]):
        ratios = [curve[size][name] / curve[sizes[0]][name] for size in sizes]
        points = " ".join(f"{x(index):.0f},{y(ratio):.0f}" for index, ratio in enumerate(ratios))
        colour = (*COLOURS, "#555555")[row % 6]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="535" y="{60 + 20 * row}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
