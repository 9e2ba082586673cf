"""The life of signing keys: generate, rotate, list, remove."""

from app.context import now
from app.db import Row, lock
from app.errors import Conflict, NotFound
from app.extensions import db, keyring, settings
from app.keyring import key_is_elsewhere, load_signing_key, newest_key, write_key_files
from app.licenses import SigningKey, generate_private_key, parse_private_key
from app.queries import licenses
from app.services.licenses import register_key


def generate() -> SigningKey:
    """Write a first pair of key files; needs no database. Raises Conflict rather than overwrite one."""
    for path in (settings.license_private_key_path, settings.license_public_key_path):
        if path.exists():
            raise Conflict(f"{path} exists already. To replace it without losing licenses: flask keys rotate")
    return write_key_files(settings, generate_private_key())


def require_rotatable(*, sign_at_once: bool) -> SigningKey:
    """The key that signs now. Raises Conflict when it is not in our files, or the next one waits to sign."""
    elsewhere = key_is_elsewhere(settings)
    if elsewhere:
        raise Conflict(f"The key comes from {elsewhere}. Put a new one there, then send SIGHUP to gunicorn.")
    signing = load_signing_key(settings)
    if signing.public.kid != newest_key(settings).public.kid and not sign_at_once:
        raise Conflict("The last rotation is minutes old: its key does not sign yet. Wait, or use --now.")
    return signing


def rotate(*, sign_at_once: bool) -> tuple[SigningKey, SigningKey]:
    """Make a new signing key: (old, new). It is published now, and signs when every cache may have it.

    Running workers follow by themselves. `sign_at_once`: after a compromise.
    """
    pem = generate_private_key()
    new = parse_private_key(pem)
    with db.transaction("key.rotate") as cur:
        lock(cur, "rotate keys", 10)
        old = require_rotatable(sign_at_once=sign_at_once)
        register_key(cur, old.public)
        register_key(cur, new.public)
        write_key_files(settings, pem, keep_previous=not sign_at_once)
    return old, new


def list_keys() -> list[Row]:
    """Every key that ever signed, with its live licenses and `state`: signs, next, verifies or removed."""
    current = keyring.signing_key().public
    newest = current if key_is_elsewhere(settings) else newest_key(settings).public
    with db.statement() as cur:
        rows = licenses.select_license_keys(cur, now())
    for key in (newest, current):
        if all(row["kid"] != key.kid for row in rows):
            fresh = {"created_at": None, "removed_at": None, "live_tokens": 0, "last_expires_at": None}
            rows.insert(0, {"kid": key.kid, **fresh})
    states = {newest.kid: "next", current.kid: "signs"}
    return [
        row | {"state": "removed" if row["removed_at"] else states.get(row["kid"], "verifies")}
        for row in rows
    ]


def require_removable(kid: str, *, force: bool) -> Row:
    """The key's row. Raises Conflict for one that signs or will, or while licenses need it."""
    found = next((row for row in list_keys() if row["kid"] == kid), None)
    if found is None:
        raise NotFound(f"There is no key {kid} on record.")
    if found["state"] in ("signs", "next"):
        raise Conflict("This key signs now, or soon. Rotate first.")
    if found["live_tokens"] and not force:
        raise Conflict(f"{found['live_tokens']} live license(s) need this key. Use --force to end them.")
    return found


def remove(kid: str, *, force: bool) -> None:
    """Take a key out of service; its licenses have to be replaced. Running workers follow within a minute."""
    require_removable(kid, force=force)
    with db.transaction("key.remove") as cur:
        licenses.remove_license_key(cur, kid)
        licenses.supersede_licenses(cur, now(), kid=kid)
