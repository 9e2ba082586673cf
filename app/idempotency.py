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

from app import auth
from app.api import read_body
from app.context import now
from app.db import Cursor
from app.encoding import read_json
from app.errors import Conflict, DomainError, Invalid, refusal
from app.extensions import db
from app.queries import idempotency

CLAIM_ENDS_AFTER: Final = timedelta(minutes=1)
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_NOT_KEPT: Final = frozenset({401, 413, 415, 429})
"""Refusals of the caller or the form of the request, not of its content."""
_RUNNING: Final = "The first request with this Idempotency-Key is still running. Try again shortly."

View = Callable[..., Any]
Slot = dict[str, str]


def idempotent(view: View | None = None, *, route: str | None = None, in_transaction: bool = False) -> Any:
    """Decorate a view so that it takes the header.

    `in_transaction`: the view gets a cursor, `cur`, and effect and answer commit together. Else (Stripe is
    called, which no transaction may span) the key is claimed first and answered after; the claim of a killed
    process ends after a minute. `route`: keys count together with those of this path.
    """
    if view is None:
        return lambda view: idempotent(view, route=route, in_transaction=in_transaction)
    run = _run_in_transaction if in_transaction else _run_with_claim

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return run(None, "", view, args, kwargs)
        if not _KEY.fullmatch(key):
            raise _invalid("Expected 1 to 255 printable ASCII characters without spaces.")
        auth.require_license_on_record()  # not left to the view, which does not run when an answer is kept
        slot = {"caller": g.actor, "route": route or request.path, "key": key}
        body_hash = _body_hash()
        try:
            return run(slot, body_hash, view, args, kwargs)
        except (DomainError, HTTPException) as error:
            code = error.code or 500
            if code >= 500 or code in _NOT_KEPT or getattr(error, "not_kept", False):
                raise
            response = refusal(error)
            with db.transaction() as cur:
                _keep(cur, slot, body_hash, response)
            return response

    wrapper.takes_idempotency_key = True  # type: ignore[attr-defined]
    return wrapper


def _run_in_transaction(slot: Slot | None, body_hash: str, view: View, args: Any, kwargs: Any) -> Any:
    with db.transaction() as cur:
        if slot is None:
            return view(*args, cur=cur, **kwargs)
        kept = _claim(cur, slot, body_hash)
        if kept is None:
            kept = make_response(view(*args, cur=cur, **kwargs))
            _keep(cur, slot, body_hash, kept)
        return kept


def _run_with_claim(slot: Slot | None, body_hash: str, view: View, args: Any, kwargs: Any) -> Any:
    if slot is None:
        return view(*args, **kwargs)
    with db.transaction() as cur:
        kept = _claim(cur, slot, body_hash)
        if kept is not None:
            return kept
        idempotency.upsert_answer(cur, **slot, body_hash=body_hash, status_code=None, response=None)
    try:
        response = make_response(view(*args, **kwargs))
        with db.transaction() as cur:
            _keep(cur, slot, body_hash, response)
        return response
    finally:
        with suppress(DomainError), db.transaction() as cur:
            idempotency.delete_claim(cur, **slot)


def _claim(cur: Cursor, slot: Slot, body_hash: str) -> Response | None:
    """The answer that was kept, or None: then the key is this request's, until the transaction ends.

    Raises Conflict while another request has it, Invalid when it was used with another body.
    """
    if not idempotency.try_lock(cur, " ".join(slot.values())):
        raise _not_kept(Conflict(_RUNNING))
    kept = idempotency.select_answer(cur, **slot)
    if kept is None:
        return None
    if kept["body_hash"] != body_hash:
        raise _invalid("This key was used with another body.")
    if kept["status_code"] is not None:
        return Response(kept["response"], kept["status_code"], mimetype="application/json")
    if kept["created_at"] > now() - CLAIM_ENDS_AFTER:
        raise _not_kept(Conflict(_RUNNING))
    return None


def _keep(cur: Cursor, slot: Slot, body_hash: str, response: Response) -> None:
    text = response.get_data(as_text=True)
    idempotency.upsert_answer(
        cur, **slot, body_hash=body_hash, status_code=response.status_code, response=text
    )
    idempotency.delete_old_answers(cur)


def _body_hash() -> str:
    """Of what the body means, so that spacing and order of its members do not matter."""
    body = read_body()
    with suppress(ValueError):
        body = json.dumps(read_json(body), sort_keys=True).encode()
    return hashlib.sha256(body).hexdigest()


def _invalid(message: str) -> Invalid:
    errors = {"headers": {"Idempotency-Key": [message]}}
    error: Invalid = _not_kept(Invalid(f"Idempotency-Key: {message}", errors=errors))
    return error


def _not_kept(error: Any) -> Any:
    error.not_kept = True
    return error
