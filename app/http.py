"""The HTTP edge that all blueprints share: strict JSON bodies, and errors that the document tells of."""

from collections.abc import Callable
from copy import deepcopy
from http import HTTPStatus
from typing import Any, Final

import flask_smorest
from flask import Request, request
from marshmallow import Schema
from webargs.flaskparser import FlaskParser

from app.encoding import read_json
from app.errors import BadRequest, Invalid, TooLarge, UnsupportedMediaType
from app.schemas.base import ErrorSchema

BODY_LIMIT: Final = 64 * 1024
BATCH_LIMIT: Final = 1024 * 1024
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
    """The whole body of this request. Raises TooLarge.

    One whose length is told beforehand Werkzeug refuses unread; one in chunks it cuts at the limit.
    """
    body = request.get_data(cache=True)
    limit = request.max_content_length
    may_be_cut = request.content_length is None and limit is not None and len(body) >= limit
    if may_be_cut and request.environ["wsgi.input"].read(1):
        raise TooLarge("The body is too large.")
    return body


def json_body() -> Any:
    """The JSON body of this request, None when there is none. Raises BadRequest, UnsupportedMediaType."""
    body = read_body()
    if not body:
        return None
    if not request.is_json:
        raise UnsupportedMediaType("Send the body as application/json.")
    return parse_json(body)


class JsonParser(FlaskParser):
    """webargs with our rules; each schema says itself that unknown fields are refused."""

    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = {}

    def load_json(self, req: Request, schema: Schema) -> Any:
        body = json_body()
        if body is None:
            if getattr(schema, "body_optional", False):
                return {}
            raise BadRequest("A JSON body is needed.")
        return body

    def load_querystring(self, req: Request, schema: Schema) -> Any:
        for name, values in req.args.lists():
            if len(values) > 1:
                raise Invalid(
                    f"{name}: given more than once",
                    errors={"query": {name: ["Given more than once."]}},
                )
        return req.args.to_dict()


class Blueprint(flask_smorest.Blueprint):
    """A blueprint whose routes document the refusals that their guard and body bring with them."""

    ARGUMENTS_PARSER = JsonParser()

    def arguments(self, schema: Any, **options: Any) -> Callable[[Any], Any]:
        """Made once, here: of a class webargs would make a new schema for every request."""
        made = schema() if isinstance(schema, type) else schema
        return super().arguments(made, **options)  # type: ignore[no-any-return]

    def route(self, rule: str, *, errors: tuple[int, ...] = (), **options: Any) -> Callable[[Any], Any]:
        """`errors`: the statuses a view may answer besides the usual ones."""
        register = super().route(rule, **options)

        def decorator(view: Any) -> Any:
            codes = {429, 503, *errors}
            if view.guard in ("admin", "own"):
                codes |= {401, 403}
                view = self.doc(security=[{"bearer": []}])(view)
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
                view = self.doc(parameters=[IDEMPOTENCY_KEY])(view)
            return register(_with_refusals(view, sorted(codes)))

        return decorator


def _with_refusals(view: Any, codes: list[int]) -> Any:
    """Document these statuses as `alt_response` does, which would wrap the view once for each of them."""
    view._apidoc = deepcopy(getattr(view, "_apidoc", {}))
    responses = view._apidoc.setdefault("response", {}).setdefault("responses", {})
    for code in codes:
        refusal = {"schema": ErrorSchema(), "description": HTTPStatus(code).phrase, "content_type": None}
        if code in REFUSAL_HEADERS:
            refusal["headers"] = REFUSAL_HEADERS[code]
        responses.setdefault(code, []).append(refusal)
    return view
