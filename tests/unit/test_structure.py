"""Promises that the shape of the code keeps: imports run one way, SQL has its room, help is complete."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from flask import Flask

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted([*(ROOT / "app").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])

# Who may import whom, from the top floor down; a room may use its own floor only where it says so.
FLOORS = [
    ("app.web",),
    ("app.blueprints", "cli"),
    ("app.idempotency",),
    ("app.api",),
    ("app.auth",),
    ("app.ratelimit",),
    ("app.services",),
    ("app.extensions",),
    ("app.queries", "app.stripe_gateway", "app.keyring", "app.migrations", "app.embedded", "app.backup"),
    ("app.schemas",),
    ("app.licenses", "app.db", "app.observe"),
    ("app.entitlements", "app.context", "app.errors", "app.config"),
    ("app.plans", "app.encoding"),
]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def floor_of(module: str) -> int | None:
    for number, rooms in enumerate(FLOORS):
        if any(module == room or module.startswith(f"{room}.") for room in rooms):
            return number
    return None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path: Path):
    here = name_of(path)
    if here in ("app", "cli"):
        return
    floor = floor_of(here)
    assert floor is not None, f"{here} has no floor: give it one"
    for imported in imports_of(path):
        other = floor_of(imported)
        if other is not None:
            assert other >= floor, f"{here} must not import {imported}"


def test_only_the_gateway_imports_stripe():
    users = [name_of(path) for path in MODULES if "stripe" in set(imports_of(path))]
    assert users == ["app.stripe_gateway"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_sql_stands_in_queries_only(path: Path):
    here = name_of(path)
    if here.startswith("app.queries") or here in ("app.migrations", "app.embedded", "app.db", "app.backup"):
        return
    statement = re.compile(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM)\s+[a-z_*]+\s", re.MULTILINE)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not statement.search(node.value), f"{here}: {node.value[:60]!r}"


@pytest.mark.parametrize("path", sorted((ROOT / "app" / "queries").glob("[a-z]*.py")), ids=name_of)
def test_a_query_is_one_statement_with_its_purpose(path: Path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} does not say its purpose"
            assert node.args.args[0].arg == "cur"
            calls = [
                call for call in ast.walk(node)
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
                and call.func.attr in ("execute", "one", "all", "exactly_one")
            ]  # fmt: skip
            assert len(calls) == 1, f"{node.name} runs {len(calls)} statements"


def test_nothing_below_the_database_room_commits():
    for path in MODULES:
        if name_of(path) not in ("app.db", "app.embedded"):
            assert not re.search(r"\.(commit|rollback)\(", path.read_text()), path


def commands(group: click.Group, prefix: str = "flask") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def test_every_command_has_help_with_a_runnable_example(app: Flask):
    ours = [
        (path, command)
        for path, command in commands(app.cli)  # type: ignore[arg-type]
        if path.split()[1] in ("customer", "usage", "license", "keys", "db", "stripe", "webhook", "audit")
    ]
    assert len(ours) > 25
    for path, command in ours:
        assert command.help, path
        assert f"      {path}" in command.help.replace("\b", ""), f"{path} has no example"
        with command.make_context(path, ["--help"], resilient_parsing=True) as context:
            assert "Example" in command.get_help(context)


def test_every_setting_is_in_the_example_file():
    read = set(re.findall(r'env\.\w+\(\s*"([A-Z_]+)"', (ROOT / "app" / "config.py").read_text()))
    told = set(re.findall(r"^#?([A-Z][A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert read <= told, f"not in .env.example: {sorted(read - told)}"


def test_every_requirement_is_pinned_exactly():
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            pinned = re.fullmatch(r"[\w.\-\[\]]+==[\w.]+( ; .+)?", line)
            assert not line.strip() or line.startswith("#") or pinned, line
