"""Promises that the shape of the code keeps: imports run one way, SQL has its place, help is complete."""

import ast
import re
from pathlib import Path

import click

from app.config import load_settings

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted([*(ROOT / "app").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
QUERIES = sorted((ROOT / "app" / "queries").glob("[a-z]*.py"))

# Who may import whom, from the top down; modules of one floor may import each other.
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
    ("app.licenses", "app.db", "app.observe", "app.overage", "app.stripe_objects"),
    ("app.entitlements", "app.context", "app.errors", "app.config"),
    ("app.plans", "app.encoding"),
]
# A service imports only those that stand before it.
SERVICES = [
    "audit", "licenses", "usage", "customers", "overage", "stripe_sync", "stripe_events", "stripe_reconcile",
    "checkout", "subscriptions", "stripe_setup", "privacy", "imports", "explain", "keys", "report", "health",
]  # fmt: skip


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def floor_of(module):
    for number, rooms in enumerate(FLOORS):
        if any(module == room or module.startswith(f"{room}.") for room in rooms):
            return number
    return None


def service_of(module):
    name = module.removeprefix("app.services.").partition(".")[0]
    return name if module.startswith("app.services.") and name in SERVICES else None


def test_imports_run_one_way():
    for path in MODULES:
        here = name_of(path)
        if here in ("app", "cli"):  # `create_app` puts the parts together
            continue
        floor = floor_of(here)
        assert floor is not None, f"{here} has no floor: give it one"
        for imported in imports_of(path):
            other = floor_of(imported)
            assert other is None or other >= floor, f"{here} must not import {imported}"


def test_services_import_in_a_fixed_order():
    found = {path.stem: path for path in (ROOT / "app" / "services").glob("[a-z]*.py")}
    assert set(found) == set(SERVICES)
    for number, service in enumerate(SERVICES):
        imported = {service_of(name) for name in imports_of(found[service])} - {None}
        assert imported <= set(SERVICES[:number]), f"{service} imports {sorted(imported)}"


def test_only_the_gateway_imports_stripe():
    users = [name_of(path) for path in MODULES if "stripe" in set(imports_of(path))]
    assert users == ["app.stripe_gateway"]


def test_nothing_that_runs_in_production_imports_what_only_developers_have():
    for path in [*MODULES, ROOT / "gunicorn.conf.py", ROOT / "wsgi.py"]:
        imported = {name.partition(".")[0] for name in imports_of(path)}
        if path.name != "run_local.py":  # which starts the Stripe sandbox of the tests
            assert not imported & {"tests", "pytest", "hypothesis"}, path


def test_sql_stands_in_queries_and_only_the_database_commits():
    statement = re.compile(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM)\s+[a-z_*]+\s", re.MULTILINE)
    for path in MODULES:
        here = name_of(path)
        if here in ("app.db", "app.embedded"):
            continue
        assert not re.search(r"\.(commit|rollback)\(", path.read_text()), here
        if here.startswith("app.queries") or here in ("app.migrations", "app.backup"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not statement.search(node.value), f"{here}: {node.value[:60]!r}"


def test_a_query_is_one_statement_with_its_purpose():
    for path in QUERIES:
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            assert ast.get_docstring(node), f"{node.name} does not say its purpose"
            assert node.args.args[0].arg == "cur"
            calls = [
                call for call in ast.walk(node)
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
                and call.func.attr in ("execute", "executemany", "one", "all", "exactly_one")
            ]  # fmt: skip
            assert len(calls) == 1, f"{node.name} runs {len(calls)} statements"


def commands(group, prefix="flask"):
    for name, listed in group.commands.items():
        command = listed.load() if hasattr(listed, "load") else listed
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        elif command.callback and command.callback.__module__.startswith("cli."):
            yield f"{prefix} {name}", command


def test_every_command_prints_json_and_has_help_with_an_example(app):
    ours = dict(commands(app.cli))
    assert len(ours) > 40
    run = app.test_cli_runner().invoke
    for path, command in ours.items():
        assert "--json" in {option for param in command.params for option in param.opts}, path
        assert command.help, path
        assert f"      {path}" in command.help.replace("\b", ""), f"{path} has no example"
        shown = [run(args=[*path.split()[1:], option]) for option in ("--help", "-h")]
        assert [result.exit_code for result in shown] == [0, 0], path
        assert shown[0].stdout == shown[1].stdout
        assert "Example" in shown[0].stdout
    for group in {path.split()[1] for path in ours}:
        assert run(args=[group, "-h"]).stdout.startswith("Usage: ")


class Recorder(dict):
    """An environment that notes the names that are asked for."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def get(self, name, default=None):
        self.names.add(name)
        return default


def test_every_setting_is_in_the_example_file_and_no_other():
    environ = Recorder()
    load_settings(environ)
    listed = re.findall(r"^#?([A-Z][A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(environ.names)


def test_every_requirement_is_pinned_exactly():
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            pinned = re.fullmatch(r"[\w.\-\[\]]+==[\w.]+( ; .+)?", line)
            assert not line.strip() or line.startswith(("#", "-r ")) or pinned, line
