"""Logs and metrics: one line per request, Prometheus counters, nothing secret in either."""

import logging
import logging.config
import re
import secrets
import time
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from flask import Flask, Response, g, request
from prometheus_client import Counter, Histogram

from app.encoding import json_text

REQUESTS: Final = Counter("billing_http_requests_total", "Requests answered", ["method", "route", "status"])
SECONDS: Final = Histogram(
    "billing_http_request_seconds",
    "Time from request to answer",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
STRIPE_SECONDS: Final = Histogram(
    "billing_stripe_call_seconds",
    "Calls to Stripe",
    ["call", "outcome"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 60),
)
WEBHOOKS: Final = Counter("billing_stripe_events_total", "Stripe events received", ["type", "outcome"])
WEBHOOK_LAG: Final = Histogram(
    "billing_stripe_event_lag_seconds",
    "From the event's creation to its processing",
    buckets=(1, 5, 15, 60, 300, 900, 3600, 14400, 86400),
)
REPORTS: Final = Counter("billing_usage_reports_total", "Usage reports received", ["outcome"])
LICENSES: Final = Counter("billing_licenses_issued_total", "Licenses issued", ["plan"])
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})
# A library's message may quote these. Each is searched only where a word begins: searching from every
# character would take seconds for a long line.
_SECRETS: Final = re.compile(
    r"""(?ix) (?<=bearer\s)[^\s"',]+ | \b(?:sk|rk|whsec|pk)_[\w]+ | (?<=://)[^\s/@"]+(?=@)
            | (?<![\w-])(?=[\w-]+\.[\w-]+\.)[\w-]*eyJ[\w-]+\.[\w-]+\.[\w-]*
            | (?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+ | -----BEGIN\ [A-Z\ ]*PRIVATE\ KEY[^"']* """
)
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
access_log = logging.getLogger("app.access")


class JsonFormatter(logging.Formatter):
    """One JSON object a line; whatever was given as `extra` becomes a member."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return redacted(json_text(line))


class TextFormatter(logging.Formatter):
    """For a terminal: time, level, message, then what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        extra = " ".join(f"{name}={value}" for name, value in _extra(record).items())
        text = f"{at} {record.levelname.lower():7} {record.getMessage()} {extra}".rstrip()
        text = text.replace("\r", "\\r").replace("\n", "\\n")
        return redacted(f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}


def redacted(line: str) -> str:
    """Without what looks like a credential, a license, a private key or an email address."""
    # In full, as a loop over these takes three times as long, and most lines have none of them.
    may_have = "earer " in line or "eyJ" in line or "@" in line or "k_" in line
    if may_have or "whsec_" in line or "PRIVATE KEY" in line:
        return _SECRETS.sub("[redacted]", line)
    return line


def logging_config(level: str, style: str) -> dict[str, Any]:
    """For `logging.config.dictConfig`; gunicorn's own lines take the same form."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": JsonFormatter if style == "json" else TextFormatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": level.upper(), "handlers": ["stderr"], "propagate": False},
            # At debug level these libraries log addresses and names.
            "stripe": {"level": "WARNING"},
            "urllib3": {"level": "WARNING"},
        },
    }


def observe(app: Flask) -> None:
    """Give every request an id, a line in the log and a place in the metrics."""

    @app.before_request
    def start() -> None:
        g.started = time.perf_counter()
        given = request.headers.get("X-Request-ID")
        g.request_id = given if given and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.request_id
        seconds = time.perf_counter() - g.started
        route = request.url_rule.rule if request.url_rule else "none"
        method = request.method if request.method in _METHODS else "other"
        counted, timed = _series(method, route, response.status_code)
        counted.inc()
        timed.observe(seconds)
        access_log.info(
            "request",
            extra={
                "request_id": g.request_id, "method": method, "route": route, "status": response.status_code,
                "ms": round(seconds * 1000, 2), "who": g.get("actor", "nobody"),
            },
        )  # fmt: skip
        return response


@cache
def _series(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Where such requests are counted, and timed; looking these up takes longer than counting."""
    return REQUESTS.labels(method, route, status), SECONDS.labels(route)
