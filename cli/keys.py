"""`flask keys …`: the keys that sign licenses."""

import click

from app.extensions import settings
from app.services import keys as service
from cli.output import Group, as_json, echo_json, echo_rows_json, echo_table, local_time

keys = Group("keys", help="Signing keys: generate, rotate, list, remove.")


@keys.command("generate")
@as_json
def generate(to_json: bool) -> None:
    """Write a first key pair; needs no database, refuses to overwrite.

    \b
    Example:
      flask keys generate
    """
    key = service.generate()
    if to_json:
        echo_json({"kid": key.public.kid, "publicKey": key.public.pem})
        return
    click.echo(f"✅ Private key: {settings.license_private_key_path} (keep it secret)")
    click.echo(f"   Public key:  {settings.license_public_key_path} (give it to the instances)")
    click.echo(f"   Key id:      {key.public.kid}")


@keys.command("rotate")
@as_json
def rotate(to_json: bool) -> None:
    """Sign with a new key from now on; licenses signed with the old one stay valid.

    \b
    Example:
      flask keys rotate
    """
    old, new = service.rotate(sign_at_once=False)
    if to_json:
        echo_json({"oldKid": old.public.kid, "newKid": new.public.kid})
        return
    click.echo(f"✅ New key id: {new.public.kid}")
    click.echo(f"   Old key id: {old.public.kid} (published until its last license expires)")


@keys.command("list")
@as_json
def list_keys(to_json: bool) -> None:
    """List every key with the licenses that still need it.

    \b
    Example:
      flask keys list --json
    """
    rows = service.list_keys()
    if to_json:
        names = ("kid", "state", "live_tokens", "last_expires_at", "created_at", "removed_at")
        echo_rows_json([{name: row[name] for name in names} for row in rows])
        return
    columns = (("Key ID", 43), ("State", 8), ("Live", 6), ("Last Expiry", 0))
    echo_table(
        columns,
        ((r["kid"], r["state"], r["live_tokens"], local_time(r["last_expires_at"])) for r in rows),
    )


@keys.command("remove", context_settings={"ignore_unknown_options": True})  # an id may begin with a dash
@click.argument("kid")
@click.option("--force", is_flag=True, help="Even while licenses need it: they are refused from then on.")
@as_json
def remove(kid: str, force: bool, to_json: bool) -> None:
    """Take an old key out of service.

    \b
    Example:
      flask keys remove 8Xk1… --force
    """
    service.remove(kid, force=force)
    if to_json:
        echo_json({"kid": kid, "removed": True})
    else:
        click.echo(f"✅ Key {kid} removed.")
