"""Ways for the API to fail, chosen by a test."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from .errors import Refusal

DROP = "drop"


@dataclass
class _Fault:
    left: int
    status: int | str
    path: str
    method: str | None
    after: bool


class Faults:
    """What goes wrong next under `/v1`.

    `delay`: seconds before each answer, for paths that contain `delay_path` · `down`: every
    connection is cut without an answer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            self.delay = 0.0
            self.delay_path = ""
            self.down = False
            self._coming: list[_Fault] = []

    def fail_next(
        self,
        n: int = 1,
        status: int | str = 500,
        *,
        path: str = "",
        method: str | None = None,
        after: bool = False,
    ) -> None:
        """The next `n` matching requests answer `status` (500, 429 …) or are cut ("drop").

        `path`: part of the path · `after`: fails only once the request has had its effect, as when
        an answer is lost on the way back.
        """
        with self._lock:
            self._coming.append(_Fault(n, status, path, method, after))

    def take(self, method: str, path: str) -> tuple[int | str | None, bool]:
        """(status, after) for this request; (None, False) when it is to succeed."""
        with self._lock:
            if self.down:
                return DROP, False
            for fault in self._coming:
                if fault.path in path and fault.method in (None, method):
                    fault.left -= 1
                    self._coming = [f for f in self._coming if f.left > 0]
                    return fault.status, fault.after
        return None, False

    def wait(self, path: str) -> None:
        if self.delay and self.delay_path in path:
            time.sleep(self.delay)


def refusal(status: int) -> Refusal:
    """Stripe's answer when it is overloaded or broken."""
    if status == 429:
        return Refusal(
            429,
            "Too many requests hit the API too quickly. We recommend an exponential backoff.",
            code="rate_limit",
            saved=False,
        )
    message = "An error occurred while processing your request. Please try again."
    return Refusal(status, message, type="api_error", saved=False)
