"""Licenses and their keys: one function, one statement."""

from datetime import datetime
from typing import Any

from app.db import Cursor, Row

COLUMNS = """jti::TEXT AS jti, customer_id, kid, plan, status, device_limit, token, fingerprint,
             plan_table, issued_at, renews_at, expires_at, recheck, superseded_at, revoked_at, id"""


def insert_license(cur: Cursor, license_row: dict[str, Any]) -> Row:
    """Put a license on record as the customer's current one."""
    return cur.exactly_one(
        f"""
        INSERT INTO licenses (jti, customer_id, kid, plan, status, device_limit, token, fingerprint,
                              plan_table, issued_at, renews_at, expires_at)
        VALUES (%(jti)s, %(customer_id)s, %(kid)s, %(plan)s, %(status)s, %(device_limit)s, %(token)s,
                %(fingerprint)s, %(plan_table)s, %(issued_at)s, %(renews_at)s, %(expires_at)s)
     RETURNING {COLUMNS}
        """,
        license_row,
    )


def lock_current_license(cur: Cursor, customer_id: str) -> Row | None:
    """The current license, locked until the transaction ends; None without one."""
    return cur.one(
        f"""
        SELECT {COLUMNS}
          FROM licenses
         WHERE customer_id = %(customer_id)s
           AND superseded_at IS NULL
           FOR UPDATE
        """,
        {"customer_id": customer_id},
    )


def select_current_license(cur: Cursor, customer_id: str, jti: str | None = None) -> Row | None:
    """The current license of a customer, its columns None when there is none, and what is known of the
    license presented (`jti`). None: there is no such customer.
    """
    return cur.one(
        "SELECT * FROM find_license(%(customer_id)s, %(jti)s)", {"customer_id": customer_id, "jti": jti}
    )


def select_last_issue(cur: Cursor, customer_id: str) -> datetime | None:
    """The newest `issued_at` of a customer's licenses, superseded and revoked ones included."""
    row = cur.exactly_one(
        "SELECT MAX(issued_at) AS issued_at FROM licenses WHERE customer_id = %(customer_id)s",
        {"customer_id": customer_id},
    )
    return row["issued_at"]  # type: ignore[no-any-return]


def confirm_license(cur: Cursor, jti: str, plan_table: str) -> None:
    """It was compared with the present entitlement, and still matches."""
    cur.execute(
        "UPDATE licenses SET recheck = FALSE, plan_table = %(plan_table)s WHERE jti = %(jti)s",
        {"jti": jti, "plan_table": plan_table},
    )


def supersede_licenses(
    cur: Cursor, at: datetime, *, customer_id: str | None = None, kid: str | None = None
) -> None:
    """What is current of this customer, or of this key, is so no more; it can still be verified.

    The next request issues another.
    """
    cur.execute(
        """
        UPDATE licenses
           SET superseded_at = %(at)s
         WHERE (customer_id = %(customer_id)s OR kid = %(kid)s)
           AND superseded_at IS NULL
        """,
        {"customer_id": customer_id, "kid": kid, "at": at},
    )


def revoke_licenses(cur: Cursor, customer_id: str, at: datetime, *, forget: bool = False) -> None:
    """Revoke every license of this customer that is not revoked yet.

    `forget`: drop tokens and hashes too, which contain the name of an erased customer; the rows stay.
    """
    cur.execute(
        """
        UPDATE licenses
           SET revoked_at = COALESCE(revoked_at, %(at)s), superseded_at = COALESCE(superseded_at, %(at)s),
               token = CASE WHEN NOT %(forget)s THEN token END,
               fingerprint = CASE WHEN %(forget)s THEN REPEAT('0', 64) ELSE fingerprint END
         WHERE customer_id = %(customer_id)s
           AND (revoked_at IS NULL OR %(forget)s)
        """,
        {"customer_id": customer_id, "at": at, "forget": forget},
    )


def select_license_history(cur: Cursor, customer_id: str) -> list[Row]:
    """Every license of a customer, newest first."""
    return cur.all(
        f"""
        SELECT {COLUMNS}
          FROM licenses
         WHERE customer_id = %(customer_id)s
         ORDER BY id DESC
        """,
        {"customer_id": customer_id},
    )


def select_revoked_jtis(cur: Cursor, now: datetime) -> list[str]:
    """Revoked licenses that have not expired: what an instance must not honour offline."""
    rows = cur.all(
        """
        SELECT jti::TEXT AS jti
          FROM licenses
         WHERE revoked_at IS NOT NULL
           AND expires_at > %(now)s
         ORDER BY id
        """,
        {"now": now},
    )
    return [row["jti"] for row in rows]


def insert_license_key(cur: Cursor, kid: str, public_key: str) -> bool:
    """Put a public key on record; False when it is there already."""
    row = cur.one(
        """
        INSERT INTO license_keys (kid, public_key)
        VALUES (%(kid)s, %(public_key)s)
            ON CONFLICT (kid) DO NOTHING
     RETURNING kid
        """,
        {"kid": kid, "public_key": public_key},
    )
    return row is not None


def select_license_key(cur: Cursor, kid: str) -> Row | None:
    """The public key (PEM) of this id, and when it was taken out of service."""
    return cur.one("SELECT public_key, removed_at FROM license_keys WHERE kid = %(kid)s", {"kid": kid})


def select_license_keys(cur: Cursor, now: datetime) -> list[Row]:
    """Every key on record, newest first, with how many of its licenses are live."""
    return cur.all(
        """
        SELECT key.kid, key.created_at, key.removed_at,
               COUNT(license.id) AS live_tokens, MAX(license.expires_at) AS last_expires_at
          FROM license_keys AS key
          LEFT JOIN licenses AS license
            ON license.kid = key.kid
           AND license.expires_at > %(now)s
           AND license.revoked_at IS NULL
         GROUP BY key.kid
         ORDER BY key.created_at DESC, key.kid
        """,
        {"now": now},
    )


def select_published_keys(cur: Cursor, now: datetime) -> list[Row]:
    """The keys that an instance may meet: those with a live token, and those made within the hour."""
    return cur.all(
        """
        SELECT key.kid, key.public_key
          FROM license_keys AS key
         WHERE key.removed_at IS NULL
           AND (key.created_at > %(now)s - INTERVAL '1 hour'
                OR EXISTS (SELECT 1 FROM licenses AS license
                            WHERE license.kid = key.kid AND license.expires_at > %(now)s))
         ORDER BY key.created_at DESC, key.kid
        """,
        {"now": now},
    )


def remove_license_key(cur: Cursor, kid: str) -> None:
    """Take a key out of service: nothing it signed is valid from now on."""
    cur.execute(
        """
        UPDATE license_keys
           SET removed_at = CURRENT_TIMESTAMP
         WHERE kid = %(kid)s
           AND removed_at IS NULL
        """,
        {"kid": kid},
    )
