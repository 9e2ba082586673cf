"""How the console prints: labels, rules, tables, times in local time, JSON and CSV for machines."""

import csv
import getpass
import io
import json
import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from typing import Any, Final

import click
from flask.cli import AppGroup
from marshmallow import Schema, ValidationError

from app.config import ConfigError
from app.context import set_actor
from app.encoding import plain, rfc3339
from app.errors import DomainError
from app.schemas.base import camel_case

SHORT_RULE: Final = "─" * 41
RULE: Final = "─" * 77
DOUBLE_RULE: Final = "═" * 77
LABEL_WIDTH: Final = 18

as_json = click.option("--json", "to_json", is_flag=True, help="JSON on stdout, for machines.")
as_csv = click.option("--csv", "to_csv", is_flag=True, help="CSV on stdout, for spreadsheets.")


class Group(AppGroup):
    """A group whose commands act in the operator's name and refuse in one plain line; what the service
    logs stays out of the way.
    """

    def command(self, *args: Any, **kwargs: Any) -> Callable[[Callable[..., Any]], click.Command]:  # type: ignore[override]
        register = super().command(*args, **kwargs)

        def decorator(command: Callable[..., Any]) -> click.Command:
            @wraps(command)
            def acting(**values: Any) -> Any:
                set_actor(f"console:{_login()}")
                _refuse_broken_text(click.get_current_context())
                return command(**values)

            return register(acting)

        return decorator

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _only_errors_logged():
                return super().invoke(ctx)
        except DomainError as error:
            raise click.ClickException(error.message) from None
        except ConfigError as error:
            raise click.ClickException(str(error)) from None


@contextmanager
def _only_errors_logged() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        root.setLevel(level)


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _refuse_broken_text(ctx: click.Context) -> None:
    """What was not UTF-8 on the command line stands in the arguments as lone surrogates."""
    for param in ctx.command.params:
        value = ctx.params.get(param.name or "")
        if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
            raise click.BadParameter("not UTF-8 text", ctx, param)


def load(schema: Schema, **values: Any) -> dict[str, Any]:
    """The values that were given, judged as the API judges them; wrong usage (exit 2) if not right."""
    try:
        given = {name: value for name, value in values.items() if value is not None}
        return schema.load(given)  # type: ignore[no-any-return]
    except ValidationError as error:
        messages = error.messages if isinstance(error.messages, dict) else {"input": error.messages}
        name, texts = next(iter(messages.items()))
        raise click.UsageError(f"{name}: {' '.join(map(str, texts))}") from None


def echo_json(value: Any) -> None:
    click.echo(json.dumps(value, default=plain, ensure_ascii=False, indent=2))


def camel_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the database with the API's names."""
    return {camel_case(name): value for name, value in row.items()}


def echo_rows_json(rows: Iterable[Mapping[str, Any]]) -> None:
    echo_json([camel_row(row) for row in rows])


def echo_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if cell is None else _cell(cell) for cell in row] for row in rows])
    click.echo(out.getvalue(), nl=False)


def echo_fields(fields: Mapping[str, Any], *, width: int = LABEL_WIDTH) -> None:
    """One `Label:   value` line each; None shows as a dash."""
    for label, value in fields.items():
        click.echo(f"{label + ':':<{width}}{'-' if value is None else value}")


def echo_table(
    columns: Sequence[tuple[str, int]], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()
) -> None:
    """A ruled table; `right` names the columns that are aligned to the right, the last one is not padded."""

    def padded(name: str, width: int, cell: Any) -> str:
        text = "-" if cell is None else str(cell)
        fill = " " * (width - _width(text))
        return fill + text if name in right else text + fill

    def line(cells: Sequence[Any]) -> str:
        return " | ".join(padded(*column, cell) for column, cell in zip(columns, cells, strict=True)).rstrip()

    click.echo(RULE)
    click.echo(line([name for name, _ in columns]))
    click.echo(RULE)
    for row in rows:
        click.echo(line(row))
    click.echo(RULE)


def hint(message: str) -> None:
    """For the operator, not part of the data."""
    click.echo(message, err=True)


def local_time(moment: datetime | None, *, seconds: bool = True) -> str | None:
    """`10/21/2025, 10:30:00 AM` in local time."""
    if moment is None:
        return None
    at = moment.astimezone()
    clock = f"{at.hour % 12 or 12}:{at:%M:%S}" if seconds else f"{at.hour % 12 or 12}:{at:%M}"
    return f"{at.month}/{at.day}/{at.year}, {clock} {at:%p}"


def percent(ratio: float | None) -> str | None:
    return None if ratio is None else f"{ratio:.1%}"


def or_unlimited(figure: int | None, unit: str = "") -> str:
    return "Unlimited" if figure is None else f"{figure}{unit}"


def _width(text: str) -> int:
    """How many places of a terminal it takes: East Asian characters two, combining ones none."""
    return sum(
        2 if unicodedata.east_asian_width(char) in "WF" else not unicodedata.combining(char) for char in text
    )


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula is quoted."""
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t"):
        return f"'{value}"
    return value
