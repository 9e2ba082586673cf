"""The HTTP edge of all blueprints: flask-smorest with strict JSON, body limits, documented refusals."""

import zlib
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NoReturn

import flask_smorest
from flask import Request, g, request
from gunicorn.http.errors import ParseException
from marshmallow import Schema, ValidationError
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import HTTPException

from app import auth, errors
from app.encoding import camel_case, read_json
from app.schemas.base import ErrorSchema

BODY_LIMIT: Final = 64 * 1024
LONG_BODY_LIMIT: Final = 1024 * 1024
LONG_BODIES: Final = ("/api/usage/reports", "/webhooks/stripe")
"""Batches; and Stripe's events, which could never be delivered if they were refused for their size."""
_ZLIB_WINDOW: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}
IDEMPOTENCY_KEY: Final = {
    "in": "header",
    "name": "Idempotency-Key",
    "description": "The same key and body again gives the first answer again and does nothing; kept 24 h.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
_RETRY_AFTER: Final = {
    "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}, "required": True}
}
_REFUSAL_HEADERS: Final = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}


def read_body() -> bytes:
    """The whole body of this request, inflated. Raises TooLarge, BadRequest, UnsupportedMediaType."""
    if "body" not in g:
        limit = LONG_BODY_LIMIT if request.path in LONG_BODIES else BODY_LIMIT
        request.max_content_length = limit + 1  # werkzeug cuts a chunked body off there, and says nothing
        try:
            body = request.get_data(cache=False)
        except HTTPException:
            raise  # 413, or 400 for a body that ended early
        except (ParseException, OSError, ValueError):  # ill-formed chunks
            raise errors.BadRequest("The body cannot be read.") from None
        if len(body) > limit:
            raise errors.TooLarge("The body is too large.")
        g.body = _inflated(body, limit)
    return bytes(g.body)


def _inflated(body: bytes, limit: int) -> bytes:
    """Undo Content-Encoding (RFC 9110 section 8.4.1), never beyond `limit` bytes."""
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding in ("identity", ""):
        return body
    if coding not in _ZLIB_WINDOW:
        raise errors.UnsupportedMediaType("Send the body as it is, or compressed with gzip or deflate.")
    inflater = zlib.decompressobj(_ZLIB_WINDOW[coding])
    try:
        inflated = inflater.decompress(body, limit + 1)
    except zlib.error:
        raise errors.BadRequest("The compressed body is damaged.") from None
    if len(inflated) > limit:
        raise errors.TooLarge("The inflated body is too large.")
    if not inflater.eof or inflater.unused_data:
        raise errors.BadRequest("The compressed body is cut short, or has something behind its end.")
    return inflated


class Parser(FlaskParser):
    """webargs' parser with our strict reading of body and query."""

    DEFAULT_UNKNOWN_BY_LOCATION = {}  # as the schema says: refused

    def parse(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().parse(*args, **kwargs)
        except (errors.DomainError, HTTPException):
            # Where a view's own statement checks the license: that comes before what is wrong with the body.
            auth.require_license_on_record()
            raise

    def load_json(self, req: Request, schema: Schema) -> Any:
        """`{}` for an optional body that is absent or `null`. Raises BadRequest, UnsupportedMediaType."""
        body = read_body()
        if body and not req.is_json:
            raise errors.UnsupportedMediaType("Send the body as application/json.")
        try:
            given = read_json(body) if body else None
        except ValueError:
            raise errors.BadRequest("The body is not valid JSON.") from None
        if given is not None:
            return given
        if getattr(schema, "body_optional", False):
            return {}
        raise errors.BadRequest("A JSON body is needed.")

    def load_querystring(self, req: Request, schema: Schema) -> Mapping[str, str]:
        for name, values in req.args.lists():
            if len(values) > 1:
                raise errors.invalid_field(name, "Given more than once.", location="query")
        return req.args.to_dict()

    def handle_error(self, error: ValidationError, *args: Any, **kwargs: Any) -> NoReturn:
        (location, messages) = next(iter(error.messages.items()))  # type: ignore[union-attr]
        raise errors.invalid(location, messages) from None


class Blueprint(flask_smorest.Blueprint):
    """Documents the refusals that a route's guard and body bring with them."""

    ARGUMENTS_PARSER = Parser()

    def arguments(
        self, schema: type[Schema], *, location: str = "json", **options: Any
    ) -> Callable[[Any], Any]:
        """The view's first argument: body or query as the schema loads it."""
        options["required"] = location == "json" and not getattr(schema, "body_optional", False)
        decorator: Callable[[Any], Any] = super().arguments(schema(), location=location, **options)
        return decorator

    def route(self, rule: str, *, errors: tuple[int, ...] = (), **options: Any) -> Callable[[Any], Any]:
        """`errors`: the statuses that a view may answer besides the usual ones."""
        register = super().route(rule, **options)

        def decorator(view: Any) -> Any:
            parameters = getattr(view, "_apidoc", {}).get("arguments", {}).get("parameters", ())
            places = {parameter["in"] for parameter in parameters}
            for parameter in parameters:
                if getattr(parameter["schema"], "body_optional", False):
                    parameter["schema"] = {"anyOf": [parameter["schema"], {"type": "null"}]}
            codes = {429, 503, *errors}
            # `create` of the blueprint `customers` is createCustomer; a name of several words stands alone.
            name = view.__name__ if "_" in view.__name__ else f"{view.__name__}_{self.name.removesuffix('s')}"
            extra: dict[str, Any] = {"operationId": camel_case(name)}
            if view.guard in ("admin", "own"):
                codes |= {401, 403}
                extra["security"] = [{"bearer": []}]
            if "<" in rule:
                codes.add(404)
            if places:
                codes.add(422)
            if "json" in places:
                codes |= {400, 413, 415}
            if getattr(view, "takes_idempotency_key", False):
                codes |= {409, 422}
                extra["parameters"] = [IDEMPOTENCY_KEY]
            return register(self.doc(responses={c: _refusal(c) for c in sorted(codes)}, **extra)(view))

        return decorator


def _refusal(code: int) -> dict[str, Any]:
    document: dict[str, Any] = {
        "description": HTTPStatus(code).phrase,
        "content": {"application/json": {"schema": ErrorSchema}},
    }
    if code in _REFUSAL_HEADERS:
        document["headers"] = _REFUSAL_HEADERS[code]
    return document


class Api(flask_smorest.Api):
    """flask-smorest with our error shape."""

    ERROR_SCHEMA = ErrorSchema
    DEFAULT_ERROR_RESPONSE_NAME = None  # every status that a route answers is documented by itself
