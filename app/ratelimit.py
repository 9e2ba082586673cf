"""Rate limits per credential and per address, shared through Redis when configured."""

import logging
import math
import time
from enum import Enum
from typing import Final

from flask import Flask, Response, current_app, g
from limits import RateLimitItem, parse
from limits.errors import StorageError
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter

from app.config import ConfigError, Settings
from app.errors import TooManyRequests

STORAGE_SECONDS: Final = 0.5
PAUSE_SECONDS: Final = 5
log = logging.getLogger(__name__)


class Limit(Enum):
    """What is counted, against the setting of that name."""

    ADMIN = "ratelimit_admin"
    LICENSE = "ratelimit_license"
    ADDRESS = "ratelimit_address"
    FAILED_LOGIN = "ratelimit_failed_login"

    def hit(self, key: str) -> None:
        """Count one more for `key`. Raises TooManyRequests. A broken storage lets requests through."""
        limiter: RateLimiter | None = current_app.extensions.get("ratelimiter")
        if limiter is not None:
            limiter.hit(self, key)


_TIMEOUTS: Final = ("socket_timeout", "socket_connect_timeout")


class RateLimiter:
    """Fixed windows: at most the given count within each whole period."""

    def __init__(self, settings: Settings) -> None:
        uri = settings.ratelimit_storage_uri
        # A storage that hangs would take every thread with it.
        patience = {} if uri.startswith("memory:") else dict.fromkeys(_TIMEOUTS, STORAGE_SECONDS)
        try:
            storage = storage_from_string(uri, wrap_exceptions=True, **patience)
        except Exception as error:  # noqa: BLE001 - whatever the storage's own library raises
            raise ConfigError(f"RATELIMIT_STORAGE_URI: {error}") from None
        self._strategy = FixedWindowRateLimiter(storage)
        self._items: dict[Limit, RateLimitItem] = {
            limit: parse(getattr(settings, limit.value)) for limit in Limit
        }
        self._paused_until = 0.0

    def hit(self, limit: Limit, key: str) -> None:
        """Count; while the storage is broken everybody passes, and it is asked again every few seconds."""
        if time.monotonic() < self._paused_until:
            return
        item = self._items[limit]
        try:
            allowed = self._strategy.hit(item, limit.name, key)
            window = self._strategy.get_window_stats(item, limit.name, key)
        except StorageError as error:
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            log.error(
                "rate limits are not counted for %d s: %s", PAUSE_SECONDS, type(error.storage_error).__name__
            )
            return
        reset = max(1, math.ceil(window.reset_time - time.time()))
        g.ratelimit = {
            "RateLimit-Limit": str(item.amount),
            "RateLimit-Remaining": str(max(0, window.remaining)),
            "RateLimit-Reset": str(reset),
        }
        if not allowed:
            raise TooManyRequests("Too many requests. Try again later.", retry_after=reset)


def limit_rates(app: Flask, settings: Settings) -> None:
    """Count from now on, unless RATELIMIT_ENABLED is off; tell the count in each answer's headers."""
    if not settings.ratelimit_enabled:
        return
    app.extensions["ratelimiter"] = RateLimiter(settings)

    @app.after_request
    def tell(response: Response) -> Response:
        response.headers.update(g.get("ratelimit", {}))
        return response
