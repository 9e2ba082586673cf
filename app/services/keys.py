"""The life of signing keys: generate, rotate, list, remove."""

from app.db import Row
from app.errors import Conflict, NotFound
from app.keyring import key_is_elsewhere, load_signing_key, write_key_files
from app.licenses import SigningKey, generate_private_key, parse_private_key
from app.parts import now, parts
from app.queries import licenses
from app.services import audit
from app.services.licenses import register_key


def generate() -> SigningKey:
    """Write a first pair of key files; needs no database. Raises Conflict rather than overwrite one."""
    settings = parts().settings
    for path in (settings.license_private_key_path, settings.license_public_key_path):
        if path.exists():
            raise Conflict(f"{path} exists already. To replace it without losing licenses: flask keys rotate")
    return write_key_files(settings)


def rotate() -> tuple[SigningKey, SigningKey]:
    """Replace the signing key by a new one: (old, new). Running workers follow within seconds.

    The new public key is on record before the first license that needs it; the old one stays.
    """
    elsewhere = key_is_elsewhere(parts().settings)
    if elsewhere:
        raise Conflict(f"The key comes from {elsewhere}. Put a new one there, then send SIGHUP to gunicorn.")
    pem = generate_private_key()
    new = parse_private_key(pem)
    with parts().db.transaction() as cur:
        parts().db.lock(cur, "rotate keys")
        old = load_signing_key(parts().settings)
        register_key(cur, old.public)
        register_key(cur, new.public)
        audit.record(
            cur,
            "key.rotate",
            subject=new.public.kid,
            before={"kid": old.public.kid},
            after={"kid": new.public.kid},
        )
        write_key_files(parts().settings, pem)
    return old, new


def list_keys() -> list[Row]:
    """Every key that ever signed, with its live licenses and whether it signs now."""
    current = parts().keyring.signing_key().public
    with parts().db.statement() as cur:
        rows = licenses.select_license_keys(cur, now())
    if all(row["kid"] != current.kid for row in rows):
        fresh = {
            "kid": current.kid,
            "created_at": None,
            "removed_at": None,
            "live_tokens": 0,
            "last_expires_at": None,
        }
        rows.insert(0, fresh)
    return [row | {"signs": row["kid"] == current.kid} for row in rows]


def remove(kid: str, *, force: bool) -> None:
    """Take a key out of service. Raises Conflict for the signing key, or while licenses need it.

    Running workers follow within a minute. Whoever holds a license of this key must be given another.
    """
    found = next((row for row in list_keys() if row["kid"] == kid), None)
    if found is None:
        raise NotFound(f"There is no key {kid} on record.")
    if found["signs"]:
        raise Conflict("This key signs now. Rotate first.")
    if found["live_tokens"] and not force:
        raise Conflict(f"{found['live_tokens']} live license(s) need this key. Use --force to end them.")
    with parts().db.transaction() as cur:
        if licenses.remove_license_key(cur, kid):
            licenses.supersede_licenses_of_key(cur, kid, now())
            audit.record(
                cur,
                "key.remove",
                subject=kid,
                before={"live_tokens": found["live_tokens"]},
                after={"live_tokens": 0},
            )
