"""`make bench AGAINST=DIR`: this checkout beside another one of this repository, in turns.

Both get a database of their own on one fresh durable PostgreSQL, filled over HTTP, and are measured from
outside only: HTTP, the console, processor time and memory. Other work on the machine changes the figures
of a run, and hardly the ratios: each is the median over turns, in which one is measured after the other.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import requests

from tests.bench.checkout import ADMIN, ROOT, Checkout, Service, execute, free_port, postgres, wait_for
from tests.bench.load import load

FIGURES: Final = ("license", "customer", "history", "overview", "report", "batch")
"""Those that write come last: reading is measured on the data as it was made."""
SYNC_TURNS: Final = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, help="folder of the other checkout")
    parser.add_argument("--customers", type=int, default=300, help="each with 365 reports")
    parser.add_argument("--seconds", type=int, default=3, help="of one turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--mend", type=int, default=1000, help="customers that differ from Stripe, in three turns"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of both")
    chosen = parser.parse_args()
    settings = dict(pair.split("=", 1) for pair in chosen.set)
    codes = [ROOT] + ([chosen.against.resolve()] if chosen.against else [])
    with postgres() as (url, folder):

        def checkouts(purpose: str) -> list[Checkout]:
            return [
                Checkout(code, folder / f"{purpose}{n}", _new_database(url, f"{purpose}{n}"), dict(settings))
                for n, code in enumerate(codes)
            ]

        print(f"{'':32}{'this':>10}" + (f"{'other':>10}{'ratio':>8}" if chosen.against else ""), flush=True)
        measure_requests(checkouts("load"), chosen)
        if chosen.mend:
            measure_sync(checkouts("mend"), chosen.mend)


def measure_requests(pair: list[Checkout], chosen: argparse.Namespace) -> None:
    """Rates of each kind of request, processor time of the console, memory after the load."""
    with ExitStack() as running:
        services = [running.enter_context(checkout.serving()) for checkout in pair]
        for checkout, service in zip(pair, services, strict=True):
            checkout.add_customers(service.url, chosen.customers)
            checkout.add_reports(service.url)
        measure_console(pair, chosen.turns)
        for what in FIGURES:
            measure_load(pair, services, what, chosen.seconds, chosen.turns)
        row("memory of all processes, MiB", [[service.unique_memory()] for service in services])


def measure_load(pair: list[Checkout], services: list[Service], what: str, seconds: int, turns: int) -> None:
    def run(n: int, seconds: int) -> dict[str, float]:
        return load(pair[n], services[n].url, what, seconds)

    for n in range(len(pair)):
        run(n, 1)  # warm up
    found = in_turns(len(pair), turns, lambda n: run(n, seconds))
    row(f"{what}, /s", [[turn["rate"] for turn in of_one] for of_one in found])
    row(f"{what}, p99 ms", [[turn["p99_ms"] for turn in of_one] for of_one in found])
    if failed := sum(turn["failed"] for of_one in found for turn in of_one):
        raise SystemExit(f"{what}: {failed:.0f} requests failed")


def measure_console(pair: list[Checkout], turns: int) -> None:
    """Processor time of commands, as a ratio to that of starting Python with what all of them need."""
    commands = {
        "flask --help": lambda c: ["--help"],
        "flask customer list": lambda c: ["customer", "list"],
        "flask usage show": lambda c: ["usage", "show", "--customer", c.customers()[0][0], "--days", "35"],
    }
    imports = [sys.executable, "-c", "import flask, psycopg2, click"]
    for name, arguments in commands.items():

        def ratio(n: int, arguments: Callable[[Checkout], list[str]] = arguments) -> float:
            checkout = pair[n]
            command = [sys.executable, "-m", "flask", *arguments(checkout)]
            return processor_seconds(command, checkout) / processor_seconds(imports, checkout)

        for n in range(len(pair)):
            ratio(n)  # compiles what is not compiled yet
        row(f"{name}, × import", in_turns(len(pair), turns, ratio))


def processor_seconds(command: list[str], checkout: Checkout) -> float:
    process = subprocess.Popen(
        command, cwd=checkout.code, env=checkout.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{checkout.code}: {' '.join(command[1:])} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


def measure_sync(pair: list[Checkout], count: int) -> None:
    """Seconds that `flask stripe sync` takes for customers who paid while no event came through."""
    with ExitStack() as running:
        for checkout in pair:
            checkout.settings |= {
                "STRIPE_SECRET_KEY": "sk_test_bench",  # pragma: allowlist secret
                "STRIPE_WEBHOOK_SECRET": "whsec_bench",  # pragma: allowlist secret
                "STRIPE_API_BASE": running.enter_context(stripe_sandbox()),
            }
            checkout.flask("stripe", "setup")

        def sync(n: int) -> float:
            checkout = pair[n]
            with checkout.serving() as service:
                checkout.add_customers(service.url, count // SYNC_TURNS, plan=None)
                pay_for_all(checkout, service.url)
            began = time.monotonic()
            checkout.flask("stripe", "sync")
            seconds = time.monotonic() - began
            checkout.flask("stripe", "sync", "--dry-run")  # fails when something still differs
            return seconds

        row(f"sync of {count // SYNC_TURNS} customers, s", in_turns(len(pair), SYNC_TURNS, sync))


def pay_for_all(checkout: Checkout, service: str) -> None:
    def pay(customer_id: str) -> None:
        body = {"customerId": customer_id, "plan": "starter"}
        path = "/api/subscriptions/create-checkout"
        session = requests.post(service + path, json=body, headers=ADMIN, timeout=60)
        session.raise_for_status()
        page = f"{checkout.settings['STRIPE_API_BASE']}/checkout/{session.json()['sessionId']}/pay"
        requests.post(page, allow_redirects=False, timeout=60).raise_for_status()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(pay, (customer_id for customer_id, _ in checkout.customers())))


@contextmanager
def stripe_sandbox() -> Iterator[str]:
    """This checkout's sandbox for both; its address."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.stripe_sandbox", "--port", str(port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/_sandbox/state", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def in_turns(count: int, turns: int, run: Callable[[int], Any]) -> list[list[Any]]:
    """What `run` finds for each of `count` checkouts in each turn; every other turn begins with the last."""
    found: list[list[Any]] = [[] for _ in range(count)]
    for turn in range(turns):
        for n in sorted(range(count), reverse=turn % 2 == 1):
            found[n].append(run(n))
    return found


def row(name: str, found: list[list[float]]) -> None:
    """Medians over the turns, and the median of the turns' ratios."""
    text = f"{name:32}" + "".join(f"{median(of_one):10.1f}" for of_one in found)
    if len(found) == 2:
        text += f"{median(this / other for this, other in zip(*found, strict=True)):8.2f}"
    print(text, flush=True)


def _new_database(url: str, name: str) -> str:
    execute(url, f"CREATE DATABASE {name}")
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


if __name__ == "__main__":
    main()
