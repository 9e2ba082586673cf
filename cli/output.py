"""How the console prints: a command returns an `Answer`, its group prints it as text, JSON or CSV."""

import csv
import getpass
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from importlib import import_module
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

import click
import psycopg2
from flask.cli import AppGroup, ScriptInfo
from psycopg2.errors import InsufficientPrivilege, ReadOnlySqlTransaction

from app.config import ConfigError
from app.context import set_actor
from app.db import BUSY, Row
from app.encoding import camel_case, plain, rfc3339
from app.errors import DomainError, NotFound
from app.extensions import db
from app.queries import customers
from app.services.customers import get_customer
from app.stripe_objects import amount_text

if TYPE_CHECKING:
    from marshmallow import Schema
    from rich.console import Console

SHORT_RULE: Final = "─" * 41
RULE: Final = "─" * 77
DOUBLE_RULE: Final = "═" * 77
LABEL_WIDTH: Final = 18
UNLIMITED: Final = 1_000_000
HELP_OPTIONS: Final = {"help_option_names": ["-h", "--help"]}
STYLES: Final = {"⚠️": "yellow", "❌": "red", "✅": "green"}


@dataclass(frozen=True, slots=True)
class Column:
    """`cell` is the row's key, or a function of the row; what stands in it may make it wider than `width`.

    Ids and figures are never cut: a table whose ids have no room at the terminal has longer lines.
    """

    name: str
    cell: str | Callable[[Row], Any]
    width: int = 0
    right: bool = False
    is_id: bool = False

    def text(self, row: Row) -> str:
        return shown(row[self.cell] if isinstance(self.cell, str) else self.cell(row))


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under column names between rules, each cell as `shown`."""

    columns: Sequence[Column]
    rows: Iterable[Row]

    def print_to(self, console: "Console") -> None:
        from rich.box import Box
        from rich.table import Table as RichTable
        from rich.text import Text

        box = Box("    \n  | \n    \n  | \n    \n    \n  | \n    \n")
        table = RichTable(box=box, show_edge=False, pad_edge=False, header_style="bold")
        rows = [[Text(column.text(row), no_wrap=True) for column in self.columns] for row in self.rows]
        needed = 3 * (len(self.columns) - 1)
        for index, column in enumerate(self.columns):
            justify: Literal["left", "right"] = "right" if column.right else "left"
            header = Text(column.name, no_wrap=True, overflow="crop")
            header.align(justify, max(column.width, header.cell_len))
            never_cut = column.is_id or column.right
            needed += max([header.cell_len, *(row[index].cell_len for row in rows)]) if never_cut else 3
            table.add_column(header, no_wrap=never_cut, overflow="ellipsis", justify=justify)
        for row in rows:
            table.add_row(*row)
        rule = RULE[: console.width]
        if needed > console.width:
            console.width = UNLIMITED
        with console.capture() as captured:
            console.print(table)
        head, _, *lines = captured.get().splitlines()
        console.file.writelines(f"{line.rstrip()}\n" for line in (rule, head, rule, *lines, rule))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command returns, in every form it may be asked for.

    `data` is for --json: a value, or a function that makes one; rows get camelCase names. `text` are lines
    and tables. `csv` are column names and rows.
    """

    data: Any
    text: Iterable[str | Table]
    csv: tuple[Sequence[str], Iterable[Mapping[str, Any]]] | None = None
    exit_code: int = 0

    def as_json(self) -> str:
        data = _camel(self.data() if callable(self.data) else self.data)
        return json.dumps(data, default=plain, ensure_ascii=False, indent=2) + "\n"

    def as_csv(self) -> str:
        columns, rows = self.csv or ((), ())
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_csv_cell(row[name]) for name in columns] for row in rows)
        return out.getvalue()

    def as_text(self, terminal_width: int | None = None) -> str:
        """At a terminal with colour and as wide as that, else plain and as wide as it needs."""
        out = io.StringIO()
        for part in self.text:
            if isinstance(part, Table):
                part.print_to(_console(out, terminal_width))
            elif terminal_width is None:
                out.write(f"{part}\n")
            else:
                for line in part.split("\n"):
                    style = next((style for sign, style in STYLES.items() if sign in line), "")
                    text = line[:terminal_width] if line in (RULE, DOUBLE_RULE) else line
                    _console(out, terminal_width).print(text, style=style, soft_wrap=True)
        return out.getvalue()


def _console(file: io.StringIO, terminal_width: int | None) -> "Console":
    from rich.console import Console

    at_terminal, width = terminal_width is not None, terminal_width or UNLIMITED
    return Console(
        file=file, width=width, force_terminal=at_terminal, highlight=False, markup=False, emoji=False
    )


class Group(AppGroup):
    """A group whose commands return an `Answer`, act in the operator's name and refuse in one plain line."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, context_settings=HELP_OPTIONS, **kwargs)

    def command(  # type: ignore[override]
        self, name: str, *examples: str, csv: bool = False, **kwargs: Any
    ) -> Callable[[Callable[..., Answer]], click.Command]:
        """Add a command, with examples for its help; with `csv` its answers have that form too."""

        def decorator(callback: Callable[..., Answer]) -> click.Command:
            @wraps(callback)
            def run(to_json: bool, to_csv: bool = False, **values: Any) -> None:
                if to_json and to_csv:
                    raise click.UsageError("Give either --json or --csv.")
                logging.disable()  # one plain line is enough
                login = "unknown"
                with suppress(KeyError, OSError):
                    login = getpass.getuser()
                set_actor(f"console:{login}")
                try:
                    answer = callback(**values)
                    _print(answer, "json" if to_json else "csv" if to_csv else "text")
                except (DomainError, ConfigError) as error:
                    raise click.ClickException(explained(error)) from None
                finally:
                    logging.disable(logging.NOTSET)
                click.get_current_context().exit(answer.exit_code)

            if examples:
                lines = [f"      {example}" for example in examples]
                kwargs["help"] = "\n".join([cleandoc(callback.__doc__ or ""), "", "\b", "Example:", *lines])
            command = super(Group, self).command(name, **kwargs)(run)
            forms = {"json": "JSON on stdout, for machines."}
            if csv:
                forms["csv"] = "CSV on stdout, for spreadsheets."
            command.params += [
                click.Option([f"--{form}", f"to_{form}"], is_flag=True, help=text)
                for form, text in forms.items()
            ]
            return command

        return decorator


def explained(error: DomainError | ConfigError) -> str:
    """The message, or PostgreSQL's own words where they are the reason: an operator needs them."""
    cause = error.__cause__
    reasons = psycopg2.OperationalError | InsufficientPrivilege | ReadOnlySqlTransaction
    if isinstance(cause, reasons) and str(error) != BUSY:
        return f"DATABASE_URL: {str(cause).strip().partition(chr(10))[0]}"
    return str(error)


def _print(answer: Answer, form: str) -> None:
    terminal = shutil.get_terminal_size() if form == "text" and is_terminal(sys.stdout) else None
    if form == "text":
        text = answer.as_text(terminal and terminal.columns)
    else:
        text = answer.as_json() if form == "json" else answer.as_csv()
    if terminal and text.count("\n") >= terminal.lines:
        click.echo_via_pager(text)
        return
    if sys.stdout is None:
        return
    rest = memoryview(text.encode(errors="replace"))
    try:
        while rest:  # under PYTHONUNBUFFERED a write takes what there is room for, and says how much
            rest = rest[sys.stdout.buffer.write(rest) :]
        sys.stdout.buffer.flush()
    except OSError as error:
        # What is still in the buffer is written once more at exit, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.ClickException(f"stdout: {error.strerror}") from None


def is_terminal(stream: TextIO | None) -> bool:
    """None is what Python has for a stream that was closed before its start, as by `>&-`."""
    return stream is not None and stream.isatty()


def customer_argument(
    callback: Callable[..., Answer] | None = None, *, required: bool = True, erased: bool = False
) -> Any:
    """Let a command say who is meant by `--id`, `--customer` or a bare argument: an id, email or Stripe id.

    The command gets `customer_id`, of a customer there is (with `erased` also of one that was erased).
    """

    def decorator(callback: Callable[..., Answer]) -> Callable[..., Answer]:
        @click.argument("who", metavar="[CUSTOMER]", required=False, shell_complete=complete_customer)
        @click.option(
            "--id", "--customer", "named", metavar="CUSTOMER", shell_complete=complete_customer,
            help="Id, email, or Stripe's id (cus_…, sub_…); also as a bare argument.",
        )  # fmt: skip
        @wraps(callback)
        def resolving(who: str | None, named: str | None, **values: Any) -> Answer:
            if who is not None and named is not None and who != named:
                raise click.UsageError("Name one customer.")
            text = who if named is None else named
            if text is None and required:
                raise click.UsageError("Name a customer: --id, --customer or a bare argument.")
            if text is None:
                return callback(customer_id=None, **values)
            with db.statement() as cur:
                found = customers.find_customer(cur, text)
            if found is None or (found["erased_at"] and not erased):
                raise NotFound(f"There is no customer {text}.")
            return callback(customer_id=found["customer_id"], **values)

        return resolving

    return decorator if callback is None else decorator(callback)


def complete_customer(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Ids and addresses that begin like this, for the shell; none when the database is away."""
    from click.shell_completion import CompletionItem

    logging.disable()  # stderr is the line that is being typed
    try:
        with ctx.ensure_object(ScriptInfo).load_app().app_context(), db.statement() as cur:
            rows = customers.select_customers_like(cur, incomplete, limit=50)
    except (DomainError, ConfigError):
        return []
    by_email = bool(incomplete) and not incomplete.startswith("cust_")
    shown, other = ("email", "customer_id") if by_email else ("customer_id", "email")
    return [CompletionItem(row[shown], help=row[other]) for row in rows]


yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def confirm(question: str, *, yes: bool, must: bool = False) -> None:
    """Ask at a terminal; anything but yes ends the command with exit 1.

    Without a terminal it goes ahead, or with `must` refuses (exit 2) unless `yes` was given.
    """
    if yes:
        return
    if is_terminal(sys.stdin):
        answer = click.prompt(f"{question} [y/N]", default="", show_default=False, err=True)
        if answer.strip().lower() not in ("y", "yes"):
            raise click.ClickException("Not confirmed; nothing was changed.")
    elif must:
        raise click.UsageError("This cannot be undone. Give --yes where nobody can be asked.")


def describe_who(customer_id: str) -> str:
    """`Name <email> (cust_…)`, for questions."""
    customer = get_customer(customer_id)
    name = customer["name"] or customer["company_name"]
    return f"{name or ''} <{customer['email']}> ({customer_id})".strip()


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr at a terminal. Yields `advance(done, ahead)`: so many done, so many more known of."""
    if not is_terminal(sys.stderr):
        yield lambda done, ahead: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)

        def advance(done: int, ahead: int) -> None:
            total = (bars.tasks[0].total or 0) + ahead
            bars.update(task, advance=done, total=total or None)

        yield advance


def load(schema: str, **values: Any) -> dict[str, Any]:
    """The given values, validated as these fields of `customers:NewCustomerRequest` are by the API.

    Wrong usage (exit 2) names the field.
    """
    from marshmallow import ValidationError

    given = {camel_case(name): value for name, value in values.items() if value is not None}
    try:
        return _schema(schema)(only=[camel_case(name) for name in values]).load(given)  # type: ignore[no-any-return]
    except ValidationError as error:
        name, texts = next(iter(error.messages_dict.items()))
        raise click.UsageError(f"{name}: {' '.join(map(str, texts))}") from None


def dump(schema: str, data: Any, *, many: bool = False) -> Any:
    """What the API answers, by a schema like `customers:CustomerSchema`."""
    return _schema(schema)(many=many).dump(data)


def _schema(path: str) -> "type[Schema]":
    """Imported when it is used: marshmallow takes as long as a whole command."""
    module, _, name = path.partition(":")
    schema: type[Schema] = getattr(import_module(f"app.schemas.{module}"), name)
    return schema


def fields(values: Mapping[str, Any], *, width: int = LABEL_WIDTH, indent: str = "") -> str:
    """One `Label:   value` line each, the value as `shown`."""
    return "\n".join(f"{f'{indent}{label}:':<{width}}{shown(value)}" for label, value in values.items())


def details(title: str, values: Mapping[str, Any]) -> str:
    """A title and labelled values between short rules."""
    return f"{title}:\n{SHORT_RULE}\n{fields(values)}\n{SHORT_RULE}"


def shown(value: Any) -> str:
    """None as a dash, a time in local time."""
    if isinstance(value, datetime):
        return str(local_time(value))
    return "-" if value is None else str(value)


def hint(message: str) -> None:
    """For the operator, on stderr; not part of the data."""
    click.echo(message, err=True)


def local_time(moment: datetime | None, *, seconds: bool = True) -> str | None:
    """`10/21/2025, 10:30:00 AM` in local time."""
    if moment is None:
        return None
    return moment.astimezone().strftime("%-m/%-d/%Y, %-I:%M:%S %p" if seconds else "%-m/%-d/%Y, %-I:%M %p")


def money(amount: int, currency: str) -> str:
    """`$29.00`, `29.00 EUR`, of an amount in the currency's smallest unit."""
    return f"${amount / 100:,.2f}" if currency == "usd" else amount_text(amount, currency)


def percent(ratio: float | None) -> str | None:
    return None if ratio is None else f"{ratio:.1%}"


def or_unlimited(figure: int | None, unit: str = "") -> str:
    return "Unlimited" if figure is None else f"{figure}{unit}"


def _camel(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {camel_case(name): value for name, value in data.items()}
    return [_camel(row) for row in data] if isinstance(data, list) else data


def _csv_cell(value: Any) -> Any:
    """Times as RFC 3339; a text that a spreadsheet would take for a formula is quoted."""
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t"):
        return f"'{value}"
    return "" if value is None else value
