"""`make run`: everything on this machine, in one terminal.

Makes what is missing (settings, keys, database), then runs the Stripe sandbox, if `.env` points to
it, and the service, and stops both when it is stopped itself.
"""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final
from urllib.parse import urlsplit

from app import migrations
from app.config import ROOT, ConfigError, Settings, load_settings
from app.keyring import key_is_elsewhere, load_signing_key, write_key_files
from app.parts import Parts

ENV_FILE: Final = ROOT / ".env"
START_SECONDS: Final = 60
STOP_SECONDS: Final = 40
PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    settings = prepare()
    children: list[subprocess.Popen[bytes]] = []
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        sandbox = _sandbox_port(settings)
        if sandbox:
            children.append(_start(_sandbox_command(settings, sandbox)))
            _wait(f"http://127.0.0.1:{sandbox}/_sandbox/state", children[-1])
            _flask("stripe", "setup")
        children.append(_start([sys.executable, "-m", "gunicorn", "wsgi:app"]))
        _wait(f"http://127.0.0.1:{settings.port}/health", children[-1])
        print(_welcome(settings, sandbox), flush=True)
        parent = os.getppid()
        while all(child.poll() is None for child in children) and os.getppid() == parent:
            time.sleep(0.3)
    except KeyboardInterrupt:
        print("\nStopping …", file=sys.stderr)
    finally:
        _stop(children)


def prepare() -> Settings:
    """`.env`, keys and the migrated database; what is there already stays as it is."""
    _write_env()
    settings = load_settings()
    if not key_is_elsewhere(settings) and not settings.license_private_key_path.exists():
        write_key_files(settings)
    load_signing_key(settings)
    migrations.migrate(Parts(settings).db)
    return settings


def _write_env() -> None:
    """Add what a first start needs and nobody has set: an admin key, and the sandbox for Stripe."""
    known = ENV_FILE.read_text() if ENV_FILE.exists() else ""
    settings = load_settings()
    lines = []
    if not settings.admin_api_keys:
        lines += ["# The key of the operators.", f"ADMIN_API_KEY={secrets.token_urlsafe(32)}"]
    if settings.stripe_secret_key is None:
        lines += [
            "# The local Stripe sandbox. For Stripe itself: your keys here, and no STRIPE_API_BASE.",
            f"STRIPE_SECRET_KEY=sk_test_{secrets.token_hex(12)}",
            f"STRIPE_WEBHOOK_SECRET=whsec_{secrets.token_hex(16)}",
            f"STRIPE_API_BASE=http://127.0.0.1:{_free_port()}",
        ]
    if lines:
        descriptor = os.open(ENV_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "a") as file:
            file.write(("\n" if known and not known.endswith("\n") else "") + "\n".join(lines) + "\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _sandbox_port(settings: Settings) -> int | None:
    base = urlsplit(settings.stripe_api_base or "")
    return base.port if base.hostname in ("127.0.0.1", "localhost") else None


def _sandbox_command(settings: Settings, port: int) -> list[str]:
    return [
        sys.executable, "-m", "tests.stripe_sandbox",
        "--port", str(port),
        "--data", str(settings.data_dir / "stripe-sandbox.json"),
        "--webhook-url", f"http://127.0.0.1:{settings.port}/webhooks/stripe",
        "--webhook-secret", settings.stripe_webhook_secrets[0],
        "--promo", "LAUNCH20=20",
    ]  # fmt: skip


def _flask(*args: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "flask", *args],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """A child out of reach of the terminal's Ctrl-C, that ends when this process ends, however."""

    def end_with_parent() -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    env = os.environ | {"LOG_FORMAT": os.environ.get("LOG_FORMAT", "text"), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, preexec_fn=end_with_parent)


def _wait(url: str, child: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ConfigError(f"{url} does not answer; see the lines above (is its port taken?)")


def _stop(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    for child in reversed(children):
        if child.poll() is None:
            child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _welcome(settings: Settings, sandbox: int | None) -> str:
    flask = f"{_relative(Path(sys.executable).parent)}/flask"
    stripe = f"the local sandbox on port {sandbox}" if sandbox else "your account at Stripe"
    return f"""
  Zemfyre billing listens on {settings.base_url}   (API page: {settings.base_url}/docs)
  Admin key:  ADMIN_API_KEY in {_relative(ENV_FILE)}
  Stripe:     {stripe}

  Try, in another terminal in this folder:

    {flask} customer add --email ada@example.com --name "Ada" --company "Engines Ltd"
    {flask} customer list
    curl -H "Authorization: Bearer $(sed -n 's/^ADMIN_API_KEY=//p' .env)" {settings.base_url}/api/customers

  Ctrl-C stops everything; the data stays in {_relative(settings.data_dir)}/."""


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
