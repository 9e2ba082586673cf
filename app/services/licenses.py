"""Licenses: the current one, a fresh one when the entitlement changed, none when revoked; their keys."""

import hashlib
import logging
import time
import uuid
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from flask import has_request_context

from app.config import ConfigError
from app.context import now
from app.db import Cursor, Row
from app.entitlements import Entitlement, entitle, license_expiry
from app.errors import Forbidden, NotFound, Unauthorized, Unavailable
from app.extensions import db, keyring, settings
from app.licenses import (
    InvalidToken,
    PublicKey,
    SigningKey,
    Token,
    fingerprint,
    license_claims,
    read_token,
    sign,
)
from app.plans import PLAN_TABLE
from app.queries import customers, licenses, subscriptions

REVOCATION_LIST_HOURS: Final = 24
PUBLIC_KEY_SECONDS: Final = 60
"""How long a removed key may still be taken for a good one."""
log = logging.getLogger(__name__)


def require_serving(
    found: Row | None, customer_id: str, token: Token | None = None, *, renewing: bool = False
) -> Row:
    """The row `found` for a customer, if the license presented (None: an operator asks) serves.

    With a license it has `license_known`, `license_revoked_at` and `tokens_revoked_at`. `renewing`: one that
    is not on record serves too, as it may be younger than the backup that was restored.
    Raises NotFound for a customer that is not there or erased, Unauthorized or Forbidden for the license.
    """
    if token is None:
        if found is None or found["erased_at"]:
            raise NotFound(f"There is no customer {customer_id}.")
        return found
    if found is None or found["erased_at"] or not (found["license_known"] or renewing):
        raise Unauthorized("This license is not on record.")
    if _is_revoked(found, token):
        raise Forbidden("This license is revoked.")
    return found


def _is_revoked(found: Row, token: Token) -> bool:
    """Whether this license was revoked: itself, or not on record and issued before the latest revocation."""
    if found["license_known"]:
        return found["license_revoked_at"] is not None
    return found["tokens_revoked_at"] is not None and token.issued_at <= found["tokens_revoked_at"]


def current_license(customer_id: str, presented: Token | None = None) -> Row:
    """The license row to hand out, issued now if need be.

    Raises NotFound, Forbidden when the customer's licenses are revoked, and what `require_serving` does.
    """
    with db.statement() as cur:
        found = licenses.select_current_license(cur, customer_id, presented.jti if presented else None)
    found = require_serving(found, customer_id, presented, renewing=True)
    if is_current(found) and not is_older(found, presented):
        return found
    with db.transaction() as cur:
        customer = lock_customer_or_404(cur, customer_id)
        if customer["revoked_at"]:
            raise Forbidden("This customer's licenses are revoked. An operator can reinstate them.")
        return issue_license(cur, customer, not_before=presented.issued_at if presented else None)


def is_current(license_row: Row) -> bool:
    """Whether this license, if there is one, still matches the entitlement."""
    renews_at = license_row["renews_at"]
    return (
        renews_at is not None
        and now() < renews_at
        and not license_row["recheck"]
        and license_row["plan_table"] == _plan_table(settings.license_issuer)
    )


@cache
def _plan_table(issuer: str) -> str:
    """Identifies plan table and issuer: a license made from others is not handed out any more."""
    return hashlib.sha256(f"{PLAN_TABLE} {issuer}".encode()).hexdigest()[:16]


def is_older(license_row: Row, presented: Token | None) -> bool:
    """Instances refuse a license that is older than theirs, as the current one is after a restore."""
    return presented is not None and license_row["issued_at"] < presented.issued_at


def lock_customer_or_404(cur: Cursor, customer_id: str) -> Row:
    """The row, locked until the transaction ends; NotFound, also for an erased customer."""
    return require_serving(customers.lock_customer(cur, customer_id), customer_id)


def issue_license(
    cur: Cursor,
    customer: Row,
    entitlement: Entitlement | None = None,
    *,
    at: datetime | None = None,
    not_before: datetime | None = None,
) -> Row:
    """The current license if it matches the entitlement (derived unless given), else a fresh one.

    For a transaction that has locked the customer and looked for a revocation. `at`: the present,
    unless it has been read already; `not_before`: the least `iat`.
    """
    customer_id = customer["customer_id"]
    at = (at or now()).replace(microsecond=0)
    if entitlement is None:
        entitlement = entitle(customer, subscriptions.select_subscriptions(cur, [customer_id]), at)
    current = licenses.lock_current_license(cur, customer_id)
    # Instances refuse to go back to an older `iat`, also when our clock was set back.
    issued_at = max(filter(None, [at, licenses.select_last_issue(cur, customer_id), not_before]))
    validity_days, grace_days = settings.license_validity_days, settings.license_grace_days
    expires_at = license_expiry(entitlement, issued_at, validity_days=validity_days, grace_days=grace_days)
    expires_at = max(issued_at, expires_at.replace(microsecond=0))
    issuer, jti = settings.license_issuer, str(uuid.uuid4())
    claims = license_claims(
        customer, entitlement, issuer=issuer, jti=jti, issued_at=issued_at, expires_at=expires_at
    )
    if current:
        is_same = (
            current["fingerprint"] == fingerprint(claims)
            # The claims spell unlimited as a number, the row does not.
            and current["device_limit"] == entitlement.device_limit
            # A cancellation before the period's end changes no claim, yet shortens the license.
            and current["expires_at"] <= expires_at
        )
        if is_same and at < current["renews_at"] and not (not_before and current["issued_at"] < not_before):
            licenses.confirm_license(cur, current["jti"], _plan_table(issuer))
            return current
        licenses.supersede_licenses(cur, at, customer_id=customer_id)
    key = signing_key()
    register_key(cur, key.public)
    issued = licenses.insert_license(
        cur,
        {
            "jti": jti, "customer_id": customer_id, "kid": key.public.kid, "plan": claims["plan"],
            "status": entitlement.status, "device_limit": entitlement.device_limit,
            "token": sign(claims, key), "fingerprint": fingerprint(claims), "plan_table": _plan_table(issuer),
            "issued_at": issued_at, "renews_at": issued_at + (expires_at - issued_at) / 2,
            "expires_at": expires_at,
        },
    )  # fmt: skip
    from app.observe import LICENSES  # prometheus_client, which most console commands do without

    LICENSES.labels(issued["plan"]).inc()
    return issued


def revoke(customer_id: str, reason: str | None) -> Row:
    """Revoke every license of a customer, and issue none until reinstated. No effect a second time."""
    with db.transaction("license.revoke") as cur:
        customer = lock_customer_or_404(cur, customer_id)
        if customer["revoked_at"]:
            return customer
        at = now()
        licenses.revoke_licenses(cur, customer_id, at)
        revocation = {"revoked_at": at, "tokens_revoked_at": at, "revoke_reason": reason}
        return customers.update_customer(cur, customer | revocation)


def reinstate(customer_id: str) -> tuple[Row, Row, bool]:
    """Issue licenses again: customer, license, and whether it was revoked. Revoked licenses stay revoked."""
    with db.transaction("license.reinstate") as cur:
        customer = lock_customer_or_404(cur, customer_id)
        was_revoked = customer["revoked_at"] is not None
        if was_revoked:
            customer = customers.update_customer(cur, customer | {"revoked_at": None, "revoke_reason": None})
        return customer, issue_license(cur, customer), was_revoked


def signing_key() -> SigningKey:
    """The key that signs now.

    Without one: Unavailable in a request, ConfigError with the line that names the setting elsewhere.
    """
    return _own_keys()[0]


def _own_keys() -> list[SigningKey]:
    try:
        return keyring.keys()
    except ConfigError as error:
        if not has_request_context():
            raise
        log.error("licenses cannot be signed: %s", error)
        raise Unavailable("Licenses cannot be signed now.") from None


def register_key(cur: Cursor, key: PublicKey) -> None:
    """Put a signing key on record before the first license that needs it. Unavailable for a removed one."""
    if not licenses.insert_license_key(cur, key.kid, key.pem):
        _refuse_removed(cur, key)


def trusted_signing_key() -> SigningKey:
    """The key that signs now, unless it was taken out of service: then Unavailable."""
    key = signing_key()
    with db.statement() as cur:
        _refuse_removed(cur, key.public)
    return key


def _refuse_removed(cur: Cursor, key: PublicKey) -> None:
    record = licenses.select_license_key(cur, key.kid)
    if record and record["removed_at"]:
        log.error("the signing key was removed; generate another one", extra={"kid": key.kid})
        raise Unavailable("The signing key was taken out of service. Put another one in its place.")


def find_key(kid: str) -> PublicKey | None:
    """The public key of this id, unless it was removed: from the record, or from the key files."""
    known, seen_at = keyring.public_keys.get(kid, (None, 0.0))
    if known and time.monotonic() - seen_at < PUBLIC_KEY_SECONDS:
        return known
    with db.statement() as cur:
        row = licenses.select_license_key(cur, kid)
    if row:
        found = None if row["removed_at"] else PublicKey(kid, row["public_key"])
    else:  # after a restore the database may not know the latest keys
        found = next((key.public for key in _own_keys() if key.public.kid == kid), None)
    if found is None:
        keyring.public_keys.pop(kid, None)
        return None
    # Keep the parsed object: parsing costs more than a hundred verifications.
    found = known if known and known == found else found
    keyring.public_keys[kid] = (found, time.monotonic())
    return found


def verify(text: str) -> tuple[str, Token | None]:
    """The reason code (VALID, SUPERSEDED, REVOKED, EXPIRED, …) and, where one was read, the token."""
    try:
        token = read_token(text.strip(), find_key, settings.license_issuer)
    except InvalidToken as error:
        return error.code, None
    with db.statement() as cur:
        found = licenses.select_current_license(cur, token.customer_id, token.jti)
    if found is None:
        return "MALFORMED", None
    if found["erased_at"] or _is_revoked(found, token):
        return "REVOKED", token
    if token.expires_at <= now():
        return "EXPIRED", token
    return "VALID" if found["jti"] == token.jti else "SUPERSEDED", token


def revocation_list() -> tuple[str, datetime]:
    """The signed list of revoked licenses that have not expired, and when the list ends.

    `iat` is the full hour, so that the same list is the same text and can be cached.
    """
    issued_at = now().replace(minute=0, second=0, microsecond=0)
    expires_at = issued_at + timedelta(hours=REVOCATION_LIST_HOURS)
    with db.statement() as cur:
        revoked = licenses.select_revoked_jtis(cur, now())
    claims: dict[str, Any] = {
        "iss": settings.license_issuer,
        "iat": int(issued_at.timestamp()),
        "exp": int(expires_at.timestamp()),
        "revoked": revoked,
    }
    return sign(claims, trusted_signing_key()), expires_at


def published_keys() -> list[PublicKey]:
    """The keys on record that are needed, the signing key, and what the key files alone know of."""
    own = [key.public for key in _own_keys()]
    with db.statement() as cur:
        rows = licenses.select_published_keys(cur, now())
        published = {row["kid"]: PublicKey(row["kid"], row["public_key"]) for row in rows}
        for key in own:
            record = licenses.select_license_key(cur, key.kid)
            if record is None or (key == own[0] and not record["removed_at"]):
                published[key.kid] = key
    return list(published.values())
