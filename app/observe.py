"""What the service tells of itself: one log line per request, and Prometheus metrics."""

import logging
import logging.config
import re
import secrets
import time
from datetime import UTC, datetime
from typing import Any, Final

from flask import Flask, Response, g, request
from prometheus_client import Counter, Gauge, Histogram

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
CONNECTIONS: Final = Gauge(
    "billing_db_connections",
    "Database connections of all workers: in_use, and allowed",
    ["state"],
    multiprocess_mode="livesum",
)
POOL_TIMEOUTS: Final = Counter("billing_db_pool_timeouts_total", "Requests that got no database connection")

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})
# What must not be in a log whatever happens; a third party's message may quote it. Each begins where a word
# does, and is looked for once in it: from everywhere, a long line of somebody's choice would take seconds.
_SECRETS: Final = re.compile(
    r"""(?ix) (?<=bearer\s)[^\s"',]+ | \b(?:sk|rk|whsec|pk)_[\w]+ | (?<=://)[^\s/@"]+(?=@)
            | (?<![\w-])(?=[\w-]+\.[\w-]+\.)[\w-]*eyJ[\w-]+\.[\w-]+\.[\w-]*
            | (?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+ | -----BEGIN\ [A-Z\ ]*PRIVATE\ KEY[^"']* """
)
_HINTS: Final = ("earer ", "eyJ", "@", "k_", "whsec_", "PRIVATE KEY")
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "taskName",
}
access_log = logging.getLogger("app.access")


class JsonFormatter(logging.Formatter):
    """One JSON object a line; whatever was given as `extra` becomes a member."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {k: v for k, v in record.__dict__.items() if k not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return redacted(json_text(line))


class TextFormatter(logging.Formatter):
    """For a terminal: time, level, message, then what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        extra = " ".join(f"{k}={v}" for k, v in record.__dict__.items() if k not in _STANDARD)
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{at} {record.levelname.lower():7} {record.getMessage()} {extra}".rstrip()
        line = line.replace("\r", "\\r").replace("\n", "\\n")
        return redacted(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)


def redacted(line: str) -> str:
    """Without what looks like a credential, a license, a private key or an email address."""
    return _SECRETS.sub("[redacted]", line) if any(hint in line for hint in _HINTS) else line


def logging_config(level: str, style: str) -> dict[str, Any]:
    """For `logging.config.dictConfig`; gunicorn's own lines take the same form."""
    formatter = JsonFormatter if style == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": level.upper(), "handlers": ["stderr"], "propagate": False},
            # Third parties tell of addresses and names at debug level.
            "stripe": {"level": "WARNING"},
            "urllib3": {"level": "WARNING"},
        },
    }


def observe(app: Flask) -> None:
    """Give every request an id, a log line and a place in the metrics."""

    @app.before_request
    def start() -> None:
        g.started = time.perf_counter()
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)

    @app.after_request
    def finish(response: Response) -> Response:
        request_id, rule = g.request_id, request.url_rule
        response.headers["X-Request-ID"] = request_id
        seconds = time.perf_counter() - g.started
        route = rule.rule if rule else "none"
        method = request.method if request.method in _METHODS else "other"
        REQUESTS.labels(method, route, response.status_code).inc()
        SECONDS.labels(route).observe(seconds)
        access_log.info(
            "request",
            extra={
                "request_id": request_id,
                "method": method,
                "route": route,
                "status": response.status_code,
                "ms": round(seconds * 1000, 2),
                "who": g.get("actor", "nobody"),
            },
        )
        return response
