"""For tests that end a process at any moment."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2.extensions
import pytest

from app.db import Cursor
from app.stripe_gateway import HttpClient


class Killed(BaseException):
    """The process ends here."""


class Fuse:
    """Kills what a thread does after so many steps: calls to Stripe and statements, begun or done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._local = threading.local()
        call, execute = HttpClient.request_with_retries, psycopg2.extensions.cursor.execute

        def burning_call(client: HttpClient, *args: Any, **kwargs: Any) -> Any:
            self._burn()
            answer = call(client, *args, **kwargs)
            self._burn()
            return answer

        def burning_execute(cursor: Any, *args: Any) -> None:
            self._burn()
            execute(cursor, *args)
            self._burn()

        monkeypatch.setattr(HttpClient, "request_with_retries", burning_call)
        monkeypatch.setattr(Cursor, "execute", burning_execute, raising=False)

    def _burn(self) -> None:
        left = getattr(self._local, "left", None)
        if left == 0:
            raise Killed
        if left:
            self._local.left = left - 1

    @contextmanager
    def lit(self, length: int | None) -> Iterator[None]:
        """What runs inside ends after so many steps; None: it does not."""
        self._local.left = length
        try:
            yield
        except Killed:
            pass
        finally:
            self._local.left = None


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> Fuse:
    return Fuse(monkeypatch)
