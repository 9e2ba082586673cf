"""`flask keys …`: the keys that sign licenses."""

import click

from app.extensions import settings
from app.services import keys as service
from cli.output import Answer, Column, Group, Table, confirm, yes_option

keys = Group("keys")


@keys.command("generate", "flask keys generate")
def generate() -> Answer:
    """Write a first key pair; needs no database, refuses to overwrite."""
    key = service.generate()
    return Answer(
        {"kid": key.public.kid, "publicKey": key.public.pem},
        [
            f"✅ Private key: {settings.license_private_key_path} (keep it secret)",
            f"   Public key:  {settings.license_public_key_path} (give it to the instances)",
            f"   Key id:      {key.public.kid}",
        ],
    )


@keys.command("rotate", "flask keys rotate")
@click.option("--now", "at_once", is_flag=True, help="Sign with it at once: after a compromise.")
@yes_option
def rotate(at_once: bool, yes: bool) -> Answer:
    """Make a new signing key; licenses signed with the old one stay valid."""
    present = service.require_rotatable(sign_at_once=at_once).public.kid
    since = "at once, though caches may not have it yet" if at_once else "when every cache may have it"
    confirm(f"Replace the signing key {present}? The new one signs {since}.", yes=yes)
    old, new = service.rotate(sign_at_once=at_once)
    return Answer(
        {"oldKid": old.public.kid, "newKid": new.public.kid},
        [
            f"✅ New key id: {new.public.kid} (published now, signs {'now' if at_once else 'in minutes'})",
            f"   Old key id: {old.public.kid} (published until its last license expires)",
        ],
    )


@keys.command("list", "flask keys list --json")
def list_keys() -> Answer:
    """List every key with the licenses that still need it."""
    names = ("kid", "state", "live_tokens", "last_expires_at", "created_at", "removed_at")
    rows = [{name: row[name] for name in names} for row in service.list_keys()]
    columns = [
        Column("Key ID", "kid", 43, is_id=True), Column("State", "state", 8),
        Column("Live", "live_tokens", 6), Column("Last Expiry", "last_expires_at"),
    ]  # fmt: skip
    return Answer(rows, [Table(columns, rows)])


# An id may begin with a dash.
@keys.command("remove", "flask keys remove 8Xk1… --force", context_settings={"ignore_unknown_options": True})
@click.argument("kid")
@click.option("--force", is_flag=True, help="Even while licenses need it: they are refused from then on.")
@yes_option
def remove(kid: str, force: bool, yes: bool) -> Answer:
    """Take an old key out of service."""
    found = service.require_removable(kid, force=force)
    confirm(f"Remove key {kid}? {found['live_tokens']} live license(s) end with it.", yes=yes)
    service.remove(kid, force=force)
    return Answer({"kid": kid, "removed": True}, [f"✅ Key {kid} removed."])
