"""The HTTP edge that all blueprints share: strict JSON bodies, and errors that the document tells of."""

from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from http import HTTPStatus
from typing import Any, Final, Literal

import flask_smorest
from flask import Response, request
from gunicorn.http.errors import ParseException
from marshmallow import Schema, ValidationError

from app.encoding import json_answer, read_json
from app.errors import BadRequest, Invalid, TooLarge, UnsupportedMediaType, invalid
from app.schemas.base import ErrorSchema, InputSchema

BODY_LIMIT: Final = 64 * 1024
LONG_BODY_LIMIT: Final = 1024 * 1024
LONG_BODIES: Final = ("/api/usage/reports", "/webhooks/stripe")
"""Where batches come in; and Stripe's events, of which one that was refused would never get through."""
IDEMPOTENCY_KEY: Final = {
    "in": "header",
    "name": "Idempotency-Key",
    "description": "The same key and body again gives the first answer again and does nothing; kept 24 h.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
_RETRY_AFTER: Final = {
    "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}, "required": True}
}
REFUSAL_HEADERS: Final = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}


def parse_json(body: bytes) -> Any:
    """A body, strictly read. Raises BadRequest."""
    try:
        return read_json(body)
    except ValueError:
        raise BadRequest("The body is not valid JSON.") from None


def read_body() -> bytes:
    """The whole body of this request. Raises TooLarge, BadRequest.

    In one go: Werkzeug's stream takes 64 KiB of memory for it, and asks a second time for the end.
    """
    if "billing.body" not in request.environ:
        request.environ["billing.body"] = _read()
    return request.environ["billing.body"]  # type: ignore[no-any-return]


def _read() -> bytes:
    length = request.content_length
    limit = LONG_BODY_LIMIT if request.path in LONG_BODIES else BODY_LIMIT
    if length is None and "wsgi.input_terminated" not in request.environ:
        return b""  # neither a length nor chunks
    if length is not None and length > limit:
        raise TooLarge("The body is too large.")
    try:
        body: bytes = request.environ["wsgi.input"].read(limit + 1 if length is None else length)
    except (ParseException, OSError, ValueError):  # chunks that are none
        raise BadRequest("The body cannot be read.") from None
    if len(body) > limit:
        raise TooLarge("The body is too large.")
    if len(body) < (length or 0):
        raise BadRequest("The body ended early.")
    return body


def json_body(*, optional: bool) -> Any:
    """The JSON body of this request, `{}` for an optional one that is not there, or `null`.

    Raises BadRequest, UnsupportedMediaType.
    """
    body = read_body()
    if body and not request.is_json:
        raise UnsupportedMediaType("Send the body as application/json.")
    given = parse_json(body) if body else None
    if given is None and not optional:
        raise BadRequest("A JSON body is needed.")
    return {} if given is None else given


def query() -> dict[str, str]:
    """The query of this request. Raises Invalid."""
    for name, values in request.args.lists():
        if len(values) > 1:
            raise Invalid(
                f"{name}: given more than once",
                errors={"query": {name: ["Given more than once."]}},
            )
    return request.args.to_dict()


class Blueprint(flask_smorest.Blueprint):
    """Documents what flask-smorest does, and the refusals that a route's guard and body bring with them.

    Of its decorators only the documents are taken: what they do at each request takes several steps more
    than our views need.
    """

    def arguments(
        self, schema: type[InputSchema], *, location: Literal["json", "query"] = "json", **options: Any
    ) -> Callable[[Any], Any]:
        """The view's first argument: the body or the query, as the schema loads it. Raises Invalid."""
        made = schema()
        options["required"] = not made.body_optional
        document = super().arguments(made, location=location, **options)

        def decorator(view: Any) -> Any:
            @wraps(view)
            def called(*args: Any, **kwargs: Any) -> Any:
                given = query() if location == "query" else json_body(optional=made.body_optional)
                try:
                    loaded = made.load(given)
                except ValidationError as error:
                    raise invalid(location, error.messages) from None
                return view(loaded, *args, **kwargs)

            called._apidoc = document(view)._apidoc  # type: ignore[attr-defined]
            return called

        return decorator

    def response(self, status_code: int, schema: type[Schema], **options: Any) -> Callable[[Any], Any]:
        """What the view returns, written by the schema, unless it is a Response already."""
        made = schema()
        document = super().response(status_code, made, **options)

        def decorator(view: Any) -> Any:
            @wraps(view)
            def answered(*args: Any, **kwargs: Any) -> Response:
                result = view(*args, **kwargs)
                return result if isinstance(result, Response) else json_answer(made.dump(result), status_code)

            answered._apidoc = document(view)._apidoc  # type: ignore[attr-defined]
            return answered

        return decorator

    def route(self, rule: str, *, errors: tuple[int, ...] = (), **options: Any) -> Callable[[Any], Any]:
        """`errors`: the statuses a view may answer besides the usual ones."""
        register = super().route(rule, **options)

        def decorator(view: Any) -> Any:
            codes = {429, 503, *errors}
            besides: dict[str, Any] = {}
            if view.guard in ("admin", "own"):
                codes |= {401, 403}
                besides["security"] = [{"bearer": []}]
            if "<" in rule:
                codes.add(404)
            places = {
                p["in"] for p in getattr(view, "_apidoc", {}).get("arguments", {}).get("parameters", ())
            }
            if places:
                codes |= {422}
            if "json" in places:
                codes |= {400, 413, 415}
            if getattr(view, "takes_idempotency_key", False):
                besides["parameters"] = [IDEMPOTENCY_KEY]
            return register(_documented(view, sorted(codes), besides))

        return decorator


def _documented(view: Any, codes: list[int], besides: dict[str, Any]) -> Any:
    """Document refusals as `alt_response` does, and the rest as `doc`; both would wrap the view once more."""
    view._apidoc = deepcopy(getattr(view, "_apidoc", {}))
    view._apidoc.setdefault("manual_doc", {}).update(besides)
    responses = view._apidoc.setdefault("response", {}).setdefault("responses", {})
    for code in codes:
        refusal = {"schema": ErrorSchema(), "description": HTTPStatus(code).phrase, "content_type": None}
        if code in REFUSAL_HEADERS:
            refusal["headers"] = REFUSAL_HEADERS[code]
        responses.setdefault(code, []).append(refusal)
    return view
