"""Who did what: one function, one statement."""

from typing import Any

from app.db import Cursor, Row
from app.encoding import json_text


def insert_audit(
    cur: Cursor, action: str, *, customer_id: str | None, subject: str, note: dict[str, Any] | None = None
) -> None:
    """Record a request, beside what the trigger records of rows that change.

    Actor and request are those of the transaction. `note` is kept in `after`.
    """
    cur.execute(
        """
        INSERT INTO audit_log (actor, action, customer_id, subject, after, request_id)
        VALUES (CURRENT_SETTING('billing.actor'), %(action)s, %(customer_id)s, %(subject)s, %(note)s,
                NULLIF(CURRENT_SETTING('billing.request_id'), ''))
        """,
        {
            "action": action, "customer_id": customer_id, "subject": subject,
            "note": None if note is None else json_text(note),
        },
    )  # fmt: skip


def select_audit(
    cur: Cursor, *, customer_id: str | None = None, limit: int | None = None, only_refused: bool = False
) -> list[Row]:
    """The newest lines, newest first. `only_refused`: what was asked for in vain, `after` holds why."""
    return cur.all(
        """
        SELECT at, actor, action, customer_id, subject, before, after, request_id
          FROM audit_log
         WHERE (%(customer_id)s::TEXT IS NULL OR customer_id = %(customer_id)s)
           AND (NOT %(only_refused)s OR after ->> 'refused' IS NOT NULL)
         ORDER BY id DESC
         LIMIT %(limit)s
        """,
        {"customer_id": customer_id, "limit": limit, "only_refused": only_refused},
    )


PERSONAL_FIELDS = [
    "email", "name", "company_name", "stripe_customer_id", "reason", "revoke_reason", "refused",
]  # fmt: skip


def erase_audit(cur: Cursor, customer_id: str) -> None:
    """Take the personal fields out of what was kept about a customer; that something happened stays."""
    cur.execute(
        """
        UPDATE audit_log
           SET before = before - %(fields)s::TEXT[], after = after - %(fields)s::TEXT[]
         WHERE customer_id = %(customer_id)s
        """,
        {"customer_id": customer_id, "fields": PERSONAL_FIELDS},
    )
