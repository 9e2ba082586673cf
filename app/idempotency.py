"""`Idempotency-Key`: the same key and body again gives the first answer again and does nothing."""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import wraps
from typing import Any, Final

from flask import Response, g, make_response, request
from werkzeug.exceptions import HTTPException

from app.db import Row
from app.errors import BadRequest, Conflict, DomainError, Invalid, refusal
from app.http import parse_json, read_body
from app.parts import now, parts
from app.queries import idempotency

STALE_AFTER: Final = timedelta(minutes=2)
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_PASSING: Final = frozenset({401, 413, 415, 429})
"""Of who asks, how, and how often; not of what was asked."""

View = Callable[..., Any]


def idempotent(view: View) -> View:
    """For a view that works in one transaction: effect and answer commit together."""

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        slot = _slot()
        if slot is None:
            return view(*args, **kwargs)
        body_hash = _body_hash()
        try:
            with parts().db.transaction() as cur:
                if not idempotency.try_lock(cur, " ".join(slot.values())):
                    raise _Running
                kept = idempotency.select_answer(cur, **slot)
                if kept is not None:
                    return _again(kept, body_hash)
                response = make_response(view(*args, **kwargs))
                _keep(slot, body_hash, response)
                return response
        except (DomainError, HTTPException) as error:
            return _refused(slot, body_hash, error)

    wrapper.takes_idempotency_key = True  # type: ignore[attr-defined]
    return wrapper


def idempotent_beyond(view: View) -> View:
    """For a view that calls Stripe, which no transaction may span: noted first, answered after.

    A note left by a killed process holds for two minutes; Stripe's own keys make the retry safe.
    """

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        slot = _slot()
        if slot is None:
            return view(*args, **kwargs)
        body_hash = _body_hash()
        with parts().db.transaction() as cur:
            if not idempotency.try_lock(cur, " ".join(slot.values())):
                raise _Running
            kept = idempotency.select_answer(cur, **slot)
            if kept is not None and (kept["status_code"] or kept["created_at"] > now() - STALE_AFTER):
                return _again(kept, body_hash)
            idempotency.upsert_answer(cur, **slot, body_hash=body_hash, status_code=None, response=None)
        try:
            response = make_response(view(*args, **kwargs))
            _keep(slot, body_hash, response)
            return response
        except (DomainError, HTTPException) as error:
            return _refused(slot, body_hash, error)
        finally:
            with parts().db.transaction() as cur:
                idempotency.delete_note(cur, **slot)

    wrapper.takes_idempotency_key = True  # type: ignore[attr-defined]
    return wrapper


class _OtherBody(Invalid):
    def __init__(self) -> None:
        message = "This key was used with another body."
        super().__init__("Idempotency-Key: used before", errors={"headers": {"Idempotency-Key": [message]}})


class _Running(Conflict):
    def __init__(self) -> None:
        super().__init__("The first request with this Idempotency-Key is still running. Try again shortly.")


def _slot() -> dict[str, str] | None:
    """Where this caller's answer is kept, if it sent a key."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        message = "Expected 1 to 255 printable ASCII characters without spaces."
        raise Invalid("Idempotency-Key is malformed.", errors={"headers": {"Idempotency-Key": [message]}})
    return {"caller": g.actor, "route": request.path, "key": key}


def _body_hash() -> str:
    """Of what the body means, so that spacing and order do not matter."""
    text = read_body()
    with suppress(BadRequest):
        text = json.dumps(parse_json(text), sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()


def _again(kept: Row, body_hash: str) -> Response:
    if kept["body_hash"] != body_hash:
        raise _OtherBody
    if kept["status_code"] is None:
        raise _Running
    return Response(kept["response"], kept["status_code"], mimetype="application/json")


def _keep(slot: dict[str, str], body_hash: str, response: Response) -> None:
    with parts().db.transaction() as cur:
        idempotency.upsert_answer(
            cur, **slot, body_hash=body_hash,
            status_code=response.status_code, response=response.get_data(as_text=True),
        )  # fmt: skip
        idempotency.delete_old_answers(cur)


def _refused(slot: dict[str, str], body_hash: str, error: DomainError | HTTPException) -> Response:
    code = error.code or 500
    if code >= 500 or code in _PASSING or isinstance(error, _Running | _OtherBody):
        raise error
    response = refusal(error)
    _keep(slot, body_hash, response)
    return response
