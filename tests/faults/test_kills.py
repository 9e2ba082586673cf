"""`kill -9` under load: what was acknowledged is there, the rest can be sent again, and it recovers."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ADMIN
from tests.server import ROOT, Server, wait_until


def test_a_worker(server, postgres, load):
    load.wait_for_more()
    for _ in range(2):
        victim = server.workers()[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda victim=victim: victim not in server.workers() and len(server.workers()) == 2)
        load.wait_for_more()
    load.check(postgres)


def test_the_database(server, postgres, load):
    load.wait_for_more()
    postgres.kill()
    wait_until(lambda: server.get("/health/ready").status_code == 503)
    assert server.get("/health").status_code == 200
    postgres.start()
    wait_until(lambda: server.get("/health/ready").status_code == 200)
    load.wait_for_more()
    load.check(postgres)


def test_everything(server, postgres, load):
    load.wait_for_more()
    server.kill()
    postgres.kill()
    postgres.start()
    server.restart()
    load.wait_for_more()
    load.check(postgres)
    assert server.get(f"/api/licenses/{load.customer_id}", headers=ADMIN).status_code == 200


def test_a_database_of_our_own_that_was_killed_comes_back(
    open_folder: Path, serve: Callable[..., Server]
) -> None:
    """Without DATABASE_URL there is nobody else to start it."""
    server = serve(DATABASE_URL="", DATA_DIR=str(open_folder), WEB_CONCURRENCY="2")
    subprocess.run(
        [sys.executable, "-m", "flask", "db", "migrate"], cwd=ROOT, check=True,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": "", "DATA_DIR": str(open_folder)},
    )  # fmt: skip
    body = {"email": "ada@example.com"}
    assert server.post("/api/customers", body, headers=ADMIN).status_code == 201
    os.kill(int((open_folder / "postgres" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    wait_until(lambda: server.post("/api/customers", body, headers=ADMIN).status_code == 409)
