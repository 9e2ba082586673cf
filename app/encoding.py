"""JSON as we write it (compact, times as RFC 3339 in UTC) and as we read it (strictly). No database."""

import json
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from flask import Response
from flask.json.provider import DefaultJSONProvider


def json_text(value: Any) -> str:
    """Rows and lists of them too. Times must be in UTC, as the database's, Stripe's and the callers' are."""
    try:
        return orjson.dumps(value, option=orjson.OPT_UTC_Z).decode()
    except TypeError:  # orjson refuses half of a surrogate pair, which a caller may have sent
        return json.dumps(value, default=plain)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name is given twice")
    return members


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_decoder: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)


def read_json(octets: bytes) -> Any:
    """RFC 8259, strictly: UTF-8, no NaN, no name twice, no nesting without end. Raises ValueError."""
    try:
        return _decoder.decode(octets.decode().removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def camel_case(name: str) -> str:
    """`active_devices` → `activeDevices`."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def plain(value: Any) -> str:
    """For `json.dumps`, what it does not know by itself."""
    return rfc3339(value) if isinstance(value, datetime) else str(value)


def rfc3339(moment: datetime) -> str:
    """UTC with `Z`; fractions only where there are some."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def json_answer(body: Any, status: int) -> Response:
    """A JSON response in fewer steps than `jsonify`, which sets the status later."""
    return Response(f"{json_text(body)}\n", status, mimetype="application/json")


class JsonProvider(DefaultJSONProvider):
    """What `jsonify` writes with."""

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        return json_text(obj)
