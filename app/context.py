"""Who acts, and when: what the audit log and every decision about time need to know."""

from datetime import UTC, datetime

from flask import g


def now() -> datetime:
    """The present in UTC; the only clock of the service."""
    return datetime.now(UTC)


def set_actor(name: str) -> None:
    """Name who acts in this request or command: `admin:…`, `customer:…`, `console:…`, `stripe:…`."""
    g.actor = name


def actor() -> str | None:
    name: str | None = g.get("actor")
    return name


def request_id() -> str | None:
    """The request's id; None in the console."""
    given: str | None = g.get("request_id")
    return given
