"""Answers kept for `Idempotency-Key`: one function, one statement."""

from datetime import timedelta

from app.db import Cursor, Row

KEPT = timedelta(hours=24)


def try_lock(cur: Cursor, name: str) -> bool:
    """Lock `name` until the transaction ends; False when another session has it."""
    sql = "SELECT PG_TRY_ADVISORY_XACT_LOCK(HASHTEXTEXTENDED(%(name)s, 0)) AS mine"
    return bool(cur.exactly_one(sql, {"name": name})["mine"])


def select_answer(cur: Cursor, **slot: str) -> Row | None:
    """The first answer in this slot (caller, route, key); `status_code` is None while it is worked on."""
    return cur.one(
        """
        SELECT TRIM(body_hash) AS body_hash, status_code, response, created_at
          FROM idempotency_keys
         WHERE caller = %(caller)s AND route = %(route)s AND key = %(key)s
           AND created_at > CURRENT_TIMESTAMP - %(kept)s
        """,
        {**slot, "kept": KEPT},
    )


def upsert_answer(
    cur: Cursor, *, body_hash: str, status_code: int | None, response: str | None, **slot: str
) -> None:
    """Keep an answer; with None, note that one is being worked on. What is kept already stays."""
    cur.execute(
        """
        INSERT INTO idempotency_keys AS known (caller, route, key, body_hash, status_code, response)
        VALUES (%(caller)s, %(route)s, %(key)s, %(body_hash)s, %(status_code)s, %(response)s)
            ON CONFLICT (caller, route, key) DO UPDATE
           SET body_hash = EXCLUDED.body_hash, status_code = EXCLUDED.status_code,
               response = EXCLUDED.response, created_at = CURRENT_TIMESTAMP
         WHERE known.status_code IS NULL OR known.created_at <= CURRENT_TIMESTAMP - %(kept)s
        """,
        {**slot, "body_hash": body_hash, "status_code": status_code, "response": response, "kept": KEPT},
    )


def delete_claim(cur: Cursor, **slot: str) -> None:
    """Forget that a request is at work on a key, unless it has its answer."""
    cur.execute(
        """
        DELETE FROM idempotency_keys
         WHERE caller = %(caller)s AND route = %(route)s AND key = %(key)s AND status_code IS NULL
        """,
        slot,
    )


def delete_old_answers(cur: Cursor) -> None:
    """Forget what is older than a day."""
    cur.execute(
        "DELETE FROM idempotency_keys WHERE created_at < CURRENT_TIMESTAMP - %(kept)s", {"kept": KEPT}
    )


def select_answers_about(cur: Cursor, customer_id: str) -> list[Row]:
    """The answers that contain a customer's id, or were given to it."""
    return cur.all(
        """
        SELECT caller, route, key, status_code, response, created_at
          FROM idempotency_keys
         WHERE caller = 'customer:' || %(customer_id)s
            OR STRPOS(response, %(customer_id)s) > 0
         ORDER BY created_at
        """,
        {"customer_id": customer_id},
    )


def delete_answers_about(cur: Cursor, customer_id: str) -> None:
    """Forget the answers that contain an erased customer's id, or were given to it."""
    cur.execute(
        """
        DELETE FROM idempotency_keys
         WHERE caller = 'customer:' || %(customer_id)s
            OR STRPOS(response, %(customer_id)s) > 0
        """,
        {"customer_id": customer_id},
    )
