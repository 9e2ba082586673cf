"""The parts of a running application, and how code below the edge reaches them."""

import threading
from dataclasses import dataclass
from datetime import UTC, datetime

from flask import current_app, g, has_request_context

from app import embedded
from app.config import Settings
from app.db import Database
from app.keyring import Keyring
from app.stripe_gateway import StripeGateway


class Parts:
    """Made once per process by `create_app`; each part opens itself on first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keyring = Keyring(settings)
        self.stripe = StripeGateway(settings)
        self.usage_months: dict[tuple[int, int], float] = {}
        """When (monotonic) to look again whether a month's partition is there."""

        self._db: Database | None = None
        self._opening = threading.Lock()

    @property
    def db(self) -> Database:
        """The pool; without DATABASE_URL on the embedded server, started when first needed."""
        if self._db is None:
            with self._opening:
                if self._db is None:
                    url = self.settings.database_url or embedded.start(self.settings.data_dir)
                    self._db = Database(url, self.settings.db_pool_size)
        return self._db


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does it, for the audit: `admin:…`, `customer:…`, `console:…` or `stripe:…`."""

    name: str
    request_id: str | None = None


def parts() -> Parts:
    """The parts of the current application."""
    return current_app.extensions["parts"]  # type: ignore[no-any-return]


def set_actor(name: str) -> None:
    """Say who acts from here on in this request or command."""
    g.actor = name


def actor() -> Actor:
    name = g.get("actor")
    if name is None:
        raise LookupError("nobody has said who acts")
    return Actor(name, g.request_id if has_request_context() else None)


def now() -> datetime:
    """The present in UTC; the one clock of the service."""
    return datetime.now(UTC)
