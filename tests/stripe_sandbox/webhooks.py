"""Events on their way to the service: signed, delivered, held back, repeated, lost.

https://docs.stripe.com/webhooks
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import requests

from .world import Obj, World, notes, public

TIMEOUT = 10
RETRY_WAITS = (1, 2, 4, 8, 15, 30, 60)  # seconds; the last one goes on
RETRY_FOR = 24 * 3600

Transport = Callable[[str, bytes, dict[str, str]], int]


@dataclass(frozen=True)
class Delivery:
    """One attempt. `status` is None when there was no answer; `error` then says why."""

    event: str
    type: str
    url: str
    status: int | None
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(order=True)
class _Waiting:
    at: float
    count: int
    event: str
    url: str
    tries: int = 0
    until: float = 0.0


def post(url: str, body: bytes, headers: dict[str, str]) -> int:
    """The ordinary transport."""
    answer = requests.post(url, data=body, headers=headers, timeout=TIMEOUT, allow_redirects=False)
    return answer.status_code


def thin_event(event: Obj) -> Obj:
    """The notification without a snapshot that an event destination may send instead.

    https://docs.stripe.com/event-destinations#thin-events
    """
    about = event["data"]["object"]
    kind = about["object"]
    created = datetime.fromtimestamp(event["created"], UTC)
    return {
        "id": f"evt_test_{event['id'].removeprefix('evt_')}",
        "object": "v2.core.event",
        "context": None,
        "created": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "livemode": event["livemode"],
        "related_object": {
            "id": about["id"],
            "type": kind,
            "url": f"/v1/{kind.replace('.', '/')}s/{about['id']}",
        },
        "type": f"v1.{event['type']}",
    }


class Webhooks:
    """`mode`: "deliver" sends at once from a thread; "hold" keeps events in `pending`; "drop" loses them.

    `delay`: seconds before each sending · `retry`: failed ones go again with back-off for a day ·
    `transport(url, body, headers) → status`: how a delivery is made (a test client, say).
    """

    def __init__(self, world: World, targets: Iterable[tuple[str, str]] = ()) -> None:
        self.world = world
        self.targets = dict(targets)
        self.mode = "deliver"
        self.delay = 0.0
        self.retry = False
        self.transport: Transport = post
        self.pending: list[Obj] = []
        self.deliveries: list[Delivery] = []
        self._queue: list[_Waiting] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._sending: list[_Waiting] = []
        self._stopped = True
        world.publish = self._publish
        world.saved_extra = self._saved
        for event, url in world.loaded_extra.get("outbox", []):
            self._enqueue(event, url)

    # -- signing

    @staticmethod
    def payload(event: Obj) -> bytes:
        """The body of a delivery, exactly as signed."""
        return json.dumps(public(event), indent=2).encode()

    @staticmethod
    def sign(payload: bytes, secret: str | Sequence[str], timestamp: int | None = None) -> str:
        """The `Stripe-Signature` header; several secrets give several `v1` signatures.

        The timestamp is real time, not the sandbox's clock: receivers check its age.
        """
        at = int(time.time()) if timestamp is None else timestamp
        signed = b"%d.%s" % (at, payload)
        secrets = [secret] if isinstance(secret, str) else secret
        signatures = [hmac.new(s.encode(), signed, hashlib.sha256).hexdigest() for s in secrets]
        return ",".join([f"t={at}", *(f"v1={signature}" for signature in signatures)])

    def secrets_for(self, url: str) -> list[str]:
        """All secrets of a URL: one delivery there carries a signature of each."""
        endpoints = self.world.every("webhook_endpoint", url=url)
        own = [self.targets[url]] if url in self.targets else []
        return [*own, *(notes(endpoint)["secret"] for endpoint in endpoints)]

    def urls_for(self, event: Obj) -> list[str]:
        """Where an event goes, each URL once."""
        urls = dict.fromkeys(self.targets)
        for endpoint in self.world.every("webhook_endpoint", status="enabled"):
            if {"*", event["type"]} & set(endpoint["enabled_events"]):
                urls[endpoint["url"]] = None
        return list(urls)

    # -- by hand

    def deliver(
        self, event: Obj, url: str | None = None, secret: str | None = None, times: int = 1
    ) -> list[Delivery]:
        """Sends now and waits for the answers; takes the event from `pending`."""
        self.drop(event)
        urls = [url] if url else self.urls_for(event)
        return [self._send(event, to, secret) for to in urls for _ in range(times)]

    def deliver_all(self, shuffle: random.Random | None = None) -> list[Delivery]:
        """Sends all of `pending`, in order of time or shuffled."""
        events = list(self.pending)
        if shuffle:
            shuffle.shuffle(events)
        return [delivery for event in events for delivery in self.deliver(event)]

    def deliver_parallel(self, events: Sequence[Obj], urls: Sequence[str]) -> list[Delivery]:
        """Sends every event to every URL, all at the same moment."""
        for event in events:
            self.drop(event)
        jobs = list(itertools.product(events, urls))
        start = threading.Barrier(len(jobs) or 1)

        def send(job: tuple[Obj, str]) -> Delivery:
            start.wait(TIMEOUT)
            return self._send(*job)

        with ThreadPoolExecutor(max_workers=len(jobs) or 1) as pool:
            return list(pool.map(send, jobs))

    def deliver_thin(
        self, event: Obj, url: str | None = None, secret: str | None = None, times: int = 1
    ) -> list[Delivery]:
        """Sends the event as a thin one, now, to `url` or wherever it would go."""
        thin = thin_event(event)
        urls = [url] if url else self.urls_for(event)
        return [self._send(thin, to, secret) for to in urls for _ in range(times)]

    def drop(self, event: Obj) -> None:
        """Forgets a held event, as if it were lost on the way."""
        with self._changed:
            self.pending = [held for held in self.pending if held["id"] != event["id"]]

    def wait(self, timeout: float = 5.0) -> bool:
        """Until everything queued is delivered or given up; false when time runs out."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._queue or self._sending), timeout)

    def clear(self) -> None:
        """Forgets everything held, queued and recorded; targets stay."""
        with self._changed:
            self.pending, self.deliveries, self._queue = [], [], []
            self._changed.notify_all()

    # -- by itself

    def start(self) -> None:
        self._stopped = False
        threading.Thread(target=self._work, name="stripe-sandbox-webhooks", daemon=True).start()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _publish(self, events: list[Obj]) -> None:
        for event in events:
            urls = self.urls_for(event)
            event["pending_webhooks"] = len(urls)
            if self.mode == "drop":
                continue
            if self.mode == "hold":
                with self._changed:
                    self.pending.append(event)
                continue
            for url in urls:
                self._enqueue(event["id"], url)

    def _enqueue(self, event: str, url: str) -> None:
        at = time.monotonic() + self.delay
        waiting = _Waiting(at, next(self._count), event, url, until=at + RETRY_FOR)
        with self._changed:
            heapq.heappush(self._queue, waiting)
            self._changed.notify_all()

    def _saved(self) -> Obj:
        with self._changed:
            left = sorted([*self._sending, *self._queue])
            return {"outbox": [[waiting.event, waiting.url] for waiting in left]}

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._stopped:
                    return
                wait = self._queue[0].at - time.monotonic() if self._queue else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                job = heapq.heappop(self._queue)
                self._sending.append(job)
            try:
                self._deliver_queued(job)
            finally:
                with self._changed:
                    self._sending.remove(job)
                    self._changed.notify_all()

    def _deliver_queued(self, job: _Waiting) -> None:
        event = self.world.find("event", job.event)
        if event is None:
            return
        delivery = self._send(event, job.url)
        if delivery.ok or not self.retry or time.monotonic() > job.until:
            return
        wait = RETRY_WAITS[min(job.tries, len(RETRY_WAITS) - 1)]
        again = _Waiting(time.monotonic() + wait, job.count, job.event, job.url, job.tries + 1, job.until)
        with self._changed:
            heapq.heappush(self._queue, again)

    def _send(self, event: Obj, url: str, secret: str | None = None) -> Delivery:
        with self.world.lock:
            body = self.payload(event)
            secrets = [secret] if secret else self.secrets_for(url) or list(self.targets.values())
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": self.sign(body, secrets),
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }
        status, error = None, None
        try:
            status = self.transport(url, body, headers)
        except requests.RequestException as failure:
            error = type(failure).__name__
        delivery = Delivery(event["id"], event["type"], url, status, error)
        self.deliveries.append(delivery)
        if delivery.ok and event.get("pending_webhooks"):
            with self.world.transaction():
                event["pending_webhooks"] = max(0, event["pending_webhooks"] - 1)
                self.world.touch(event)
        return delivery
