"""The service's own SQL, taken from its query functions, for whoever runs it without the service."""

from collections.abc import Callable
from typing import Any


class _Asked(Exception):
    def __init__(self, sql: str, params: Any) -> None:
        super().__init__(sql)
        self.sql, self.params = sql, params


class _Recorder:
    def one(self, sql: str, params: Any = None) -> Any:
        raise _Asked(sql, params)

    all = the = execute = one


def captured(query: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[str, Any]:
    """The statement and the parameters that this query function would send."""
    try:
        query(_Recorder(), *args, **kwargs)
    except _Asked as asked:
        return asked.sql, asked.params
    raise LookupError(f"{query.__name__} sent nothing")


def for_pgbench(sql: str, values: dict[str, str]) -> str:
    """`%(name)s` replaced by SQL of one's own, on one line."""
    for name, value in values.items():
        sql = sql.replace(f"%({name})s", value)
    lines = [line.partition(" --")[0].strip() for line in sql.splitlines()]
    return " ".join(line for line in lines if line) + ";\n"
