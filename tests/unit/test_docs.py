"""The documents tell the truth: what they name exists, and what exists is named."""

import re
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "keys").glob("*.md")])
OURS = ("customer", "usage", "license", "keys", "db", "stripe", "webhook", "audit")


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_their_options_exist(app, page):
    for group, command, rest in re.findall(r"flask (\w+) ([a-z][\w-]*)([^\n`|]*)", page.read_text()):
        if group not in OURS:
            continue
        found = app.cli.commands[group].load()
        assert isinstance(found, click.Group)
        assert command in found.commands, f"flask {group} {command}"
        params = found.commands[command].params
        known = {option for param in params for option in (*param.opts, *param.secondary_opts)} | {"--help"}
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest.partition(" && ")[0].partition(" | ")[0]):
            assert option in known, f"flask {group} {command} {option}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for code in re.findall(r"`([^`\n]+)`|^(make [^\n#]+)", page.read_text(), re.MULTILINE):
        for target in re.findall(r"^make ([a-z-]+)", " ".join(code).strip()):
            assert target in targets, target


def test_the_readme_names_every_group_command_and_route(app):
    readme = (ROOT / "README.md").read_text()
    for group in OURS:
        commands = app.cli.commands[group].load()
        assert isinstance(commands, click.Group)
        for command in commands.commands:
            assert f"`{command}`" in readme, f"flask {group} {command}"
    told = set(re.findall(r"/[\w.{}/ -]*\w[\w.{}-]*", readme.replace(" or customerId}", "}")))
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith(("/api/", "/webhooks/", "/.well-known/", "/health", "/metrics")):
            path = re.sub(r"<\w+>", "{}", rule.rule)
            shown = {re.sub(r"\{\w+\}", "{}", text) for text in told}
            last = "/" + path.rsplit("/", 1)[1]
            assert path in shown or last in shown, path


def test_the_readme_names_the_two_commands_first():
    readme = (ROOT / "README.md").read_text()
    assert readme.index("make run") < readme.index("make test") < readme.index("## Reference")
