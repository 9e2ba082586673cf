"""`/v1` over HTTP: credentials, faults, idempotency keys, parameter checks, then the route."""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

import stripe
from flask import Blueprint, Response, request

from . import invoice_routes  # noqa: F401 - registers its routes
from .errors import Refusal
from .expand import expanded
from .faults import DROP, Faults, refusal
from .params import Params, check, check_supported, decode_form, params_class
from .routes import ROUTES, Route
from .world import DAY, Obj, World, new_id

KEY_LENGTH = 255
# First part of a path → the resource in the name of a restricted key's right.
RIGHTS = {
    "account": "accounts_kyc_basic",
    "billing_portal": "customer_portal",
    "checkout": "checkout_session",
    "invoiceitems": "invoice",
    "prices": "plan",
    "webhook_endpoints": "webhook",
}


@dataclass
class Recorded:
    """A request under `/v1`, as it came. `status` is None when its connection was cut."""

    method: str
    path: str
    params: Params
    idempotency_key: str | None
    status: int | None = None


@dataclass
class _Answer:
    status: int
    body: str
    replayed: bool = False


class Api:
    """The blueprint of `/v1` with what it needs; `requests` records everything asked.

    `api_key` None accepts any key: a test key sees `world`, a live key the live mode of its account.
    Other keys are in `world.keys`; another account, or mode, has a world of its own in memory.
    """

    def __init__(self, world: World, faults: Faults, api_key: str | None) -> None:
        self.world = world
        self.faults = faults
        self.api_key = api_key
        self.requests: list[Recorded] = []
        self.others: dict[tuple[str, bool], World] = {}
        self._running: set[tuple[World, str]] = set()
        self._running_lock = threading.Lock()

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("v1", __name__)
        for route in ROUTES:
            name = f"{route.method} {route.path}".replace(".", "_")
            view = partial(self._serve, route)
            blueprint.add_url_rule(route.path, name, view, methods=[route.method])
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        blueprint.add_url_rule("/v1/<path:path>", "unknown", partial(self._serve, None), methods=methods)
        return blueprint

    def _serve(self, route: Route | None, **path: str) -> Response:
        """One request from its arrival to its answer, or to the cut of its connection."""
        pairs = [*request.args.items(multi=True), *request.form.items(multi=True)]
        key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
        record = Recorded(request.method, request.path, {}, key)
        self.requests.append(record)
        fault, after = self.faults.take(request.method, request.path)
        request_id = new_id("req", 14)
        try:
            record.params = decode_form(pairs)
            if fault == DROP and not after:
                return _cut()
            world = self._authorize()
            if isinstance(fault, int) and not after:
                raise refusal(fault)
            if route is None:
                raise _unrecognized()
            answer = self._once(world, route, record.params, path, key, request_id)
            if fault == DROP:
                return _cut()
            if isinstance(fault, int):
                raise refusal(fault)
        except Refusal as refused:
            answer = _Answer(refused.status, json.dumps(refused.body))
        record.status = answer.status
        return _response(answer, key, request_id)

    def _authorize(self) -> World:
        """The account and mode that the key sees. https://docs.stripe.com/keys"""
        auth = request.authorization
        given = None
        if auth and auth.type == "bearer":
            given = auth.token
        elif auth and auth.type == "basic":
            given = auth.username
        if not given:
            raise Refusal(
                401,
                "You did not provide an API key. You need to provide your API key in the "
                "Authorization header, using Bearer auth (e.g. 'Authorization: Bearer "
                "YOUR_SECRET_KEY').",
            )
        masked = f"{given[:8]}****{given[-4:]}"
        key = self.world.keys.get(given)
        if key is None:
            known = given == self.api_key if self.api_key else given.startswith(("sk_", "rk_"))
            if not known:
                raise Refusal(401, f"Invalid API Key provided: {masked}")
            return self.world_of(self.world.account, "_live_" in given)
        if key["revoked"]:
            raise Refusal(401, f"Expired API Key provided: {masked}", code="api_key_expired")
        first = request.path.split("/")[2]
        right = RIGHTS.get(first, first.removesuffix("s")) + (
            "_read" if request.method == "GET" else "_write"
        )
        if right in key["without"]:
            raise Refusal(
                403,
                f"The provided key '{masked}' does not have the required permissions for this endpoint on "
                f"account '{key['account']}'. Having the 'rak_{right}' permission would allow this request "
                "to continue.",
            )
        return self.world_of(key["account"], key["livemode"])

    def world_of(self, account: str, livemode: bool) -> World:
        if (account, livemode) == (self.world.account, self.world.livemode):
            return self.world
        if (account, livemode) not in self.others:
            other = World(account=account, livemode=livemode)
            if account == self.world.account:
                other.other_mode, self.world.other_mode = self.world, other
            self.others[account, livemode] = other
        return self.others[account, livemode]

    def _once(
        self,
        world: World,
        route: Route,
        params: Params,
        path: dict[str, str],
        key: str | None,
        request_id: str,
    ) -> _Answer:
        """The answer; with an idempotency key that has been seen, the first one again."""
        if key is None:
            self.faults.wait(request.path)
            with world.transaction():
                return self._run(world, route, params, path, None, request_id)
        if len(key) > KEY_LENGTH:
            raise Refusal(400, f"Idempotency keys may be at most {KEY_LENGTH} characters long")
        asked = json.dumps([request.method, request.path, params], sort_keys=True)
        self._claim(world, key)
        try:
            with world.transaction():
                kept = self._kept(world, key, asked)
            if kept:
                return kept
            self.faults.wait(request.path)
            with world.transaction():
                return self._run(world, route, params, path, (key, asked), request_id)
        finally:
            with self._running_lock:
                self._running.discard((world, key))

    def _claim(self, world: World, key: str) -> None:
        with self._running_lock:
            if (world, key) in self._running:
                raise Refusal(
                    409,
                    "There is currently another in-progress request using this Idempotent Key "
                    f"(that probably means you submitted twice): {key}. Please try again later.",
                    type="idempotency_error",
                    code="idempotency_key_in_use",
                    saved=False,
                )
            self._running.add((world, key))

    def _kept(self, world: World, key: str, asked: str) -> _Answer | None:
        kept = world.answers.get(key)
        if kept is None or kept["created"] + DAY <= world.now():
            return None
        if kept["asked"] != asked:
            raise Refusal(
                400,
                "Keys for idempotent requests can only be used with the same parameters they were "
                f"first used with. Try using a key other than '{key}' if you meant to execute a "
                "different request.",
                type="idempotency_error",
                saved=False,
            )
        return _Answer(kept["status"], kept["body"], replayed=True)

    def _run(
        self,
        world: World,
        route: Route,
        params: Params,
        path: dict[str, str],
        key: tuple[str, str] | None,
        request_id: str,
    ) -> _Answer:
        """Checks and runs the route, keeping the answer with its effects under the key."""
        world.request = {"id": request_id, "idempotency_key": key and key[0]}
        try:
            checked = check(params, params_class(route.params), route.clearable)
            check_supported(checked, route.supports)
            expand = checked.pop("expand", [])
            shown = expanded(world, route.handler(world, checked, **path), expand)
            answer = _Answer(200, json.dumps(shown))
        except Refusal as refused:
            if not refused.saved:
                raise
            answer = _Answer(refused.status, json.dumps(refused.body))
        finally:
            world.request = {"id": None, "idempotency_key": None}
        if key:
            world.answers[key[0]] = {
                "asked": key[1],
                "status": answer.status,
                "body": answer.body,
                "created": world.now(),
            }
            world.mark_dirty()
        return answer


def _unrecognized() -> Refusal:
    return Refusal(
        404,
        f"Unrecognized request URL ({request.method}: {request.path}). This sandbox has only the "
        "calls of a subscription billing service.",
    )


def _cut() -> Response:
    """Closes the connection without an answer."""
    connection: Any = request.environ.get("werkzeug.socket")
    if connection is None:
        raise ConnectionAbortedError("dropped by the sandbox")
    connection.shutdown(socket.SHUT_RDWR)
    return Response(status=500)


def _response(answer: _Answer, key: str | None, request_id: str) -> Response:
    response = Response(answer.body, answer.status, content_type="application/json")
    headers: Obj = {
        "Request-Id": request_id,
        "Stripe-Version": request.headers.get("Stripe-Version", stripe.api_version),
        "Cache-Control": "no-cache, no-store",
    }
    if key:
        headers["Idempotency-Key"] = key
    if answer.replayed:
        headers["Idempotent-Replayed"] = "true"
    if answer.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="Stripe"'
    response.headers.extend(headers)
    return response
