"""Starting: `make run` from nothing to Ctrl-C, and refusals that name the setting in one line."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg2
import pytest

from tests.server import ROOT, free_port, run_flask, run_gunicorn, wait_until

PLAIN = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": os.environ.get("HOME", "/")}
FLASK = [sys.executable, "-m", "flask"]


def assert_refused(done: "subprocess.CompletedProcess[str]", begin: str) -> None:
    """One line on stderr, nothing else, exit code 1."""
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(begin)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("ADMIN_API_KEY", ""),
        ("LICENSE_PRIVATE_KEY_PATH", "/nowhere/private-key.pem"),
        ("PORT", "many"),
    ],
)
def test_the_server_refuses_a_setting_in_one_line(environ, setting, value):
    assert_refused(run_gunicorn(environ | {setting: value}), f"{setting}: ")


def test_the_console_refuses_a_setting_and_a_database_without_tables_in_one_line(environ, empty_database_url):
    refused = run_flask("customer", "list", environ=environ | {"LOG_FORMAT": "xml"})
    assert_refused(refused, "LOG_FORMAT: ")
    refused = run_flask("customer", "list", environ=environ | {"DATABASE_URL": empty_database_url})
    assert_refused(refused, "Error: ")
    assert "flask db migrate" in refused.stderr


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

    def fail(self, **more: str) -> str:
        """Start what cannot start: its last words."""
        log = self.folder.parent / "refused.log"
        assert self._spawn(log, **more).wait(60) == 1
        return log.read_text().splitlines()[-1]

    def paste(self, part: str) -> str:
        """Run one of the commands that were printed, as they stand there."""
        command = next(line for line in self.said.splitlines() if part in line)
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
            with suppress(psutil.Error):
                place = [process.cwd(), *process.cmdline()]
                if any(str(self.folder) in part for part in place) and process.status() != "zombie":
                    found.append(process)
        return found

    def kill(self) -> None:
        """`kill -9` of everything at once."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.end()

    def end(self) -> int:
        """Wait for the end of the process and of all that belongs to it: its exit code."""
        code = self.process.wait(60)
        wait_until(lambda: not self.processes())
        return code

    def _spawn(self, log: Path, **more: str) -> "subprocess.Popen[bytes]":
        environ = PLAIN | {"PORT": str(self.port)} | more
        with log.open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "cli.run_local"], cwd=self.folder, env=environ,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip


@pytest.fixture
def run(copy_of_service: Path) -> Iterator[Run]:
    running = Run(copy_of_service)
    yield running
    running.kill()


@pytest.mark.timeout(300)  # four starts, on a busy machine too
def test_from_nothing_to_ctrl_c_and_again_whatever_is_killed(run: Run):
    (run.folder / ".env").symlink_to("/nowhere/.env")
    assert run.fail() == f"{run.folder}/.env: No such file or directory"
    (run.folder / ".env").unlink()
    with socket.create_server(("", run.port)):
        assert run.fail().startswith(f"PORT: port {run.port} cannot be used")
    assert not (run.folder / ".data").exists()  # refused before anything is made

    shutil.copy(ROOT / ".env.example", run.folder / ".env")
    away = run.fail(DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    assert away.startswith("DATABASE_URL: connection to server"), away
    run.start()
    assert run.said.startswith("Reading the settings")
    assert run.said.rstrip().endswith("stays in .data/.")
    for secret in (run.folder / ".env", run.folder / "keys" / "private-key.pem"):
        assert secret.stat().st_mode & 0o777 == 0o600
    assert "Customer created successfully" in run.paste("flask customer add")
    assert "ada@example.com" in run.paste("flask customer list")
    assert "ada@example.com" in run.paste("curl")
    # A command in this folder uses the same database and port, in its links too.
    link = run.flask("customer", "upgrade", "ada@example.com", "--plan", "starter", "--json")
    assert link.returncode == 0, link.stderr
    sandbox = (run.folder / ".data" / "stripe-sandbox.json").read_text()
    assert f"http://localhost:{run.port}/checkout/success" in sandbox

    assert run.fail(PORT=str(free_port()), STRIPE_API_BASE="").startswith("DATA_DIR: another `make run` uses")

    secrets = (run.folder / ".env").read_text()
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
    assert run.end() == 0
    stopped = run.flask("customer", "list")
    assert (stopped.returncode, "make run" in stopped.stderr) == (1, True)
    run.start()
    assert (run.folder / ".env").read_text() == secrets
    assert "ada@example.com" in run.paste("curl")

    run.process.kill()
    run.end()
    run.start()
    # The database alone is brought back while everything runs.
    pid = int((run.folder / ".data" / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in {process.pid for process in run.processes()})
    wait_until(lambda: "ada@example.com" in run.paste("curl"))

    run.kill()
    run.start()
    assert "ada@example.com" in run.paste("curl")
    run.process.terminate()
    assert run.end() == 0


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
