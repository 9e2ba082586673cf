"""The operators' console: one Click group per noun, registered on the Flask CLI."""

from flask import Flask

from cli.audit import audit
from cli.customer import customer
from cli.db import db_group
from cli.keys import keys
from cli.license import license_
from cli.stripe import stripe_group, webhook
from cli.usage import usage


def register_commands(app: Flask) -> None:
    """Add every group to `flask`."""
    for group in (customer, usage, license_, keys, db_group, stripe_group, webhook, audit):
        app.cli.add_command(group)
