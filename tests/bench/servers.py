"""The processes of a measurement: PostgreSQL, gunicorn, wrk, pgbench."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app import embedded
from app.config import ROOT
from tests.bench.world import ADMIN_KEY, World

CONNECTIONS = 32


@contextmanager
def postgres() -> Iterator[tuple[str, Path]]:
    """A fresh durable server: its URL, and a folder that is gone afterwards."""
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


@contextmanager
def gunicorn(world: World, application: str = "wsgi:app", **environ: str) -> Iterator[str]:
    """An application under the service's own gunicorn settings: its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = os.environ | world.environ | {"PORT": str(port)} | environ
    url = f"http://127.0.0.1:{port}"
    with open(world.folder / "gunicorn.log", "a") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), application],
            cwd=ROOT, env=environ, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            _wait_for(f"{url}/health", server)
            yield url
        finally:
            server.terminate()
            server.wait(60)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > give_up:
                raise
            time.sleep(0.1)


def wrk(world: World, url: str, what: str, *, seconds: float, bare: bool = False) -> dict[str, Any]:
    """Requests for so long: how many a second, p50 and p99 in ms, how many failed."""
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("wrk is needed: apt-get install wrk")
    environ = os.environ | {
        "BENCH_WHAT": what, "BENCH_TOKENS": str(world.tokens), "BENCH_ADMIN": ADMIN_KEY,
        "BENCH_BARE": "1" if bare else "0",
    }  # fmt: skip
    connections = str(8 if what == "overview" else CONNECTIONS)
    done = subprocess.run(
        [program, "-t1", "-c", connections, "-d", f"{round(seconds)}s", "--timeout", "30s",
         "-s", str(Path(__file__).with_name("load.lua")), url],
        env=environ, capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    found = re.search(r"RESULT (.*)", done.stdout)
    if not found:
        raise SystemExit(f"wrk said:\n{done.stdout}{done.stderr}")
    result: dict[str, Any] = json.loads(found[1])
    return result | {"rate": result["requests"] / result["seconds"]}


def pgbench(world: World, script: str, *, seconds: float, clients: int = 16) -> float:
    """Transactions a second of this script."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        done = subprocess.run(
            [embedded.bin_dir() / "pgbench", "-n", "-f", file.name, "-T", str(round(seconds)),
             "-c", str(clients), "-j", "2", world.url],
            capture_output=True, text=True, check=False, timeout=seconds + 60,
        )  # fmt: skip
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    if done.returncode or not found:
        raise SystemExit(f"pgbench said:\n{done.stdout}{done.stderr}")
    return float(found[1])
