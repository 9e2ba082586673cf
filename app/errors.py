"""Domain errors, raised anywhere, and the one handler that turns them into JSON."""

import logging
import traceback
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from flask import Flask, Response, g
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from app.encoding import json_answer

FRAMES: Final = 8
log = logging.getLogger(__name__)


class DomainError(Exception):
    """A refusal with one plain message; the console prints it and exits 1."""

    code = 400
    headers: dict[str, str] = {}
    stripe_code: str | None = None
    """Of a refusal of Stripe's: its error code, https://docs.stripe.com/error-codes."""

    def __init__(self, message: str, *, errors: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.errors = errors


class BadRequest(DomainError):
    """The body is not JSON, or missing."""


class Unauthorized(DomainError):
    """No credential that counts (RFC 6750 section 3)."""

    code = 401
    headers = {"WWW-Authenticate": "Bearer"}


class PaymentRefused(DomainError):
    """Stripe refused the payment, or there is no payment method; nothing changed.

    `url`: where the customer can pay or authenticate, if Stripe gives an address.
    """

    code = 402

    def __init__(self, message: str, *, url: str | None = None) -> None:
        super().__init__(message, errors={"payment": {"url": url}} if url else None)


class Forbidden(DomainError):
    """A valid credential, but not for this."""

    code = 403


class NotFound(DomainError):
    code = 404


class Conflict(DomainError):
    """The present state does not allow it; the message says what to do instead."""

    code = 409


class Refused(Conflict):
    """Stripe does not do this with the objects as they are; `missing`: it does not find the object named."""

    missing = False


class TooLarge(DomainError):
    code = 413


class UnsupportedMediaType(DomainError):
    code = 415
    headers = {"Accept-Encoding": "gzip, deflate"}


class Invalid(DomainError):
    """`errors` names the offending fields, like marshmallow's: {location: {field: [message]}}."""

    code = 422


class TooManyRequests(DomainError):
    code = 429

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(retry_after)}


class StripeFailed(DomainError):
    """Stripe failed or did not answer; nothing was stored, the same call may be made again."""

    code = 502


class NoAnswer(StripeFailed):
    """Silence: Stripe may have acted or not; repeated with the same idempotency key, it acts once."""


class Unavailable(DomainError):
    """Not now: the database is away, Stripe is not configured, or too many wait for it."""

    code = 503
    headers = {"Retry-After": "5"}


def invalid(location: str, messages: Any) -> Invalid:
    """A 422 for what marshmallow found in the `json` or `query`."""
    return Invalid("Some fields are not as they should be; see errors.", errors={location: messages})


def invalid_field(field: str, message: str, *, location: str = "json") -> Invalid:
    """A 422 for one field, of the JSON body unless another `location` is given."""
    return Invalid(f"{field}: {message}", errors={location: {field: [message]}})


def register_error_handlers(app: Flask) -> None:
    """Give every failure of any route the shape that the contract promises."""
    for kind in (DomainError, HTTPException):
        app.register_error_handler(kind, refusal)

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        # Where each step was, and no more: messages and whole traces may contain SQL, tokens or addresses.
        frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
        at = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        about = {"request_id": g.get("request_id"), "error": type(error).__name__, "at": at}
        log.error("unhandled error", extra=about)
        return error_response(500, "An error on our side; it is logged under this requestId.")


def refusal(error: DomainError | HTTPException) -> Response:
    """The answer to a refusal of ours, or of Werkzeug's (404, 405, 413 …)."""
    if isinstance(error, DomainError):
        return error_response(error.code, error.message, error.errors, error.headers)
    methods = error.valid_methods if isinstance(error, MethodNotAllowed) else None
    headers = {"Allow": ", ".join(methods)} if methods else {}
    return error_response(error.code or 500, error.description or "", headers=headers)


def error_response(
    code: int, message: str, errors: Any = None, headers: dict[str, str] | None = None
) -> Response:
    """flask-smorest's error shape plus `requestId`."""
    body = {"code": code, "status": HTTPStatus(code).phrase, "message": message}
    if errors is not None:
        body["errors"] = errors
    body["requestId"] = g.get("request_id")
    response = json_answer(body, code)
    response.headers.update(headers or {})
    return response
