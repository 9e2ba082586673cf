"""The documents tell the truth: what they name exists, and what exists is named."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "keys").glob("*.md")])
OURS = ("customer", "usage", "license", "keys", "db", "stripe", "webhook", "audit")


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page}: {target}"


def test_commands_and_their_options_exist(app):
    text = "\n".join(page.read_text() for page in PAGES)
    for group, command, rest in re.findall(r"flask (\w+) ([a-z][\w-]*)([^\n`|]*)", text):
        if group not in OURS:
            continue
        commands = app.cli.commands[group].load().commands
        assert command in commands, f"flask {group} {command}"
        params = commands[command].params
        known = {option for param in params for option in (*param.opts, *param.secondary_opts)} | {"--help"}
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest.partition(" && ")[0].partition(" | ")[0]):
            assert option in known, f"flask {group} {command} {option}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for code in re.findall(r"`([^`\n]+)`|^(make [^\n#]+)", page.read_text(), re.MULTILINE):
            for target in re.findall(r"^make ([a-z-]+)", " ".join(code).strip()):
                assert target in targets, f"{page}: {target}"


def test_the_readme_names_every_group_command_and_route(app):
    readme = (ROOT / "README.md").read_text()
    for group in OURS:
        for command in app.cli.commands[group].load().commands:
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
