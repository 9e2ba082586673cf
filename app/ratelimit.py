"""Rate limits per credential and per address, shared through Redis when configured."""

import logging
import math
import threading
import time
from enum import Enum
from typing import Final

from flask import current_app, g
from limits import parse
from limits.errors import StorageError
from limits.storage import Storage, storage_from_string

from app.config import ConfigError, Settings
from app.errors import TooManyRequests

STORAGE_SECONDS: Final = 0.5
PAUSE_SECONDS: Final = 5
FORGET_SECONDS: Final = 60
_REDIS: Final = ("redis://", "rediss://", "redis+unix://")
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
        self._storage = _storage(settings.ratelimit_storage_uri)
        self._items = {limit: parse(getattr(settings, limit.value)) for limit in Limit}
        self._paused_until = 0.0

    def hit(self, limit: Limit, key: str) -> None:
        """Count; while the storage is broken all requests pass, and it is tried again every few seconds."""
        if time.monotonic() < self._paused_until:
            return
        item = self._items[limit]
        name = item.key_for(limit.name, key)
        try:
            count = self._storage.incr(name, item.get_expiry())
            ends_at = self._storage.get_expiry(name)
        except StorageError as error:
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            reason = type(error.storage_error).__name__
            log.error("rate limits are not counted for %d s: %s", PAUSE_SECONDS, reason)
            return
        reset = max(1, math.ceil(ends_at - time.time()))
        g.ratelimit = {
            "RateLimit-Limit": str(item.amount),
            "RateLimit-Remaining": str(max(0, item.amount - count)),
            "RateLimit-Reset": str(reset),
        }
        if count > item.amount:
            raise TooManyRequests("Too many requests. Try again later.", retry_after=reset)


class ProcessStorage:
    """Counts of this process, with the two methods of the library's storages that are used here.

    The library's own starts a thread at nearly every hit, which takes 0.15 ms, to walk through all counts.
    Windows are kept on the monotonic clock: one that is set back would make them last that much longer.
    """

    def __init__(self) -> None:
        self.windows: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._forgets_at = 0.0

    def incr(self, key: str, expiry: int) -> int:
        """Count one more in the window, which `expiry` seconds from its first count ends."""
        at = time.monotonic()
        with self._lock:
            if at >= self._forgets_at:
                self.windows = {name: window for name, window in self.windows.items() if window[1] > at}
                self._forgets_at = at + FORGET_SECONDS
            count, ends_at = self.windows.get(key, (0, 0.0))
            window = (count + 1, ends_at) if ends_at > at else (1, at + expiry)
            self.windows[key] = window
            return window[0]

    def get_expiry(self, key: str) -> float:
        """When the window ends, as Unix time; in the past if another thread has forgotten it since."""
        return time.time() + self.windows.get(key, (0, 0.0))[1] - time.monotonic()


def _storage(uri: str) -> Storage | ProcessStorage:
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
