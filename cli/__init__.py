"""The operators' console: one Click group per noun, imported when it is used."""

from importlib import import_module
from typing import Any, Final

import click
from flask import Flask

COMMANDS: Final = {
    "customer": (
        "cli.overage:customer",
        "Customers: add, list, change, upgrade, deactivate, explain, erase.",
    ),
    "usage": ("cli.overage:usage", "Usage: what the instances report, against what was bought."),
    "report": ("cli.report:report", "The state of the business on one screen."),
    "license": ("cli.license:license_group", "Licenses: show, history, revoke, reinstate, verify."),
    "keys": ("cli.keys:keys", "Signing keys: generate, rotate, list, remove."),
    "db": ("cli.db:db_group", "Database: migrate, status, backup, restore, shell."),
    "stripe": ("cli.stripe:stripe_group", "Stripe: set up an account, sync with it."),
    "webhook": ("cli.stripe:webhook", "Stripe's events: list, replay, prune."),
    "audit": ("cli.audit:audit", "Who did what, and when."),
    "sandbox": ("cli.sandbox:sandbox", "The local Stripe: its clock, cards and events."),
}
"""Where each command is (the module that adds the last to its group), and its help."""


class LazyCommand(click.Command):
    """A name and a line of help for `flask --help`; the command itself is imported when it is called."""

    def load(self) -> click.Command:
        module, _, attribute = COMMANDS[str(self.name)][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        command.help = command.help or self.help
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            "".join(args).encode()
        except UnicodeEncodeError:  # Python reads other octets as lone surrogates
            raise click.UsageError("The arguments are not UTF-8 text.", parent) from None
        return self.load().make_context(info_name, args, parent, **extra)


def register_commands(app: Flask) -> None:
    """Add every group to `flask`."""
    for name, (_, text) in COMMANDS.items():
        app.cli.add_command(LazyCommand(name, help=text))
