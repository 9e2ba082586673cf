"""Subscriptions, Stripe's and trials of our own: one function, one statement."""

from datetime import datetime
from typing import Any

from app.db import Cursor, Row

COLUMNS = """subscription_id, customer_id, stripe_subscription_id, stripe_price_id, plan, billing_interval,
             status, paid, trial_ends_at, current_period_starts_at, current_period_ends_at,
             cancel_at_period_end, cancel_at, ended_at, changes, event_id, fetched_at,
             created_at, updated_at, id"""
OF_CUSTOMER = (
    "customer_id", "email", "name", "company_name", "stripe_customer_id", "max_devices", "retention_days",
    "overage_price", "overage_cap", "revoked_at", "revoke_reason", "tokens_revoked_at", "erased_at",
    "created_at", "updated_at", "license_known", "license_revoked_at",
)  # fmt: skip
OF_SUBSCRIPTION = (
    "id", "subscription_id", "stripe_subscription_id", "plan", "billing_interval", "status", "trial_ends_at",
    "current_period_starts_at", "current_period_ends_at", "cancel_at_period_end", "cancel_at", "ended_at",
    "created_at", "updated_at",
)  # fmt: skip
"""What `find_customer` returns, in this order."""
LISTED = (
    "id", "customer_id", "email", "name", "company_name", "stripe_customer_id", "max_devices",
    "retention_days", "overage_price", "overage_cap", "revoked_at", "created_at", "updated_at",
)  # fmt: skip


def insert_trial(
    cur: Cursor,
    *,
    subscription_id: str,
    customer_id: str,
    plan: str,
    starts_at: datetime,
    ends_at: datetime,
) -> Row:
    """Begin a trial of our own. A second running one raises psycopg2's UniqueViolation."""
    return cur.exactly_one(
        f"""
        INSERT INTO subscriptions (subscription_id, customer_id, plan, status, trial_ends_at,
                                   current_period_starts_at, current_period_ends_at, created_at)
        VALUES (%(subscription_id)s, %(customer_id)s, %(plan)s, 'trialing', %(ends_at)s,
                %(starts_at)s, %(ends_at)s, %(starts_at)s)
     RETURNING {COLUMNS}
        """,
        {
            "subscription_id": subscription_id,
            "customer_id": customer_id,
            "plan": plan,
            "starts_at": starts_at,
            "ends_at": ends_at,
        },
    )


def end_trials(cur: Cursor, customer_id: str, ended_at: datetime) -> list[Row]:
    """End every trial of our own that this customer has; one that ran out keeps its own end."""
    return cur.all(
        f"""
        UPDATE subscriptions
           SET status = 'canceled', ended_at = LEAST(trial_ends_at, %(ended_at)s),
               updated_at = CURRENT_TIMESTAMP
         WHERE customer_id = %(customer_id)s
           AND stripe_subscription_id IS NULL
           AND status = 'trialing'
     RETURNING {COLUMNS}
        """,
        {"customer_id": customer_id, "ended_at": ended_at},
    )


def select_subscriptions(cur: Cursor, customer_ids: list[str]) -> list[Row]:
    """Every subscription these customers ever had."""
    return cur.all(
        f"""
        SELECT {COLUMNS}
          FROM subscriptions
         WHERE customer_id = ANY(%(customer_ids)s)
         ORDER BY id
        """,
        {"customer_ids": customer_ids},
    )


def select_customer_with_subscriptions(
    cur: Cursor, customer_id: str, jti: str | None = None
) -> tuple[Row, list[Row]] | None:
    """A customer and every subscription it ever had; the pair that most readers need, in one round trip.

    Both with what they are described by, and what is known of the license presented (`jti`).
    """
    cur.execute(
        "SELECT * FROM find_customer(%(customer_id)s, %(jti)s)", {"customer_id": customer_id, "jti": jti}
    )
    found = cur.fetchall()
    if not found:
        return None
    customer = dict(zip(OF_CUSTOMER, found[0], strict=False))
    width = len(OF_CUSTOMER)
    rows = [dict(zip(OF_SUBSCRIPTION, row[width:], strict=True), customer_id=customer_id) for row in found]
    return customer, rows if rows[0]["id"] is not None else []


def select_customers_with_current(
    cur: Cursor,
    *,
    at: datetime,
    limit: int | None = None,
    after: int | None = None,
    email: str | None = None,
    q: str | None = None,
    plan: str | None = None,
    status: str | None = None,
) -> list[tuple[Row, Row | None]]:
    """Customers, oldest first, each with the subscription that counts at that time. Erased ones are left out.

    `q` is a part of email, name, company or id; `plan` and `status` are those of the subscription.
    """
    cur.execute(
        f"""
        SELECT {", ".join(f"c.{name}" for name in LISTED)},
               {", ".join(f"s.{name}" for name in OF_SUBSCRIPTION)}
          FROM customers AS c
          LEFT JOIN LATERAL current_subscription(c.customer_id, %(at)s) AS s ON TRUE
         WHERE c.erased_at IS NULL
           AND (%(after)s::BIGINT IS NULL OR c.id > %(after)s)
           AND (%(email)s::TEXT IS NULL OR LOWER(c.email COLLATE "C") = LOWER(%(email)s COLLATE "C"))
           AND (%(q)s::TEXT IS NULL
                OR STRPOS(LOWER(CONCAT_WS(CHR(10), c.email, c.name, c.company_name, c.customer_id)),
                          LOWER(%(q)s)) > 0)
           AND (%(plan)s::TEXT IS NULL OR s.plan = %(plan)s)
           AND (%(status)s::TEXT IS NULL OR s.status = %(status)s)
         ORDER BY c.id
         LIMIT %(limit)s
        """,
        {
            "at": at, "limit": limit, "after": after, "email": email, "q": q, "plan": plan, "status": status,
        },
    )  # fmt: skip
    found: list[tuple[Row, Row | None]] = []
    for row in cur.fetchall():
        customer = dict(zip(LISTED, row, strict=False))
        current = dict(
            zip(OF_SUBSCRIPTION, row[len(LISTED) :], strict=True), customer_id=customer["customer_id"]
        )
        found.append((customer, current if current["id"] is not None else None))
    return found


def select_subscription(cur: Cursor, subscription_id: str) -> Row | None:
    """One subscription by its own id."""
    return cur.one(
        f"SELECT {COLUMNS} FROM subscriptions WHERE subscription_id = %(subscription_id)s",
        {"subscription_id": subscription_id},
    )


def upsert_stripe_subscription(cur: Cursor, subscription: dict[str, Any]) -> Row:
    """Store a subscription as Stripe has it now, at the customer whose it is now; `paid` never goes back,
    an event stays the cause.
    """
    return cur.exactly_one(
        f"""
        INSERT INTO subscriptions AS known (
               subscription_id, stripe_subscription_id, customer_id, stripe_price_id, plan,
               billing_interval, status, paid, trial_ends_at, current_period_starts_at, current_period_ends_at,
               cancel_at_period_end,
               cancel_at, ended_at, created_at, event_id, fetched_at)
        VALUES (%(subscription_id)s, %(subscription_id)s, %(customer_id)s, %(stripe_price_id)s, %(plan)s,
               %(billing_interval)s, %(status)s, %(paid)s, %(trial_ends_at)s, %(current_period_starts_at)s,
               %(current_period_ends_at)s, %(cancel_at_period_end)s, %(cancel_at)s, %(ended_at)s,
               %(created_at)s, %(event_id)s, CURRENT_TIMESTAMP)
            ON CONFLICT (subscription_id) DO UPDATE
           SET customer_id = EXCLUDED.customer_id,
               stripe_price_id = EXCLUDED.stripe_price_id,
               plan = EXCLUDED.plan,
               billing_interval = EXCLUDED.billing_interval,
               status = EXCLUDED.status,
               paid = known.paid OR EXCLUDED.paid,
               trial_ends_at = EXCLUDED.trial_ends_at,
               current_period_starts_at = EXCLUDED.current_period_starts_at,
               current_period_ends_at = EXCLUDED.current_period_ends_at,
               cancel_at_period_end = EXCLUDED.cancel_at_period_end,
               cancel_at = EXCLUDED.cancel_at,
               ended_at = EXCLUDED.ended_at,
               event_id = COALESCE(EXCLUDED.event_id, known.event_id),
               fetched_at = EXCLUDED.fetched_at,
               updated_at = CURRENT_TIMESTAMP
     RETURNING {COLUMNS}
        """,
        subscription,
    )


def count_change(cur: Cursor, subscription_id: str) -> None:
    """A change asked of Stripe had its outcome: the next one is a new one."""
    cur.execute(
        "UPDATE subscriptions SET changes = changes + 1 WHERE subscription_id = %(subscription_id)s",
        {"subscription_id": subscription_id},
    )


def select_stripe_subscriptions(cur: Cursor) -> list[Row]:
    """Every subscription of Stripe's that we know."""
    return cur.all(
        f"SELECT {COLUMNS} FROM subscriptions WHERE stripe_subscription_id IS NOT NULL ORDER BY id"
    )


def end_all(cur: Cursor, customer_id: str, ended_at: datetime) -> None:
    """End whatever an erased customer still has; Stripe has ended its own already."""
    cur.execute(
        """
        UPDATE subscriptions
           SET status = 'canceled', ended_at = COALESCE(ended_at, %(ended_at)s),
               updated_at = CURRENT_TIMESTAMP
         WHERE customer_id = %(customer_id)s
           AND status NOT IN ('canceled', 'incomplete_expired')
        """,
        {"customer_id": customer_id, "ended_at": ended_at},
    )
