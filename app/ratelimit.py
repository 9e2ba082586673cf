"""Rate limits per credential and per address, shared through Redis when configured."""

import logging
import math
import threading
import time
from enum import Enum
from typing import Any, Final

from flask import current_app, g
from limits import parse
from limits.errors import StorageError
from limits.storage import MemoryStorage, Storage, storage_from_string
from limits.strategies import FixedWindowRateLimiter

from app.config import ConfigError, Settings
from app.errors import TooManyRequests

STORAGE_SECONDS: Final = 0.5
PAUSE_SECONDS: Final = 5
FORGET_SECONDS: Final = 60
_REDIS: Final = ("redis://", "rediss://", "redis+unix://", "redis+sentinel://", "redis+cluster://")
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


class RateLimiter:
    """Fixed windows: at most the given count within each whole period."""

    def __init__(self, settings: Settings) -> None:
        self._strategy = FixedWindowRateLimiter(_storage(settings.ratelimit_storage_uri))
        self._items = {limit: parse(getattr(settings, limit.value)) for limit in Limit}
        self._paused_until = 0.0

    def hit(self, limit: Limit, key: str) -> None:
        """Count; while the storage is broken all requests pass, and it is tried again every few seconds."""
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


class ProcessStorage(MemoryStorage):
    """Counts of this process, the old ones forgotten once a minute.

    The library's own starts a thread for that at nearly every hit, which takes 0.15 ms, and walks through all
    counts each time.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._lock = threading.Lock()
        self._forgets_at = 0.0

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        at = time.time()
        with self._lock:
            if at >= self._forgets_at:
                for name, ends_at in list(self.expirations.items()):
                    if ends_at <= at:
                        self.clear(name)
                self._forgets_at = at + FORGET_SECONDS
            if self.get(key) == 0:
                self.expirations[key] = at + expiry
            self.storage[key] += amount
            return self.storage[key]


def _storage(uri: str) -> Storage:
    """In memory, or Redis. One that hangs must not take every thread with it, hence the timeouts."""
    if uri == "memory://":
        return ProcessStorage()
    try:
        if not uri.startswith(_REDIS):
            raise ValueError("unknown scheme")
        return storage_from_string(  # type: ignore[return-value]
            uri, wrap_exceptions=True, socket_timeout=STORAGE_SECONDS, socket_connect_timeout=STORAGE_SECONDS
        )
    except Exception:  # noqa: BLE001 - any error of the library; its text may show a part of the password
        raise ConfigError("RATELIMIT_STORAGE_URI: expected memory:// or redis://host:6379/0") from None
