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
from app.errors import Conflict, DomainError, invalid_field, refusal
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

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        key = request.headers.get("Idempotency-Key")
        if key is None:
            if not in_transaction:
                return view(*args, **kwargs)
            with db.transaction() as cur:
                return view(*args, cur=cur, **kwargs)
        auth.require_license_on_record()  # not left to the view, which does not run when an answer is kept
        if not _KEY.fullmatch(key):
            raise _invalid("Expected 1 to 255 printable ASCII characters without spaces.")
        slot = {"caller": g.actor, "route": route or request.path, "key": key}
        body_hash = _body_hash()
        try:
            if not in_transaction:
                return _run_with_claim(slot, body_hash, lambda: view(*args, **kwargs))
            with db.transaction() as cur:
                kept = _take(cur, slot, body_hash)
                return kept or _keep(cur, slot, body_hash, view(*args, cur=cur, **kwargs))
        except (DomainError, HTTPException) as error:
            code = error.code or 500
            if code >= 500 or code in _NOT_KEPT or getattr(error, "not_kept", False):
                raise
            with db.transaction() as cur:
                return _keep(cur, slot, body_hash, refusal(error))

    wrapper.takes_idempotency_key = True  # type: ignore[attr-defined]
    return wrapper


def _run_with_claim(slot: Slot, body_hash: str, run: Callable[[], Any]) -> Response:
    with db.transaction() as cur:
        kept = _take(cur, slot, body_hash)
        if kept:
            return kept
        idempotency.upsert_answer(cur, **slot, body_hash=body_hash, status_code=None, response=None)
    try:
        answer = run()
        with db.transaction() as cur:
            return _keep(cur, slot, body_hash, answer)
    except BaseException:
        with suppress(DomainError), db.transaction() as cur:
            idempotency.delete_claim(cur, **slot)
        raise


def _take(cur: Cursor, slot: Slot, body_hash: str) -> Response | None:
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


def _keep(cur: Cursor, slot: Slot, body_hash: str, answer: Any) -> Response:
    """Put the first answer on record, unless there is one, and return it."""
    response = make_response(answer)
    text = response.get_data(as_text=True)
    idempotency.upsert_answer(
        cur, **slot, body_hash=body_hash, status_code=response.status_code, response=text
    )
    idempotency.delete_old_answers(cur)
    return response


def _body_hash() -> str:
    """Of what the body means, so that spacing and order of its members do not matter."""
    body = read_body()
    with suppress(ValueError):
        body = json.dumps(read_json(body), sort_keys=True).encode()
    return hashlib.sha256(body).hexdigest()


def _invalid(message: str) -> Any:
    return _not_kept(invalid_field("Idempotency-Key", message, location="headers"))


def _not_kept(error: Any) -> Any:
    error.not_kept = True
    return error
