"""The sandbox's memory: objects, clock, things that fall due, events; kept in a file if asked.

Everything happens inside `World.transaction()`, one at a time.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import string
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import stripe

from .errors import no_such

Obj = dict[str, Any]

HOUR, DAY = 3600, 86_400
KINDS = [
    "customer",
    "product",
    "price",
    "coupon",
    "promotion_code",
    "discount",
    "checkout.session",
    "subscription",
    "subscription_schedule",
    "invoice",
    "invoiceitem",
    "charge",
    "dispute",
    "event",
    "webhook_endpoint",
    "billing_portal.session",
    "billing_portal.configuration",
]
PRIVATE = "_sandbox"
ALPHABET = string.ascii_letters + string.digits
_random = random.Random()


class Due(NamedTuple):
    """Something that happens to an object by itself at a time (Unix seconds)."""

    time: int
    action: Callable[[], None]


DueRule = Callable[["World", Obj], Due | None]
DUE_RULES: dict[str, DueRule] = {}


def due_rule(kind: str) -> Callable[[DueRule], DueRule]:
    """Registers the function that says what next falls due for an object of this kind."""

    def register(rule: DueRule) -> DueRule:
        DUE_RULES[kind] = rule
        return rule

    return register


@dataclass
class Dunning:
    """What follows a failed renewal: retries after so many days each, then a final status."""

    retry_days: tuple[int, ...] = (3, 5, 7)
    then: str = "canceled"  # or "unpaid", or "past_due" (left as it is)


def new_id(prefix: str, length: int = 24) -> str:
    return prefix + "_" + "".join(_random.choices(ALPHABET, k=length))


def public(obj: Obj) -> Obj:
    """The object as Stripe shows it, without the sandbox's own notes."""
    return {key: value for key, value in obj.items() if key != PRIVATE}


def copied(obj: Obj) -> Obj:
    """A deep copy; through JSON, as that is several times faster than `copy.deepcopy`."""
    copy: Obj = json.loads(json.dumps(obj))
    return copy


def notes(obj: Obj) -> Obj:
    """What the sandbox remembers about an object and never shows."""
    found: Obj = obj.setdefault(PRIVATE, {})
    return found


class World:
    """All state of one account in one mode, behind one lock. `data`: file that outlives a restart.

    `account`: its id; without one, the id in the file or a new one.
    """

    def __init__(
        self, data: Path | None = None, account: str | None = None, *, livemode: bool = False
    ) -> None:
        self.data = data
        self.account = account or new_id("acct", 16)
        self.livemode = livemode
        self.other_mode: World | None = None  # the same account's live or test objects
        self.keys: dict[str, Obj] = {}  # API key → {account, livemode, without, revoked}
        self.lock = threading.RLock()
        self.dunning = Dunning()
        self.base_url = ""
        self.request: Obj = {"id": None, "idempotency_key": None}  # noted in events
        self.publish: Callable[[list[Obj]], None] = lambda events: None
        self.saved_extra: Callable[[], Obj] = dict  # more to keep in the file
        self._depth = 0
        self._dirty = False
        self._fresh_events: list[Obj] = []
        self.clear()
        self.loaded_extra: Obj = self._load() if data and data.exists() else {}

    def clear(self) -> None:
        """Back to an empty account at real time; its id stays."""
        self.tables: dict[str, dict[str, Obj]] = {kind: {} for kind in KINDS}
        self._of_customer: dict[tuple[str, str], dict[str, None]] = {}
        self.keys.clear()
        self.offset = 0.0
        self.cards: dict[str, str] = {}  # customer → see `errors.card_refused`; absent: no card
        self.answers: dict[str, Obj] = {}  # idempotency key → first answer
        self._due: list[tuple[int, int, str, str]] = []
        self._due_count = 0
        self._at: int | None = None  # the time while something due happens
        self._latest = 0  # nothing happens before what has happened
        self._dirty = True

    # -- objects

    def add(self, obj: Obj) -> Obj:
        if "livemode" in obj:
            obj["livemode"] = self.livemode
        self.tables[obj["object"]][obj["id"]] = obj
        self.touch(obj)
        return obj

    def find(self, kind: str, id: str) -> Obj | None:
        return self.tables[kind].get(id)

    def get(self, kind: str, id: str, param: str | None = None) -> Obj:
        """The object, or `resource_missing`; a deleted one counts as missing."""
        obj = self.tables[kind].get(id)
        if obj is None or obj.get("deleted"):
            elsewhere = self.other_mode.find(kind, id) if self.other_mode else None
            raise no_such(kind, id, param, None if elsewhere is None else not self.livemode)
        return obj

    def table(self, kind: str, customer: str | None = None) -> dict[str, Obj]:
        """All objects of a kind by id, oldest first; with `customer` that customer's."""
        table = self.tables[kind]
        if customer is None:
            return table
        return {id: table[id] for id in self._of_customer.get((kind, customer), ()) if id in table}

    def every(self, kind: str, **equal: Any) -> list[Obj]:
        """Objects of a kind whose fields equal those given, oldest first, without deleted ones."""
        return [
            obj
            for obj in self.table(kind, equal.get("customer")).values()
            if not obj.get("deleted") and all(obj[k] == v for k, v in equal.items())
        ]

    def touch(self, obj: Obj) -> None:
        """To be called after each change of an object."""
        self._dirty = True
        if customer := obj.get("customer"):
            self._of_customer.setdefault((obj["object"], customer), {})[obj["id"]] = None
        rule = DUE_RULES.get(obj["object"])
        due = rule(self, obj) if rule else None
        if due:
            self._due_count += 1
            heapq.heappush(self._due, (due.time, self._due_count, obj["object"], obj["id"]))

    @contextmanager
    def changing(self, obj: Obj, event: str | None = None) -> Iterator[None]:
        """Changes made inside are one step: announced with what was before, undone on error."""
        before = copied(obj)
        try:
            yield
        except BaseException:
            obj.clear()
            obj.update(before)
            raise
        self.touch(obj)
        previous = {k: v for k, v in public(before).items() if obj.get(k) != v}
        if previous:
            self.emit(event or _updated(obj), obj, previous)

    def emit(self, type: str, obj: Obj, previous: Obj | None = None) -> Obj:
        """Appends an event with a snapshot of the object."""
        data: Obj = {"object": copied(public(obj))}
        if previous is not None:
            data["previous_attributes"] = copied(previous)
        self._latest = self.now()
        event = {
            "id": new_id("evt"),
            "object": "event",
            "api_version": stripe.api_version,
            "created": self.now(),
            "data": data,
            "livemode": self.livemode,
            "pending_webhooks": 0,
            "request": dict(self.request),
            "type": type,
        }
        self._fresh_events.append(self.add(event))
        return event

    # -- time

    def now(self) -> int:
        """Unix seconds by the sandbox's clock."""
        return int(time.time() + self.offset) if self._at is None else self._at

    def advance(self, seconds: float) -> None:
        """Moves the clock; what falls due in between happens at its own time, in order."""
        with self.transaction():
            self.offset += seconds
            self._dirty = True
            self._catch_up()

    def next_due(self) -> int | None:
        """When something may happen by itself next."""
        with self.lock:
            return self._due[0][0] if self._due else None

    def _catch_up(self) -> None:
        until = self.now()
        while self._due and self._due[0][0] <= until:
            when, _, kind, id = heapq.heappop(self._due)
            obj = self.tables[kind].get(id)
            due = DUE_RULES[kind](self, obj) if obj else None
            if obj is None or due is None:
                continue
            if due.time <= when:
                self._at = max(due.time, self._latest)
                try:
                    due.action()
                finally:
                    self._at = None
            self.touch(obj)

    # -- one step at a time, and the file

    @contextmanager
    def transaction(self) -> Iterator[World]:
        """Holds the lock, lets due things happen first, saves and publishes at the end."""
        with self.lock:
            self._depth += 1
            try:
                if self._depth == 1:
                    self._catch_up()
                yield self
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._latest = self.now()
                    events, self._fresh_events = self._fresh_events, []
                    if events:
                        self.publish(events)
                    self.save()

    def save(self) -> None:
        """Writes the file if anything has changed; a crash leaves the old one or the new one."""
        if not (self.data and self._dirty):
            return
        state = {
            "account": self.account,
            "keys": self.keys,
            "tables": self.tables,
            "offset": self.offset,
            "cards": self.cards,
            "answers": self.answers,
            **self.saved_extra(),
        }
        self.data.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.data.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.data)
        self._dirty = False

    def mark_dirty(self) -> None:
        self._dirty = True

    def _load(self) -> Obj:
        assert self.data
        state: Obj = json.loads(self.data.read_text())
        self.account = state.pop("account", self.account)
        self.keys = state.pop("keys", {})
        self.tables.update(state.pop("tables"))
        self.offset = state.pop("offset")
        self.cards = state.pop("cards")
        self.answers = state.pop("answers")
        for table in self.tables.values():
            for obj in table.values():
                self.touch(obj)
        return state


def _updated(obj: Obj) -> str:
    kind = obj["object"]
    return "customer.subscription.updated" if kind == "subscription" else f"{kind}.updated"
