"""Opaque cursors: the last row of the page before, with a checksum against typing errors."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from itsdangerous import BadData, URLSafeSerializer
from marshmallow import ValidationError, fields, validate

from app.encoding import rfc3339
from app.schemas.base import InputSchema, no_default, read_instant

MAX_ID: Final = 2**63 - 1
_CURSORS: Final = URLSafeSerializer("no secret: the signature is only a checksum")
T = TypeVar("T")


class IdCursor(fields.Field[int]):
    """A row id."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        [row_id] = _open(value, 1)
        return int(row_id)


class TimeCursor(fields.Field[tuple[datetime, int]]):
    """A time and a row id."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> tuple[datetime, int]:
        at, row_id = _open(value, 2)
        return read_instant(at), row_id


def cut(rows: Sequence[T], limit: int) -> tuple[Sequence[T], bool]:
    """The page, and whether there is more, of rows selected with a limit one higher."""
    return rows[:limit], len(rows) > limit


def cursor(*parts: int | datetime) -> str:
    """The cursor for these values of the last row."""
    return str(_CURSORS.dumps([rfc3339(part) if isinstance(part, datetime) else part for part in parts]))


def _open(value: Any, size: int) -> list[Any]:
    """What the cursor was made of: so many parts, the last of them a row id."""
    try:
        parts = _CURSORS.loads(str(value))
        if not isinstance(parts, list) or len(parts) != size:
            raise ValueError
        if type(parts[-1]) is not int or not 0 <= parts[-1] <= MAX_ID:
            raise ValueError
        return parts
    except (ValueError, BadData):
        raise ValidationError("Not a cursor that was given out.") from None


class Digits(fields.Integer):
    """A number in a query: what `int` takes beyond digits (`1_0`, `+5`, other scripts) is refused."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if not (value.isascii() and value.removeprefix("-").isdigit()):
            raise self.make_error("invalid", input=value)
        return super()._deserialize(value, attr, data, **kwargs)


class PageQuery(InputSchema):
    """`limit` and `cursor` of every list."""

    limit = Digits(load_default=50, validate=validate.Range(1, 200))
    cursor = IdCursor(load_default=no_default, metadata={"type": "string"})


class DaysQuery(PageQuery):
    """The same with the window."""

    days = Digits(load_default=7, validate=validate.Range(1, 400))


class ReportsQuery(DaysQuery):
    cursor = TimeCursor(load_default=no_default, metadata={"type": "string"})  # type: ignore[assignment]
