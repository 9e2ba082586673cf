"""Stripe's events and what became of them: one function, one statement."""

from datetime import datetime
from typing import Any

from app.db import Cursor, Row

COLUMNS = """event_id, type, object_id, customer_id, stripe_customer_id, outcome, error, note,
             attempts, created_at, received_at, processed_at"""


def select_event(cur: Cursor, event_id: str) -> Row | None:
    """One event."""
    return cur.one(
        f"SELECT {COLUMNS} FROM stripe_events WHERE event_id = %(event_id)s", {"event_id": event_id}
    )


def upsert_event(cur: Cursor, event: dict[str, Any]) -> None:
    """Store an event with its outcome; one that is done stays so. Of an erased customer no id is stored."""
    cur.execute(
        """
          WITH erased AS (
               SELECT 1 FROM customers WHERE customer_id = %(customer_id)s AND erased_at IS NOT NULL)
        INSERT INTO stripe_events AS known (event_id, type, object_id, customer_id, stripe_customer_id,
                                            outcome, error, note, created_at, processed_at)
        SELECT %(event_id)s, %(type)s, CASE WHEN NOT EXISTS (TABLE erased) THEN %(object_id)s END,
               %(customer_id)s, CASE WHEN NOT EXISTS (TABLE erased) THEN %(stripe_customer_id)s END,
               %(outcome)s, %(error)s, %(note)s, %(created_at)s,
               CASE WHEN %(outcome)s <> 'failed' THEN CURRENT_TIMESTAMP END
            ON CONFLICT (event_id) DO UPDATE
           SET outcome = CASE WHEN known.outcome = 'done' THEN 'done' ELSE EXCLUDED.outcome END,
               error = CASE WHEN known.outcome = 'done' THEN NULL ELSE EXCLUDED.error END,
               note = COALESCE(EXCLUDED.note, known.note),
               customer_id = COALESCE(EXCLUDED.customer_id, known.customer_id),
               attempts = known.attempts + 1,
               processed_at = COALESCE(EXCLUDED.processed_at, known.processed_at)
        """,
        event,
    )


def select_events(
    cur: Cursor, *, limit: int | None, failed: bool = False, customer_id: str | None = None
) -> list[Row]:
    """Events, newest first."""
    return cur.all(
        f"""
        SELECT {COLUMNS}
          FROM stripe_events
         WHERE (NOT %(failed)s OR outcome = 'failed')
           AND (%(customer_id)s::TEXT IS NULL OR customer_id = %(customer_id)s)
         ORDER BY received_at DESC, event_id DESC
         LIMIT %(limit)s
        """,
        {"limit": limit, "failed": failed, "customer_id": customer_id},
    )


def forget_stripe_customers(cur: Cursor, customer_id: str, stripe_ids: list[str]) -> None:
    """Take Stripe's ids out of the events of an erased customer; that they came stays."""
    cur.execute(
        """
        UPDATE stripe_events
           SET stripe_customer_id = NULL, object_id = NULL
         WHERE customer_id = %(customer_id)s
            OR stripe_customer_id = ANY(%(stripe_ids)s)
        """,
        {"customer_id": customer_id, "stripe_ids": stripe_ids},
    )


def delete_events(cur: Cursor, older_than: datetime) -> int:
    """Remove events received before a time, but those that failed: how many."""
    cur.execute(
        "DELETE FROM stripe_events WHERE received_at < %(older_than)s AND outcome <> 'failed'",
        {"older_than": older_than},
    )
    return cur.rowcount


def count_events(cur: Cursor, older_than: datetime) -> int:
    """How many `delete_events` would remove."""
    row = cur.exactly_one(
        """
        SELECT COUNT(*) AS count
          FROM stripe_events
         WHERE received_at < %(older_than)s
           AND outcome <> 'failed'
        """,
        {"older_than": older_than},
    )
    return int(row["count"])
