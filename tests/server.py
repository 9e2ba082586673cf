"""The service as in production: a gunicorn of its own, for tests of processes, signals and logs."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import requests

ROOT = Path(__file__).resolve().parent.parent
GUNICORN = [sys.executable, "-m", "gunicorn", "wsgi:app"]
AS_SYSTEMD_STARTS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""
PATIENCE = 30


class Server:
    """gunicorn with the given settings, empty ones left out; `log` holds all that it writes.

    `listener` stays open while the server restarts, as a socket of systemd does.
    """

    def __init__(
        self,
        settings: Mapping[str, str],
        folder: Path,
        cwd: Path = ROOT,
        listener: socket.socket | None = None,
    ) -> None:
        self.port = listener.getsockname()[1] if listener else free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"gunicorn-{self.port}.log"
        self._cwd, self._listener = cwd, listener
        usual = {"LOG_LEVEL": "info", "WEB_CONCURRENCY": "2", "WEB_THREADS": "8"}
        chosen = {name: value for name, value in (usual | dict(settings)).items() if value}
        self._environ = {"PATH": os.environ["PATH"], **chosen, "PORT": str(self.port)}
        self.process = self._spawn()

    def start(self, *, path: str = "/health") -> "Server":
        """Wait until it answers there with 200."""
        wait_until(lambda: self.get(path).status_code == 200 or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        return self

    def restart(self) -> None:
        self.process = self._spawn()
        self.start()

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=PATIENCE, **options)

    def post(self, path: str, body: Any, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=PATIENCE, **options)

    def lines(self) -> list[dict[str, Any]]:
        """Everything it has logged so far, each line as the JSON object that it must be."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def workers(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def reload(self) -> None:
        """SIGHUP, and wait until only new workers are there."""
        before = set(self.workers())
        self.send(signal.SIGHUP)
        wait_until(lambda: self.workers() and not before & set(self.workers()))

    def kill(self) -> None:
        """`kill -9` of master and workers at once."""
        for pid in (self.process.pid, *self.workers()):
            os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(PATIENCE + 15)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        command, passed = GUNICORN, []
        if self._listener:
            passed = [self._listener.fileno()]
            command = [sys.executable, "-c", AS_SYSTEMD_STARTS, str(passed[0]), *GUNICORN]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, pass_fds=passed,
                cwd=self._cwd, env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip


@contextmanager
def serving(environ: Mapping[str, str]) -> Iterator[Server]:
    """A running service that is ready, ended on leaving."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(environ, Path(folder)).start(path="/health/ready")
        try:
            yield server
        finally:
            server.stop()


def run_flask(
    *args: str, environ: Mapping[str, str], timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """A command of the console as a process."""
    return _run([sys.executable, "-m", "flask", *args], environ, timeout)


def run_gunicorn(environ: Mapping[str, str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A start that is expected to be refused."""
    return _run(GUNICORN, {"PORT": str(free_port()), "WEB_CONCURRENCY": "1", **environ}, timeout)


def _run(command: list[str], environ: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=clean_environ(environ), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=timeout, check=False,
    )  # fmt: skip


def clean_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` and nothing of ours but what any process needs."""
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environ}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What `condition` answers as soon as that is true; a server that is not there counts as not yet."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            found = condition()
        except requests.RequestException:
            found = None
        if found:
            return found
        assert time.monotonic() < give_up, "it never came true"
        time.sleep(0.05)


def waiting(database_url: str) -> bool:
    """Whether some statement waits for a lock."""
    with psycopg2.connect(database_url) as connection, connection.cursor() as cur:
        cur.execute("SELECT 1 FROM pg_locks WHERE NOT granted")
        found = cur.fetchone() is not None
    connection.close()
    return found
