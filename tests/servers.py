"""The service as it runs in production: gunicorn with several workers, in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parent.parent
GUNICORN = [sys.executable, "-m", "gunicorn", "wsgi:app"]
FLASK = [sys.executable, "-m", "flask"]


@dataclass(frozen=True)
class Server:
    """A running service: its address, and gunicorn's first process."""

    url: str
    process: subprocess.Popen[bytes]


def clean_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` and nothing of ours but what any process needs."""
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environ}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(environ: Mapping[str, str], *, workers: int = 2, log: Path | None = None) -> Iterator[Server]:
    """A running service, ended on leaving; what it logs goes into a file where one is named."""
    port = free_port()
    own = {"PORT": str(port), "WEB_CONCURRENCY": str(workers), "WEB_THREADS": "8", **environ}
    with open(log, "wb") if log else nullcontext() as stderr:
        process = subprocess.Popen(GUNICORN, cwd=ROOT, env=clean_environ(own), stderr=stderr)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process)
        yield Server(url, process)
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(30)


def run_flask(
    *args: str, environ: Mapping[str, str], timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """A command of the console as a process."""
    return subprocess.run(
        [*FLASK, *args], cwd=ROOT, env=clean_environ(environ), capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip


def run_gunicorn(environ: Mapping[str, str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A start that is expected to be refused."""
    own = {"PORT": str(free_port()), "WEB_CONCURRENCY": "1", **environ}
    return subprocess.run(
        GUNICORN, cwd=ROOT, env=clean_environ(own), capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 60
    while True:
        try:
            if requests.get(f"{url}/health/ready", timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            pass
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < give_up, "the server is not ready"
        time.sleep(0.1)
