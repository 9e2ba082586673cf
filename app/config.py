"""Environment and ``.env`` → settings. A wrong one ends the start with one line that names it."""

import fcntl
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
from dotenv import dotenv_values
from psycopg2.extensions import parse_dsn

from app.plans import PAID_PLANS

ROOT = Path(__file__).resolve().parent.parent
KEEP_ALIVE_SECONDS = 15


class ConfigError(SystemExit):
    """One plain line on stderr, exit code 1."""


class Settings:
    """Every setting of the service, read from `environ`; ``.env.example`` says what each means.

    Raises ConfigError naming the first setting that is malformed.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        env = _Reader(environ)
        self.database_url = env.database_url("DATABASE_URL")
        self.data_dir = env.path("DATA_DIR", ".data")
        self.embedded_postgres = env.flag("EMBEDDED_POSTGRES", False)
        self.port = env.integer("PORT", 3100, 1, 65535)
        self.base_url = (env.url("BASE_URL") or f"http://localhost:{self.port}").rstrip("/")
        self.admin_api_keys = env.secrets("ADMIN_API_KEY")
        self.stripe_secret_key = env.stripe_key("STRIPE_SECRET_KEY")
        self.stripe_webhook_secrets = env.secrets("STRIPE_WEBHOOK_SECRET")
        self.stripe_prices = {
            (plan, interval): price
            for plan in PAID_PLANS
            for interval, suffix in (("month", ""), ("year", "_YEAR"))
            if (price := env.text(f"STRIPE_PRICE_{plan.upper()}{suffix}"))
        }
        self.stripe_api_base = env.url("STRIPE_API_BASE")
        self.stripe_rate = env.integer("STRIPE_RATE", 50, 1, 10_000)
        self.stripe_tax = env.flag("STRIPE_TAX", False)
        self.overage = env.choice("OVERAGE", "off", ("off", "shadow", "on"))
        self.overage_discountable = env.flag("OVERAGE_DISCOUNTABLE", False)
        self.license_private_key_path = env.path("LICENSE_PRIVATE_KEY_PATH", "keys/private-key.pem")
        self.license_public_key_path = env.path("LICENSE_PUBLIC_KEY_PATH", "keys/public-key.pem")
        if self.license_public_key_path == self.license_private_key_path:
            path = self.license_public_key_path
            raise ConfigError(f"LICENSE_PUBLIC_KEY_PATH: {path} is LICENSE_PRIVATE_KEY_PATH too")
        self.license_private_key = env.text("LICENSE_PRIVATE_KEY")
        self.license_private_key_command = env.text("LICENSE_PRIVATE_KEY_COMMAND")
        self.license_validity_days = env.integer("LICENSE_VALIDITY_DAYS", 365, 1, 3650)
        self.license_grace_days = env.integer("LICENSE_GRACE_DAYS", 7, 1, 365)
        self.license_issuer = env.text("LICENSE_ISSUER") or "zemfyre-billing"
        self.trial_days = env.integer("TRIAL_DAYS", 14, 1, 365)
        self.ratelimit_enabled = env.flag("RATELIMIT_ENABLED", True)
        self.ratelimit_storage_uri = env.text("RATELIMIT_STORAGE_URI") or "memory://"
        self.ratelimit_admin = env.rate("RATELIMIT_ADMIN", "60000/minute")
        self.ratelimit_license = env.rate("RATELIMIT_LICENSE", "6000/minute")
        self.ratelimit_address = env.rate("RATELIMIT_ADDRESS", "1200/minute")
        self.ratelimit_failed_login = env.rate("RATELIMIT_FAILED_LOGIN", "300/minute")
        self.trusted_proxies = env.integer("TRUSTED_PROXIES", 0, 0, 10)
        self.log_level = env.choice("LOG_LEVEL", "info", ("debug", "info", "warning", "error"))
        self.log_format = env.choice("LOG_FORMAT", "json", ("json", "text"))
        self.web_concurrency = env.integer("WEB_CONCURRENCY", max(2, os.cpu_count() or 1), 1, 1000)
        self.web_threads = env.integer("WEB_THREADS", 8, 1, 1000)


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process, or of just `environ`. Raises ConfigError."""
    return Settings(environment() if environ is None else environ)


def environment() -> dict[str, str]:
    """The process environment, over what a running `make run` uses, over ``.env``."""
    file, process = _dotenv(ROOT / ".env"), dict(os.environ)
    running: dict[str, str] = {}
    path = run_file(file | process)
    try:
        with open(path) as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        running = _dotenv(path)
    except OSError:
        pass  # none; one that can be locked was left behind by a `make run` that has ended
    return file | running | process


def run_file(environ: Mapping[str, str]) -> Path:
    """Where `make run` writes its port, links and database; locked while it runs."""
    return _Reader(environ).path("DATA_DIR", ".data") / "run.env"


def _dotenv(path: Path) -> dict[str, str]:
    try:
        return {k: v for k, v in dotenv_values(path).items() if v is not None}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: cannot be read as UTF-8 text: {error}") from None


def is_http_url(text: str) -> bool:
    """Whether this is an absolute http(s) address without user or password."""
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return is_address and "@" not in parts.netloc


class _Reader:
    """Typed look-ups; an empty value counts as not set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def text(self, name: str) -> str | None:
        return self.environ.get(name, "").strip() or None

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.text(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 12 and low <= int(text) <= high):
            raise ConfigError(f"{name}: {text!r} is not a whole number from {low} to {high}")
        return int(text)

    def flag(self, name: str, default: bool) -> bool:
        text = (self.text(name) or str(default)).lower()
        if text not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise ConfigError(f"{name}: {text!r} is not true or false")
        return text in ("true", "1", "yes", "on")

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        text = (self.text(name) or default).lower()
        if text not in choices:
            raise ConfigError(f"{name}: {text!r} is not one of {', '.join(choices)}")
        return text

    def secrets(self, name: str) -> tuple[str, ...]:
        keys = tuple(part.strip() for part in (self.text(name) or "").split(",") if part.strip())
        if not all(re.fullmatch("[!-~]{8,}", key) for key in keys):
            expected = "each of 8 or more printable ASCII characters without spaces, comma-separated"
            raise ConfigError(f"{name}: expected {expected}")
        return keys

    def stripe_key(self, name: str) -> str | None:
        text = self.text(name)
        if text is not None and not re.fullmatch(r"[sr]k_\w+", text, re.ASCII):
            raise ConfigError(f"{name}: expected a secret or restricted key of Stripe, sk_… or rk_…")
        return text

    def path(self, name: str, default: str) -> Path:
        return ROOT / (self.text(name) or default)

    def url(self, name: str) -> str | None:
        text = self.text(name)
        if text is not None and (re.search(r"[\s?#]", text) or not is_http_url(text)):
            raise ConfigError(f"{name}: expected an http(s) URL without user, query or fragment")
        return text

    def database_url(self, name: str) -> str | None:
        text = self.text(name)
        try:
            if text is not None and not text.startswith(("postgresql://", "postgres://")):
                raise ValueError
            parse_dsn(text or "")
        except (ValueError, psycopg2.ProgrammingError):  # whose message may show a part of the password
            expected = "a URL like postgresql://user@host:5432/database, %-encoded, with libpq's parameters"
            raise ConfigError(f"{name}: expected {expected}") from None
        return text

    def rate(self, name: str, default: str) -> str:
        text = self.text(name) or default
        if not re.fullmatch(r"0*[1-9]\d{0,8}/(second|minute|hour|day)", text, re.ASCII):
            raise ConfigError(f"{name}: {text!r} is not like 600/minute")
        return text
