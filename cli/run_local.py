"""`make run`: everything on this machine, in one terminal.

Makes what is missing (settings, keys, database), then runs the Stripe sandbox, if `.env` points to
it, and the service, and stops both when it is stopped itself.
"""

import ctypes
import fcntl
import logging
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

from flask import Flask

from app import embedded, migrations
from app.config import ROOT, ConfigError, Settings, environment, load_settings, run_file
from app.db import Database
from app.errors import DomainError
from app.keyring import key_is_elsewhere, load_signing_key, write_key_files
from app.licenses import generate_private_key
from cli.output import explained

ENV_FILE: Final = ROOT / ".env"
START_SECONDS: Final = 60
STOP_SECONDS: Final = 40
PR_SET_PDEATHSIG: Final = 1
Children = dict[str, "subprocess.Popen[bytes]"]


def main() -> None:
    logging.disable()  # what goes wrong here is told in one line
    children: Children = {}
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for signum in ends:
        signal.signal(signum, signal.default_int_handler)
    try:
        _run(children)
    except KeyboardInterrupt:
        print("\nStopping …", file=sys.stderr)
    except DomainError as error:
        raise SystemExit(explained(error)) from None
    finally:
        for signum in ends:
            signal.signal(signum, signal.SIG_IGN)
        _stop(children)


def _run(children: Children) -> None:
    """Start all, and return when one of them ends or the process that started us does."""
    parent = os.getppid()
    print("Reading the settings (.env) …", flush=True)
    _write_env()
    settings = load_settings()
    sandbox = _sandbox_port(settings)
    _check_port("PORT", settings.port)
    if sandbox:
        _check_port("STRIPE_API_BASE", sandbox)
    run = _claim()
    database_url = _prepare(settings)
    run.write(f"PORT={settings.port}\nBASE_URL={settings.base_url}\nDATABASE_URL='{database_url}'\n")
    run.flush()
    if sandbox:
        print(f"Starting the Stripe sandbox on port {sandbox}, with the plans' prices …", flush=True)
        command = [
            "tests.stripe_sandbox",
            "--port", str(sandbox),
            "--data", str(settings.data_dir / "stripe-sandbox.json"),
            "--webhook-url", f"http://127.0.0.1:{settings.port}/webhooks/stripe",
            "--webhook-secret", settings.stripe_webhook_secrets[0],
            "--promo", "LAUNCH20=20",
        ]  # fmt: skip
        _start(children, "Stripe sandbox", command, f"http://127.0.0.1:{sandbox}/_sandbox/state")
        setup = [sys.executable, "-m", "flask", "stripe", "setup"]
        done = subprocess.run(setup, cwd=ROOT, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"flask stripe setup failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    print(f"Starting the service on port {settings.port} …", flush=True)
    _start(children, "service", ["gunicorn", "wsgi:app"], f"http://127.0.0.1:{settings.port}/health")
    print(_welcome(settings, sandbox), flush=True)
    while os.getppid() == parent:
        for name, child in children.items():
            if child.poll() is not None:
                raise SystemExit(f"The {name} has ended with code {child.returncode}; stopping the rest.")
        if settings.database_url is None:
            embedded.revive(settings.data_dir)
        time.sleep(1)


def _prepare(settings: Settings) -> str:
    """Keys and the migrated database, whose URL it returns; what is there already stays as it is."""
    if not key_is_elsewhere(settings) and not settings.license_private_key_path.exists():
        folder = _relative(settings.license_private_key_path.parent)
        print(f"Making the license keys in {folder}/ …", flush=True)
        write_key_files(settings, generate_private_key())
    load_signing_key(settings)
    if not settings.database_url:
        print(f"Starting PostgreSQL under {_relative(settings.data_dir)}/ …", flush=True)
        # The service uses the server in the same way, so that it stops also when this process is killed.
        os.environ |= {"DATABASE_URL": "", "EMBEDDED_POSTGRES": "1"}
    url = settings.database_url or embedded.start(settings.data_dir)
    print("Applying the migrations of sql/ …", flush=True)
    with Flask(__name__).app_context():
        migrations.migrate(Database(lambda: url))
    return url


def _claim() -> IO[str]:
    """The file for what commands in this folder use meanwhile. They heed it while it is locked."""
    path = run_file(environment())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"DATA_DIR: another `make run` uses {path.parent}. Stop it first") from None
    except OSError as error:
        raise ConfigError(f"DATA_DIR: {path.parent}: {error.strerror}") from None
    file.truncate()
    return file


def _check_port(setting: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if setting == "PORT" else "127.0.0.1", port))
        except OSError as error:
            other = "PORT=3101 make run" if setting == "PORT" else "change it in .env"
            raise ConfigError(
                f"{setting}: port {port} cannot be used ({error.strerror}). Does this run already? "
                f"Another port: {other}"
            ) from None


def _write_env() -> None:
    """Add what a first start needs and nobody has set: an admin key, and the sandbox for Stripe."""
    settings = load_settings()
    lines = [""] if ENV_FILE.exists() else []
    if not settings.admin_api_keys and "ADMIN_API_KEY" not in os.environ:
        lines += ["# The key of the operators.", f"ADMIN_API_KEY={secrets.token_urlsafe(32)}"]
    if settings.stripe_secret_key is None and settings.stripe_api_base is None:
        lines += [
            "# The local Stripe sandbox. For Stripe itself: your keys here, and no STRIPE_API_BASE.",
            f"STRIPE_SECRET_KEY=sk_test_{secrets.token_hex(12)}",
            f"STRIPE_WEBHOOK_SECRET=whsec_{secrets.token_hex(16)}",
            f"STRIPE_API_BASE=http://127.0.0.1:{_free_port()}",
        ]
    if any(lines):
        try:
            descriptor = os.open(ENV_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.fchmod(descriptor, 0o600)  # .env.example, which it may be a copy of, is open to all
        except OSError as error:
            raise ConfigError(f"{ENV_FILE}: {error.strerror}") from None
        with open(descriptor, "a") as file:
            file.writelines(f"{line}\n" for line in lines)


def _free_port() -> int:
    """One below those that the system gives to outgoing connections, so that it is free next time too."""
    while True:
        port = 20000 + secrets.randbelow(10000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _sandbox_port(settings: Settings) -> int | None:
    base = urlsplit(settings.stripe_api_base or "")
    if base.hostname not in ("127.0.0.1", "localhost"):
        return None
    if not settings.stripe_secret_key or not settings.stripe_webhook_secrets:
        raise ConfigError("STRIPE_API_BASE: needs STRIPE_SECRET_KEY and STRIPE_WEBHOOK_SECRET, any values")
    return base.port


def _start(children: Children, name: str, command: Sequence[str], url: str) -> None:
    """A Python module out of reach of the terminal's Ctrl-C, that ends when this process ends, however.

    Returns when `url` answers.
    """

    def end_with_parent() -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    # Below `warning` every request would be a line, and the banner out of sight.
    preferred = {"LOG_FORMAT": "text", "LOG_LEVEL": "warning"}
    unset = {name: value for name, value in preferred.items() if name not in environment()}
    child = children[name] = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=unset | dict(os.environ) | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    deadline = time.monotonic() + START_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        time.sleep(0.1)
    raise ConfigError(f"{url} does not answer; see the lines above (is its port taken?)")


def _stop(children: Children) -> None:
    """End each child, the last one first, and whatever it has left behind in its process group."""
    for child in reversed(children.values()):
        if child.poll() is None:
            child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(STOP_SECONDS)
        give_up = time.monotonic() + STOP_SECONDS
        with suppress(ProcessLookupError):
            while True:
                os.killpg(child.pid, signal.SIGTERM if time.monotonic() < give_up else signal.SIGKILL)
                time.sleep(0.1)


def _welcome(settings: Settings, sandbox: int | None) -> str:
    flask = shlex.quote(f"{_relative(Path(sys.executable).parent)}/flask")
    here = "ADMIN_API_KEY" not in os.environ
    key = "$(sed -n 's/^ADMIN_API_KEY=\\([^,][^,]*\\).*/\\1/p' .env | tail -1)" if here else "$ADMIN_API_KEY"
    stripe = f"the local sandbox on port {sandbox}" if sandbox else "your account at Stripe"
    return f"""
  Zemfyre billing listens on {settings.base_url}   (API page: {settings.base_url}/docs)
  Admin key:  ADMIN_API_KEY in {_relative(ENV_FILE) if here else "the environment"}
  Stripe:     {stripe}

  Try, in another terminal in this folder:

    {flask} customer add --email ada@example.com --name "Ada" --company "Engines Ltd"
    {flask} customer list
    curl -H "Authorization: Bearer {key}" {settings.base_url}/api/customers

  Ctrl-C stops everything; the data stays in {_relative(settings.data_dir)}/."""


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
