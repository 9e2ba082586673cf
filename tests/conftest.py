"""A real PostgreSQL for all tests: one server, a migrated template per process, a copy per test.

TEST_DATABASE_URL names a server of your own (its role needs CREATEDB); else the embedded one runs
in a temporary folder and is gone afterwards.
"""

import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg2
import psycopg2.errors
import pytest
import stripe
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.serving import WSGIRequestHandler, make_server

from app import create_app, embedded, keyring, migrations
from app.config import Settings, load_settings
from app.db import Database
from app.keyring import write_key_files
from app.licenses import generate_private_key
from tests.server import ROOT, Server
from tests.stripe_sandbox import Sandbox

ADMIN_KEY = "test-admin-key-0123456789abcdef"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
WEBHOOK_SECRET = "whsec_sandbox"  # pragma: allowlist secret
QUICK = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_wal_size": "128MB",
}
MEMORY = Path("/dev/shm")
# Databases are made and dropped several times faster in memory; containers often have only 64 MB of it.
PLACE = MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**31 else None


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A database on the server under test that may be used to create others."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    with _open_folder() as folder:
        yield embedded.start(folder, QUICK)
        embedded.stop(folder)


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a migrated database that nobody writes to."""
    name = f"template_{uuid.uuid4().hex[:12]}"
    _execute(server_url, f"CREATE DATABASE {name}")
    database = Database(lambda: _url(server_url, name))
    with Flask(__name__).app_context():
        migrations.migrate(database)
    database.close()
    yield name
    _drop(server_url, name)


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """A fresh migrated database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _execute(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _url(server_url, name)
    _drop(server_url, name)


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """A fresh database without any table."""
    name = f"empty_{uuid.uuid4().hex[:12]}"
    _execute(server_url, f"CREATE DATABASE {name}")
    yield _url(server_url, name)
    _drop(server_url, name)


@pytest.fixture(scope="session")
def key_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A license key pair for the whole run; making one costs a tenth of a second."""
    folder = tmp_path_factory.mktemp("keys")
    write_key_files(load_settings(key_paths(folder)), generate_private_key())
    return folder


@pytest.fixture
def environ(database_url: str, key_dir: Path) -> dict[str, str]:
    """The environment of an application under test; add to it before asking for `app`."""
    return {
        "DATABASE_URL": database_url,
        "ADMIN_API_KEY": ADMIN_KEY,
        "RATELIMIT_ENABLED": "false",
        "LOG_LEVEL": "warning",
        **key_paths(key_dir),
    }


@pytest.fixture
def own_keys(environ: dict[str, str], key_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The private key of the application under test, to rotate; its file is looked at each time."""
    environ |= key_paths(shutil.copytree(key_dir, tmp_path / "keys"))
    monkeypatch.setattr(keyring, "CHECK_SECONDS", -1)
    return Path(environ["LICENSE_PRIVATE_KEY_PATH"])


@pytest.fixture
def make_app(environ: dict[str, str]) -> Iterator[Callable[..., Flask]]:
    """Applications on the same database, as several workers would be; keywords override settings."""
    apps: list[Flask] = []

    def make(**overrides: str) -> Flask:
        apps.append(create_app(load_settings(environ | overrides)))
        return apps[-1]

    yield make
    for app in apps:
        app.extensions["billing.db"].close()


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app()


@pytest.fixture
def settings(app: Flask) -> Settings:
    return app.extensions["billing.settings"]


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def sql(app: Flask) -> Callable[..., list[dict[str, Any]]]:
    """Run a statement on the test's database: `sql("SELECT …", name=value)`, rows as dicts."""

    def run(statement: str, **params: Any) -> list[dict[str, Any]]:
        with app.extensions["billing.db"].statement() as cur:
            cur.execute(statement, params)
            if cur.description is None:
                return []
            names = [column[0] for column in cur.description]
            return [dict(zip(names, row, strict=True)) for row in cur.fetchall()]

    return run


@pytest.fixture
def console(app: Flask) -> Callable[..., Result]:
    """Run a command as `flask` would: `console("customer", "list")`."""

    def run(*args: str, input: str | None = None) -> Result:
        return app.test_cli_runner().invoke(args=args, input=input)

    return run


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A Stripe of our own over HTTP; events are held until the test delivers them."""
    with Sandbox(webhook_secret=WEBHOOK_SECRET) as running:
        running.webhooks.mode = "hold"
        yield running


@pytest.fixture
def stripe_environ(environ: dict[str, str], sandbox: Sandbox) -> dict[str, str]:
    """The application under test talks to the sandbox."""
    environ["STRIPE_SECRET_KEY"] = sandbox.api_key
    environ["STRIPE_WEBHOOK_SECRET"] = WEBHOOK_SECRET
    environ["STRIPE_API_BASE"] = sandbox.url
    environ["STRIPE_RATE"] = "10000"  # the console would wait 20 ms before each call
    return environ


@pytest.fixture
def shop(
    stripe_environ: dict[str, str], app: Flask, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The service with prices at the sandbox; see `tests/shop.py`. Stripe's SDK retries without waiting."""
    from tests.shop import Shop

    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)
    monkeypatch.setattr(stripe.HTTPClient, "MAX_DELAY", 0.001)
    return Shop(app, sandbox)


@pytest.fixture
def serve(environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Real servers on the test's database; keywords override settings. They stop with the test."""
    servers: list[Server] = []

    def start(*, path: str = "/health", cwd: Path = ROOT, **overrides: str) -> Server:
        settings = {k: v for k, v in environ.items() if k != "LOG_LEVEL"} | overrides
        servers.append(Server(settings, tmp_path, cwd))
        return servers[-1].start(path=path)

    yield start
    for server in servers:
        server.stop()


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any, **__: Any) -> None:
        pass


@pytest.fixture
def url(app: Flask) -> Iterator[str]:
    """The application under test on the network, served by a thread of this process."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the database's user may pass through, when the tests are run by root."""
    with _open_folder() as folder:
        yield folder


@contextmanager
def _open_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zemfyre-tests-", dir=PLACE, ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture
def copy_of_service(open_folder: Path) -> Path:
    """The repository's files in a folder of their own, where `.env` and `.data` may be made."""
    folder = open_folder / "a copy"
    ignore = shutil.ignore_patterns("__pycache__", "test_*.py", "*.pem")
    for name in ("app", "cli", "sql", "keys", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("wsgi.py", "gunicorn.conf.py", "Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def key_paths(folder: Path) -> dict[str, str]:
    return {
        "LICENSE_PRIVATE_KEY_PATH": str(folder / "private-key.pem"),
        "LICENSE_PUBLIC_KEY_PATH": str(folder / "public-key.pem"),
    }


def _execute(url: str, statement: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cur:
        cur.execute(statement)
    connection.close()


def _drop(server_url: str, name: str) -> None:
    """Drop a database with whoever is connected; only the server's own cleaner must not be thrown out."""
    for attempts_left in reversed(range(50)):
        try:
            _execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")
            return
        except psycopg2.errors.InsufficientPrivilege:
            if attempts_left == 0:
                raise
            time.sleep(0.1)


def _url(server_url: str, name: str) -> str:
    parts = urlsplit(server_url)
    return urlunsplit(parts._replace(path=f"/{name}"))
