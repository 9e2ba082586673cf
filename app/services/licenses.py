"""Handing out licenses: the current one, a fresh one when the entitlement changed, none when revoked."""

import logging
import uuid
from datetime import datetime, timedelta
from typing import Any, Final

from flask import has_request_context

from app.config import ConfigError
from app.db import ROW_WAIT_SECONDS, Cursor, Row
from app.entitlements import Entitlement, entitle, license_expiry
from app.errors import Forbidden, NotFound, Unauthorized, Unavailable
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
from app.observe import LICENSES
from app.parts import now, parts
from app.queries import customers, licenses, subscriptions
from app.services import audit

REVOCATION_LIST_HOURS: Final = 24
log = logging.getLogger(__name__)


def current_license(customer_id: str, jti: str | None = None) -> Row:
    """The license row to hand out, issued now if need be. `jti` is the license presented, if one was.

    Raises NotFound, Forbidden when the customer's licenses are revoked, and what `check_presented` does.
    """
    with parts().db.statement() as cur:
        found = licenses.select_license_to_hand_out(cur, customer_id, jti)
    found = check_presented(found, customer_id, jti)
    return found if still_says(found) else renew_license(customer_id)


def check_presented(found: Row | None, customer_id: str, jti: str | None) -> Row:
    """What was found about a customer, if it is there and the license presented for it (`jti`) counts.

    Raises Unauthorized or Forbidden for the license, NotFound for the customer.
    """
    if found is None or found["erased_at"]:
        if jti is None:
            raise NotFound(f"There is no customer {customer_id}.")
        raise Unauthorized("This license is not on record.")
    if jti is not None and not found["license_known"]:
        raise Unauthorized("This license is not on record.")
    if found["license_revoked_at"]:
        raise Forbidden("This license is revoked.")
    return found


def hold_customer(cur: Cursor, customer_id: str) -> Row:
    """The row, held against others until the transaction ends; NotFound, also for an erased customer."""
    customer = customers.lock_customer(cur, customer_id)
    if customer is None or customer["erased_at"]:
        raise NotFound(f"There is no customer {customer_id}.")
    return customer


def still_says(current: Row) -> bool:
    """Whether the current license of this row, if it has one, tells what the customer may use now."""
    renews_at = current["renews_at"]
    return renews_at is not None and not current["recheck"] and now() < renews_at


def renew_license(customer_id: str) -> Row:
    """Derive the entitlement anew; keep the current license if it still says the same, else issue one."""
    with parts().db.transaction() as cur:
        parts().db.wait_at_most(cur, ROW_WAIT_SECONDS)
        customer = hold_customer(cur, customer_id)
        if customer["revoked_at"]:
            raise Forbidden("This customer's licenses are revoked. An operator can reinstate them.")
        return issue_license(cur, customer)


def issue_license(cur: Cursor, customer: Row) -> Row:
    """The same inside a transaction that holds the customer; the caller has looked for a revocation."""
    customer_id = customer["customer_id"]
    if customer["erased_at"]:
        raise NotFound(f"There is no customer {customer_id}.")
    current = licenses.select_current_license(cur, customer_id)
    at = now().replace(microsecond=0)
    # Instances refuse to go back to an older `iat`, also when our clock was set back.
    issued_at = max(at, licenses.select_last_issue(cur, customer_id) or at)
    entitlement = entitlement_of(cur, customer, at)
    settings = parts().settings
    expires_at = license_expiry(
        entitlement,
        issued_at,
        validity_days=settings.license_validity_days,
        grace_days=settings.license_grace_days,
    ).replace(microsecond=0)
    claims = license_claims(
        customer,
        entitlement,
        issuer=settings.license_issuer,
        jti=str(uuid.uuid4()),
        issued_at=issued_at,
        expires_at=max(issued_at, expires_at),
    )
    if current:
        # The claims spell unlimited as a number, the row does not.
        same = (fingerprint(claims), entitlement.device_limit)
        if (current["fingerprint"], current["device_limit"]) == same and at < current["renews_at"]:
            licenses.confirm_license(cur, current["jti"])
            return current
        licenses.supersede_license(cur, customer_id, at)
    issued = licenses.insert_license(cur, _row(cur, claims, entitlement))
    LICENSES.labels(issued["plan"]).inc()
    audit.record(
        cur,
        "license.issue",
        customer_id=customer_id,
        subject=issued["jti"],
        before=current and {"jti": current["jti"], "plan": current["plan"]},
        after={name: issued[name] for name in ("jti", "kid", "plan", "status", "expires_at")},
    )
    return issued


def _row(cur: Cursor, claims: dict[str, Any], entitlement: Entitlement) -> dict[str, Any]:
    key = signing_key()
    register_key(cur, key.public)
    issued_at = datetime.fromtimestamp(claims["iat"], now().tzinfo)
    expires_at = datetime.fromtimestamp(claims["exp"], now().tzinfo)
    return {
        "jti": claims["jti"],
        "customer_id": claims["sub"],
        "kid": key.public.kid,
        "plan": claims["plan"],
        "status": entitlement.status,
        "device_limit": entitlement.device_limit,
        "token": sign(claims, key),
        "fingerprint": fingerprint(claims),
        "issued_at": issued_at,
        "renews_at": issued_at + (expires_at - issued_at) / 2,
        "expires_at": expires_at,
    }


def signing_key() -> SigningKey:
    """The key that signs now.

    Without one: Unavailable in a request, ConfigError with the line that names the setting elsewhere.
    """
    try:
        return parts().keyring.signing_key()
    except ConfigError as error:
        if not has_request_context():
            raise
        log.error("licenses cannot be signed: %s", error)
        raise Unavailable("Licenses cannot be signed at the moment.") from None


def register_key(cur: Cursor, key: PublicKey) -> None:
    """Put a signing key on record before the first license that needs it.

    Raises Unavailable for one that was removed: what it signs, nobody would believe.
    """
    if licenses.insert_license_key(cur, key.kid, key.pem):
        audit.record(cur, "key.register", subject=key.kid, after={"kid": key.kid})
    else:
        _refuse_removed(cur, key)


def trusted_signing_key() -> SigningKey:
    """The key that signs now, unless it was taken out of service: then Unavailable."""
    key = signing_key()
    with parts().db.statement() as cur:
        _refuse_removed(cur, key.public)
    return key


def _refuse_removed(cur: Cursor, key: PublicKey) -> None:
    if licenses.select_key_was_removed(cur, key.kid):
        log.error("the signing key was removed; generate another one", extra={"kid": key.kid})
        raise Unavailable("The signing key was taken out of service. Put another one in its place.")


def entitlement_of(cur: Cursor, customer: Row, at: datetime) -> Entitlement:
    """What this customer may use at that time."""
    rows = subscriptions.select_subscriptions(cur, [customer["customer_id"]])
    return entitle(customer, rows, at)


def revoke(customer_id: str, reason: str | None) -> Row:
    """Revoke every license of a customer, and give out none until reinstated. Twice is once."""
    with parts().db.transaction() as cur:
        customer = hold_customer(cur, customer_id)
        if customer["revoked_at"]:
            return customer
        at = now()
        revoked = licenses.revoke_licenses(cur, customer_id, at)
        after = customers.update_revocation(cur, customer_id, revoked_at=at, reason=reason)
        audit.record(
            cur,
            "license.revoke",
            customer_id=customer_id,
            subject=customer_id,
            before={"revoked_at": None},
            after={"revoked_at": at, "reason": reason, "revoked": [row["jti"] for row in revoked]},
        )
        return after


def reinstate(customer_id: str) -> tuple[Row, Row]:
    """Give out licenses again: customer and a new license. The revoked ones stay revoked."""
    with parts().db.transaction() as cur:
        customer = hold_customer(cur, customer_id)
        if customer["revoked_at"]:
            before = {"revoked_at": customer["revoked_at"], "reason": customer["revoke_reason"]}
            customer = customers.update_revocation(cur, customer_id, revoked_at=None, reason=None)
            audit.record(
                cur,
                "license.reinstate",
                customer_id=customer_id,
                subject=customer_id,
                before=before,
                after={"revoked_at": None},
            )
        return customer, issue_license(cur, customer)


def find_key(kid: str) -> PublicKey | None:
    """The public key of this id, if it is on record and was not removed."""

    def look_up(kid: str) -> PublicKey | None:
        with parts().db.statement() as cur:
            pem = licenses.select_license_key(cur, kid)
        return PublicKey(kid, pem) if pem else None

    return parts().keyring.public_key(kid, look_up)


def decode(token: str) -> Token:
    """A token whose form and signature hold. Raises InvalidToken."""
    return read_token(token, find_key, parts().settings.license_issuer)


def verify(token: str) -> tuple[str, Token | None]:
    """The reason code (VALID, SUPERSEDED, REVOKED, EXPIRED, …) and, where one was read, the token."""
    try:
        read = decode(token.strip())
    except InvalidToken as error:
        return error.code, None
    with parts().db.statement() as cur:
        state = licenses.select_license_state(cur, read.jti)
    if state is None or state["customer_id"] != read.customer_id:
        return "MALFORMED", None
    if state["revoked_at"] or state["erased_at"]:
        return "REVOKED", read
    if read.expires_at <= now():
        return "EXPIRED", read
    return "SUPERSEDED" if state["superseded_at"] else "VALID", read


def revocation_list() -> tuple[str, datetime]:
    """The signed list of revoked licenses that have not expired, and when the list ends.

    `iat` is the full hour, so that the same list is the same text and can be cached.
    """
    issued_at = now().replace(minute=0, second=0, microsecond=0)
    expires_at = issued_at + timedelta(hours=REVOCATION_LIST_HOURS)
    with parts().db.statement() as cur:
        revoked = licenses.select_revoked_jtis(cur, now())
    claims = {
        "iss": parts().settings.license_issuer,
        "iat": int(issued_at.timestamp()),
        "exp": int(expires_at.timestamp()),
        "revoked": revoked,
    }
    return sign(claims, trusted_signing_key()), expires_at


def published_keys() -> list[PublicKey]:
    """The signing key, and the older ones that still have a token that has not expired; none was removed."""
    current = signing_key().public
    with parts().db.statement() as cur:
        removed = licenses.select_key_was_removed(cur, current.kid)
        rows = licenses.select_published_keys(cur, current.kid, now())
    older = [PublicKey(row["kid"], row["public_key"]) for row in rows if row["kid"] != current.kid]
    return older if removed else [current, *older]
