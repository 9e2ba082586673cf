"""The HTTP edge that all blueprints share: strict JSON bodies, and errors that the document tells of."""

import json
from collections.abc import Callable
from typing import Any, Final

import flask_smorest
from flask import Request, request
from marshmallow import Schema
from webargs.flaskparser import FlaskParser

from app.errors import BadRequest, Invalid, UnsupportedMediaType
from app.schemas.base import ErrorSchema

BODY_LIMIT: Final = 64 * 1024
BATCH_LIMIT: Final = 1024 * 1024


def parse_json(body: bytes) -> Any:
    """RFC 8259, strictly: no NaN, no name twice, no nesting without end. Raises BadRequest."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise ValueError("a name stands twice")
        return members

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(body, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not valid JSON.") from None


def json_body() -> Any:
    """The JSON body of this request, None when there is none. Raises BadRequest, UnsupportedMediaType."""
    body = request.get_data(cache=True)
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
            if getattr(view, "_apidoc", {}).get("arguments"):
                codes |= {400, 413, 415, 422}
            for code in sorted(codes):
                view = self.alt_response(code, schema=ErrorSchema)(view)
            return register(view)

        return decorator
