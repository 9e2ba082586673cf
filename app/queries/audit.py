"""Who did what: one function, one statement."""

from typing import Any

from app.db import Cursor, Row
from app.encoding import json_text


def insert_audit(
    cur: Cursor,
    *,
    actor: str,
    action: str,
    customer_id: str | None,
    subject: str,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    request_id: str | None,
) -> None:
    """Add a line; it commits or vanishes with the change it tells of."""
    cur.execute(
        """
        INSERT INTO audit_log (actor, action, customer_id, subject, before, after, request_id)
        VALUES (%(actor)s, %(action)s, %(customer_id)s, %(subject)s, %(before)s, %(after)s, %(request_id)s)
        """,
        {
            "actor": actor,
            "action": action,
            "customer_id": customer_id,
            "subject": subject,
            "before": None if before is None else json_text(before),
            "after": None if after is None else json_text(after),
            "request_id": request_id,
        },
    )


def select_audit(cur: Cursor, *, customer_id: str | None = None, limit: int | None = None) -> list[Row]:
    """The newest lines, newest first."""
    return cur.all(
        """
        SELECT at, actor, action, customer_id, subject, before, after, request_id
          FROM audit_log
         WHERE (%(customer_id)s::TEXT IS NULL OR customer_id = %(customer_id)s)
         ORDER BY id DESC
         LIMIT %(limit)s
        """,
        {"customer_id": customer_id, "limit": limit},
    )


def erase_audit(cur: Cursor, customer_id: str, fields: list[str]) -> None:
    """Take these fields out of what was kept about a customer; that it happened stays."""
    cur.execute(
        """
        UPDATE audit_log
           SET before = before - %(fields)s::TEXT[], after = after - %(fields)s::TEXT[],
               subject = CASE WHEN action = 'customer.link' THEN customer_id ELSE subject END
         WHERE customer_id = %(customer_id)s
        """,
        {"customer_id": customer_id, "fields": fields},
    )
