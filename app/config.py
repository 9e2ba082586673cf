"""Environment and ``.env`` → settings. A wrong one ends the start with one line that names it."""

import fcntl
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
from dotenv import dotenv_values
from psycopg2.extensions import parse_dsn

from app.plans import PAID_PLANS

ROOT = Path(__file__).resolve().parent.parent
MIN_SECRET_LENGTH = 8
KEEP_ALIVE_SECONDS = 15


class ConfigError(SystemExit):
    """One plain line on stderr, exit code 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of the service; ``.env.example`` says what each means."""

    database_url: str | None
    data_dir: Path
    embedded_postgres: bool
    port: int
    base_url: str
    admin_api_keys: tuple[str, ...]
    stripe_secret_key: str | None
    stripe_webhook_secrets: tuple[str, ...]
    stripe_prices: Mapping[tuple[str, str], str]
    stripe_api_base: str | None
    stripe_rate: int
    stripe_tax: bool
    overage: str
    overage_discountable: bool
    license_private_key_path: Path
    license_public_key_path: Path
    license_private_key: str | None
    license_private_key_command: str | None
    license_validity_days: int
    license_grace_days: int
    license_issuer: str
    trial_days: int
    ratelimit_enabled: bool
    ratelimit_storage_uri: str
    ratelimit_admin: str
    ratelimit_license: str
    ratelimit_address: str
    ratelimit_failed_login: str
    trusted_proxies: int
    log_level: str
    log_format: str
    web_concurrency: int
    web_threads: int


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the process environment over a running `make run` over ``.env`` (or just `environ`).

    Raises ConfigError naming the first setting that is malformed.
    """
    if environ is None:
        environ = environment()
    env = _Reader(environ)
    port = env.integer("PORT", 3100, 1, 65535)
    private_key_path = env.path("LICENSE_PRIVATE_KEY_PATH", "keys/private-key.pem")
    public_key_path = env.path("LICENSE_PUBLIC_KEY_PATH", "keys/public-key.pem")
    if private_key_path == public_key_path:
        raise ConfigError(f"LICENSE_PUBLIC_KEY_PATH: {public_key_path} is LICENSE_PRIVATE_KEY_PATH too")
    return Settings(
        database_url=env.database_url("DATABASE_URL"),
        data_dir=env.path("DATA_DIR", ".data"),
        embedded_postgres=env.flag("EMBEDDED_POSTGRES", False),
        port=port,
        base_url=(env.url("BASE_URL") or f"http://localhost:{port}").rstrip("/"),
        admin_api_keys=env.secrets("ADMIN_API_KEY"),
        stripe_secret_key=env.stripe_key("STRIPE_SECRET_KEY"),
        stripe_webhook_secrets=env.secrets("STRIPE_WEBHOOK_SECRET"),
        stripe_prices={
            (plan, interval): price
            for plan in PAID_PLANS
            for interval, suffix in (("month", ""), ("year", "_YEAR"))
            if (price := env.text(f"STRIPE_PRICE_{plan.upper()}{suffix}"))
        },
        stripe_api_base=env.url("STRIPE_API_BASE"),
        stripe_rate=env.integer("STRIPE_RATE", 50, 1, 10_000),
        stripe_tax=env.flag("STRIPE_TAX", False),
        overage=env.choice("OVERAGE", "off", ("off", "shadow", "on")),
        overage_discountable=env.flag("OVERAGE_DISCOUNTABLE", False),
        license_private_key_path=private_key_path,
        license_public_key_path=public_key_path,
        license_private_key=env.text("LICENSE_PRIVATE_KEY"),
        license_private_key_command=env.text("LICENSE_PRIVATE_KEY_COMMAND"),
        license_validity_days=env.integer("LICENSE_VALIDITY_DAYS", 365, 1, 3650),
        license_grace_days=env.integer("LICENSE_GRACE_DAYS", 7, 1, 365),
        license_issuer=env.text("LICENSE_ISSUER") or "zemfyre-billing",
        trial_days=env.integer("TRIAL_DAYS", 14, 1, 365),
        ratelimit_enabled=env.flag("RATELIMIT_ENABLED", True),
        ratelimit_storage_uri=env.text("RATELIMIT_STORAGE_URI") or "memory://",
        ratelimit_admin=env.rate("RATELIMIT_ADMIN", "60000/minute"),
        ratelimit_license=env.rate("RATELIMIT_LICENSE", "6000/minute"),
        ratelimit_address=env.rate("RATELIMIT_ADDRESS", "1200/minute"),
        ratelimit_failed_login=env.rate("RATELIMIT_FAILED_LOGIN", "300/minute"),
        trusted_proxies=env.integer("TRUSTED_PROXIES", 0, 0, 10),
        log_level=env.choice("LOG_LEVEL", "info", ("debug", "info", "warning", "error")),
        log_format=env.choice("LOG_FORMAT", "json", ("json", "text")),
        web_concurrency=env.integer("WEB_CONCURRENCY", max(2, os.cpu_count() or 1), 1, 1000),
        web_threads=env.integer("WEB_THREADS", 8, 1, 1000),
    )


def environment() -> dict[str, str]:
    """The process environment, over what a running `make run` uses, over ``.env``."""
    file, process = _dotenv(), dict(os.environ)
    return file | _run_local(run_file(file | process)) | process


def run_file(environ: Mapping[str, str]) -> Path:
    """Where `make run` writes its port, links and database; locked while it runs."""
    return _Reader(environ).path("DATA_DIR", ".data") / "run.env"


def _run_local(path: Path) -> dict[str, str]:
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return {k: v for k, v in dotenv_values(path).items() if v is not None}
    except OSError:
        pass
    return {}  # none, or left behind by one that has ended


def _dotenv() -> dict[str, str]:
    try:
        return {k: v for k, v in dotenv_values(ROOT / ".env").items() if v is not None}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f".env: cannot be read as UTF-8 text: {error}") from None


def require_admin_key(settings: Settings) -> None:
    """The web service does not start without one; the console needs none."""
    if not settings.admin_api_keys:
        raise ConfigError("ADMIN_API_KEY: not set; expected one or several keys, comma-separated")


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
        if not (text.isascii() and text.isdigit() and low <= int(text[:12]) <= high):
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
        if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
            raise ConfigError(f"{name}: expected printable ASCII without spaces, comma-separated")
        if any(len(key) < MIN_SECRET_LENGTH for key in keys):
            raise ConfigError(f"{name}: each must have at least {MIN_SECRET_LENGTH} characters")
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
        if text is not None and not _is_http_url(text):
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
        count, _, period = text.partition("/")
        is_count = re.fullmatch(r"0*[1-9]\d{0,8}", count, re.ASCII)
        if not is_count or period not in ("second", "minute", "hour", "day"):
            raise ConfigError(f"{name}: {text!r} is not like 600/minute")
        return text


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        plain = "@" not in parts.netloc and not re.search(r"[\s?#]", text)
        return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
