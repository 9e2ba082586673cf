"""Starting: `make run` from nothing to Ctrl-C, and refusals that name the setting in one line."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import psycopg2
import pytest

from tests.server import ROOT, free_port, wait_until

PLAIN = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": os.environ.get("HOME", "/")}
FLASK = [sys.executable, "-m", "flask"]
GUNICORN = [sys.executable, "-m", "gunicorn", "wsgi:app"]


def refusal(command: list[str], environ: Mapping[str, str]) -> str:
    """What a command says that does not start: one line on stderr, nothing else, exit code 1."""
    done = subprocess.run(
        command, cwd=ROOT, env=PLAIN | dict(environ), capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("ADMIN_API_KEY", ""),
        ("LICENSE_PRIVATE_KEY_PATH", "/nowhere/private-key.pem"),
        ("LICENSE_PRIVATE_KEY", "not a key"),
        ("LICENSE_PRIVATE_KEY_COMMAND", "false"),
        ("PORT", "many"),
        ("RATELIMIT_STORAGE_URI", "nonsense://"),
    ],
)
def test_the_server_refuses_a_setting_in_one_line(environ, setting, value):
    settings = environ | {"RATELIMIT_ENABLED": "true", setting: value}
    assert refusal(GUNICORN, settings).startswith(f"{setting}: ")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("DATABASE_URL", "mysql://root@db/billing"), ("TRIAL_DAYS", "0"), ("LOG_FORMAT", "xml")],
)
def test_the_console_refuses_a_setting_in_one_line(environ, setting, value):
    said = refusal([*FLASK, "customer", "list"], environ | {setting: value})
    assert said.startswith(f"{setting}: ")


def test_the_console_without_tables_says_what_to_do(environ, empty_database_url):
    said = refusal([*FLASK, "customer", "list"], environ | {"DATABASE_URL": empty_database_url})
    assert "flask db migrate" in said


class Run:
    """`make run` without make, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes]
        self.log = folder.parent / "run.log"
        self.said = ""

    def start(self) -> None:
        self.process = self._spawn(self.log)
        wait_until(lambda: "Ctrl-C" in self.log.read_text() or self.process.poll() is not None, 60)
        self.said = self.log.read_text()
        assert "Ctrl-C" in self.said, self.said

    def fail(self) -> str:
        """Start what cannot start: its last words."""
        log = self.folder.parent / "refused.log"
        assert self._spawn(log).wait(60) == 1
        return log.read_text().splitlines()[-1]

    def paste(self, begin: str) -> str:
        """Run one of the commands that were printed, as they stand there."""
        command = next(line for line in self.said.splitlines() if line.strip().startswith(begin))
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=PLAIN, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def flask(self, *args: str) -> "subprocess.CompletedProcess[str]":
        """A command from a second terminal in the folder."""
        return subprocess.run(
            [*FLASK, *args], cwd=self.folder, env=PLAIN, capture_output=True, text=True, check=False
        )

    def processes(self) -> list[psutil.Process]:
        """Everything that lives in the folder, or on data in it."""
        found = []
        for process in psutil.process_iter():
            try:
                place = [process.cwd(), *process.cmdline()]
            except psutil.Error:
                continue
            if any(str(self.folder) in part for part in place) and process.status() != "zombie":
                found.append(process)
        return found

    def is_gone(self) -> bool:
        return not self.processes()

    def _spawn(self, log: Path) -> "subprocess.Popen[bytes]":
        environ = PLAIN | {"PORT": str(self.port)}
        with log.open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "cli.run_local"], cwd=self.folder, env=environ,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip


@pytest.fixture
def run(copy_of_service: Path) -> Iterator[Run]:
    running = Run(copy_of_service)
    yield running
    for process in running.processes():
        process.kill()
    running.process.wait(30)


def test_from_nothing_to_ctrl_c_and_again(run: Run):
    run.start()
    assert run.said.startswith("Reading the settings")
    assert run.said.rstrip().endswith("stays in .data/.")
    assert (run.folder / ".env").stat().st_mode & 0o777 == 0o600
    assert (run.folder / "keys" / "private-key.pem").stat().st_mode & 0o777 == 0o600
    flask = re.search(r"(\S*flask) customer add", run.said)
    assert flask
    assert "Customer created successfully" in run.paste(f"{flask[1]} customer add")
    assert "ada@example.com" in run.paste(f"{flask[1]} customer list")
    assert "ada@example.com" in run.paste("curl")
    # A command in this folder uses the same database and port, in its links too.
    link = run.flask("customer", "upgrade", "ada@example.com", "--plan", "starter", "--json")
    assert link.returncode == 0, link.stderr
    session = json.loads((run.folder / ".data" / "stripe-sandbox.json").read_text())
    assert f"http://localhost:{run.port}/checkout/success" in json.dumps(session)

    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
    assert run.process.wait(60) == 0
    wait_until(run.is_gone)
    stopped = run.flask("customer", "list")
    assert (stopped.returncode, "make run" in stopped.stderr) == (1, True)

    secrets = (run.folder / ".env").read_text()
    run.start()
    assert (run.folder / ".env").read_text() == secrets
    assert "ada@example.com" in run.paste("curl")
    assert "cannot be used" in run.fail()

    run.process.terminate()
    assert run.process.wait(60) == 0
    wait_until(run.is_gone)


def test_whatever_is_killed_the_next_start_is_clean(run: Run):
    run.start()
    run.paste(next(line.strip() for line in run.said.splitlines() if "customer add" in line))

    # The database alone is brought back while everything runs.
    pid = int((run.folder / ".data" / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: psutil.pid_exists(pid) is False or psutil.Process(pid).status() == "zombie")
    wait_until(lambda: "ada@example.com" in run.paste("curl"))

    run.process.kill()
    run.process.wait(30)
    wait_until(run.is_gone)
    run.start()
    assert "ada@example.com" in run.paste("curl")

    for process in run.processes():
        process.kill()
    run.process.wait(30)
    wait_until(run.is_gone)
    run.start()
    assert "ada@example.com" in run.paste("curl")


def test_the_embedded_server_stops_with_its_last_user_ended_by_a_signal(open_folder: Path):
    program = (
        "import sys, time, pathlib; from app import embedded; "
        "print(embedded.start(pathlib.Path(sys.argv[1])), flush=True); time.sleep(60)"
    )
    users = [
        subprocess.Popen([sys.executable, "-c", program, str(open_folder)], cwd=ROOT, stdout=-1, text=True)
        for _ in range(2)
    ]
    urls = {user.stdout.readline().strip() for user in users}
    [url] = urls
    users[0].terminate()
    assert users[0].wait(30) == 128 + signal.SIGTERM
    psycopg2.connect(url).close()
    users[1].terminate()
    users[1].wait(30)
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(url)
    for user in users:
        user.stdout.close()


def test_a_taken_port_is_refused_before_anything_is_made(copy_of_service: Path):
    run = Run(copy_of_service)
    with socket.socket() as other:
        other.bind(("", run.port))
        other.listen()
        assert run.fail().startswith(f"PORT: port {run.port} cannot be used")
    assert not (copy_of_service / ".data").exists()
