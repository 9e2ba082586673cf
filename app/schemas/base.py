"""What every schema shares: strict input in either spelling, UTC output. No database."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, ClassVar, Final

from marshmallow import RAISE, Schema, ValidationError, fields, pre_load, validate

from app.config import is_http_url
from app.encoding import camel_case

_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:[0-5]\d)", re.ASCII
)
_SNAKE: Final = re.compile(r"[a-z]+(_[a-z]+)+", re.ASCII)
# Controls, halves of surrogate pairs, line separators, and what turns the text around it.
_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069\ufeff]")


class InputSchema(Schema):
    """Refuses unknown fields; takes camelCase or snake_case, never both for one field.

    `aliases` names further spellings. With `body_optional` an absent body counts as `{}`.
    """

    class Meta:
        unknown = RAISE

    aliases: ClassVar[Mapping[str, str]] = {}
    body_optional: ClassVar[bool] = False
    error_messages = {"type": "Send a JSON object, not an array or a single value."}

    @pre_load
    def one_spelling(self, data: Any, **_: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        spelled: dict[str, Any] = {}
        for given, value in data.items():
            name = self.aliases.get(given) or (camel_case(given) if _SNAKE.fullmatch(given) else given)
            if name not in self.fields:
                name = given
            if name in spelled:
                raise ValidationError({name: ["Given in two spellings; send one."]})
            spelled[name] = value
        return spelled


class Text(fields.String):
    """Human text: trimmed, not empty, no control characters, storable as UTF-8."""

    def __init__(self, *, max_length: int = 255, **kwargs: Any) -> None:
        super().__init__(validate=validate.Length(min=1, max=max_length), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = str(super()._deserialize(value, attr, data, **kwargs)).strip()
        if _UNFIT.search(text):
            raise ValidationError("Contains characters that cannot be stored, or turn text around.")
        return text


class Address(Text):
    """An email address: ASCII, at most 254 characters (RFC 5321), kept as it was typed."""

    _email = validate.Email()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=254, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        local, _, domain = self._email(text).rpartition("@")
        is_plain = text == value and text.isascii() and not domain.startswith("[")
        if not is_plain or "." not in domain or len(local) > 64:
            raise ValidationError("Not a valid email address.")
        return text


class Url(Text):
    """An absolute http(s) address, as Stripe accepts them."""

    def __init__(self, **kwargs: Any) -> None:
        example = {"format": "uri", "example": "https://app.example.com/account"}
        metadata = example | kwargs.pop("metadata", {})
        super().__init__(max_length=2000, metadata=metadata, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        if not text.isascii() or re.search(r"[\s<>\"\\^`|]", text) or not is_http_url(text):
            raise ValidationError("Not a valid http(s) URL.")
        return text


class Flag(fields.Boolean):
    """`true` or `false`, and nothing that marshmallow takes for one."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Instant(fields.DateTime):
    """RFC 3339 with offset in; out it is a time still, which `json_text` writes."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:
        return read_instant(value)

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        return value


def read_instant(value: Any) -> datetime:
    """RFC 3339 text with offset as UTC. Raises ValidationError."""
    if not isinstance(value, str):
        raise ValidationError("Send a text like 2026-01-31T10:00:00Z (RFC 3339), not a number of seconds.")
    if re.search(r"[+-]\d{4}$", value):
        raise ValidationError("Write the offset with a colon, like +00:00, or Z (RFC 3339).")
    if not _RFC3339.fullmatch(value):
        raise ValidationError("Not an RFC 3339 time with offset, like 2026-01-31T10:00:00Z.")
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValidationError("Not a time that exists.") from None


def no_default() -> None:
    """For `load_default` of a query parameter: absent is None, yet `null` cannot be sent."""


class CamelSchema(Schema):
    """Output: camelCase names over the snake_case members of a row.

    `dump` does by one pass over plain dicts what marshmallow does by a dozen calls a field. Only nested
    schemas have work to do; all else is JSON already, or a time.
    """

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        field_obj.data_key = field_obj.data_key or camel_case(field_name)

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        if self.many if many is None else many:
            return [self.dump(row, many=False) for row in obj]
        written = {}
        for name, key, nested, is_list in self._members:
            if name in obj:
                value = obj[name]
                written[key] = value if nested is None or value is None else nested.dump(value, many=is_list)
        return written

    @cached_property
    def _members(self) -> list[tuple[str, str, Schema | None, bool]]:
        """Of each field: its name in a row and in the answer, its nested schema, whether that is listed."""
        found = []
        for name, field in self.dump_fields.items():
            is_list = isinstance(field, fields.List)
            inner = field.inner if isinstance(field, fields.List) else field
            nested = inner.schema if isinstance(inner, fields.Nested) else None
            found.append((field.attribute or name, field.data_key or name, nested, is_list))
        return found


class ErrorSchema(Schema):
    """The body of every refusal."""

    code = fields.Integer(required=True)
    status = fields.String(required=True)
    message = fields.String(required=True)
    errors = fields.Dict()
    requestId = fields.String(required=True, allow_none=True)
