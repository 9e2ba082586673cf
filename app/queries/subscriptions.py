"""Subscriptions, Stripe's and trials of our own: one function, one statement."""

from datetime import datetime
from typing import Any

from app.db import Cursor, Row
from app.encoding import json_text

COLUMNS = """subscription_id, customer_id, stripe_subscription_id, stripe_price_id, plan, billing_interval,
             amount, currency, details, status, paid, trial_ends_at, current_period_starts_at,
             current_period_ends_at, cancel_at_period_end, cancel_at, ended_at, changes, event_id, fetched_at,
             created_at, updated_at, id"""
CUSTOMER = (
    "customer_id", "email", "name", "company_name", "stripe_customer_id", "max_devices", "retention_days",
    "overage_price", "overage_cap", "revoked_at", "revoke_reason", "tokens_revoked_at", "erased_at",
    "created_at", "updated_at",
)  # fmt: skip
SUBSCRIPTION = (
    "id", "subscription_id", "stripe_subscription_id", "plan", "billing_interval", "status", "trial_ends_at",
    "current_period_starts_at", "current_period_ends_at", "cancel_at_period_end", "cancel_at", "ended_at",
    "created_at", "updated_at",
)  # fmt: skip
OF_CUSTOMER = (*CUSTOMER, "license_known", "license_revoked_at")
"""What `find_customer` returns of the customer, in this order; behind it come SUBSCRIPTION."""
LISTED = (*CUSTOMER, "id")
FETCHED = (
    "customer_id", "stripe_price_id", "plan", "billing_interval", "amount", "currency", "details", "status",
    "trial_ends_at", "current_period_starts_at", "current_period_ends_at", "cancel_at_period_end",
    "cancel_at", "ended_at",
)  # fmt: skip
"""What is replaced at each fetch from Stripe."""


def insert_trial(cur: Cursor, trial: Row, starts_at: datetime, days: int) -> Row:
    """Begin a trial of our own: subscription_id, customer_id, plan. Raises UniqueViolation beside another."""
    return cur.exactly_one(
        f"""
        INSERT INTO subscriptions (subscription_id, customer_id, plan, status, created_at, trial_ends_at,
                                   current_period_starts_at, current_period_ends_at)
        SELECT %(subscription_id)s, %(customer_id)s, %(plan)s, 'trialing', %(starts_at)s, ends_at,
               %(starts_at)s, ends_at
          FROM (SELECT %(starts_at)s + %(days)s * INTERVAL '24 hours' AS ends_at) AS period
     RETURNING {COLUMNS}
        """,
        trial | {"starts_at": starts_at, "days": days},
    )


def end_subscriptions(cur: Cursor, customer_id: str, ended_at: datetime, *, only_trials: bool) -> list[Row]:
    """End what this customer still has here; a trial of our own that ran out keeps its own end."""
    return cur.all(
        f"""
        UPDATE subscriptions
           SET status = 'canceled', updated_at = CURRENT_TIMESTAMP,
               ended_at = COALESCE(ended_at, CASE WHEN stripe_subscription_id IS NULL
                                                  THEN LEAST(trial_ends_at, %(ended_at)s)
                                                  ELSE %(ended_at)s END)
         WHERE customer_id = %(customer_id)s
           AND status NOT IN ('canceled', 'incomplete_expired')
           AND (stripe_subscription_id IS NULL OR NOT %(only_trials)s)
     RETURNING {COLUMNS}
        """,
        {"customer_id": customer_id, "ended_at": ended_at, "only_trials": only_trials},
    )


def select_subscriptions(cur: Cursor, customer_ids: list[str] | None = None) -> list[Row]:
    """Every subscription that these customers, or all, ever had."""
    return cur.all(
        f"""
        SELECT {COLUMNS}
          FROM subscriptions
         WHERE %(customer_ids)s::TEXT[] IS NULL
            OR customer_id = ANY(%(customer_ids)s)
         ORDER BY id
        """,
        {"customer_ids": customer_ids},
    )


def select_customer_with_subscriptions(
    cur: Cursor, customer_id: str, jti: str | None = None
) -> tuple[Row, list[Row]] | None:
    """A customer and every subscription it ever had, in one round trip, as most readers need them.

    Both with what they are described by, and what is known of the license presented (`jti`).
    """
    cur.execute(
        "SELECT * FROM find_customer(%(customer_id)s, %(jti)s)", {"customer_id": customer_id, "jti": jti}
    )
    pairs = [_pair(OF_CUSTOMER, row) for row in cur.fetchall()]
    return (pairs[0][0], [subscription for _, subscription in pairs if subscription]) if pairs else None


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

    `after` is an `id`; `q` a part of email, name, company or id; `plan` and `status` are the subscription's.
    """
    cur.execute(
        f"""
        SELECT {", ".join(f"c.{name}" for name in LISTED)},
               {", ".join(f"s.{name}" for name in SUBSCRIPTION)}
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
    return [_pair(LISTED, row) for row in cur.fetchall()]


def _pair(of_customer: tuple[str, ...], row: tuple[Any, ...]) -> tuple[Row, Row | None]:
    """A customer and a subscription, None without one, of a row that has the columns of both."""
    customer = dict(zip(of_customer, row, strict=False))
    subscription = dict(zip(SUBSCRIPTION, row[len(of_customer) :], strict=True))
    has_one = subscription["id"] is not None
    return customer, subscription | {"customer_id": customer["customer_id"]} if has_one else None


def select_subscription(cur: Cursor, subscription_id: str) -> Row | None:
    """One subscription by its own id."""
    return cur.one(
        f"SELECT {COLUMNS} FROM subscriptions WHERE subscription_id = %(subscription_id)s",
        {"subscription_id": subscription_id},
    )


def upsert_stripe_subscription(cur: Cursor, subscription: Row) -> None:
    """Store a subscription as Stripe has it now, at the customer whose it is now.

    `paid` never goes back, an event stays the cause.
    """
    cur.execute(
        f"""
        INSERT INTO subscriptions AS known (
               subscription_id, stripe_subscription_id, paid, created_at, event_id, fetched_at,
               {", ".join(FETCHED)})
        VALUES (%(subscription_id)s, %(subscription_id)s, %(paid)s, %(created_at)s, %(event_id)s,
               CURRENT_TIMESTAMP, {", ".join(f"%({name})s" for name in FETCHED)})
            ON CONFLICT (subscription_id) DO UPDATE
           SET {", ".join(f"{name} = EXCLUDED.{name}" for name in FETCHED)},
               paid = known.paid OR EXCLUDED.paid,
               event_id = COALESCE(EXCLUDED.event_id, known.event_id),
               fetched_at = EXCLUDED.fetched_at,
               updated_at = CURRENT_TIMESTAMP
        """,
        subscription | {"details": json_text(subscription["details"])},
    )


def count_change(cur: Cursor, subscription_id: str) -> None:
    """A change asked of Stripe had its outcome: the next one is a new one."""
    cur.execute(
        "UPDATE subscriptions SET changes = changes + 1 WHERE subscription_id = %(subscription_id)s",
        {"subscription_id": subscription_id},
    )
