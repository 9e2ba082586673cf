"""The state of the business in numbers: one function, one statement.

`names` asks for `customers` too, each as `email (id)`; without it that column is NULL.
"""

from datetime import datetime

from app.db import Cursor, Row

_NAMES = """CASE WHEN %(names)s
                 THEN ARRAY_AGG(email || ' (' || customer_id || ')' ORDER BY customers.id)
             END AS customers"""


def select_customer_counts(cur: Cursor, now: datetime, *, names: bool = False) -> list[Row]:
    """Customers by the plan that is granted and the status of the subscription that counts."""
    return cur.all(
        f"""
        SELECT COALESCE(granted_plan, 'trial') AS plan, COALESCE(current.status, 'none') AS status,
               COUNT(*) AS count, {_NAMES}
          FROM customers
          LEFT JOIN LATERAL current_subscription(customer_id, %(now)s) AS current ON TRUE
         WHERE erased_at IS NULL
         GROUP BY 1, 2
         ORDER BY 1, 2
        """,
        {"now": now, "names": names},
    )


def select_revenue(cur: Cursor, *, names: bool = False) -> list[Row]:
    """What is paid per interval, before discounts, by plan, interval, currency and status."""
    return cur.all(
        f"""
        SELECT plan, billing_interval AS interval, currency, status, SUM(amount)::BIGINT AS amount, {_NAMES}
          FROM subscriptions
          JOIN customers USING (customer_id)
         WHERE stripe_subscription_id IS NOT NULL
           AND plan <> 'unknown'
           AND status IN ('active', 'past_due')
           AND amount IS NOT NULL
         GROUP BY plan, billing_interval, currency, status
         ORDER BY plan, billing_interval, currency
        """,
        {"names": names},
    )


def select_attention(cur: Cursor, now: datetime, *, names: bool = False) -> dict[str, Row]:
    """What needs attention, by kind.

    Trials, ours and Stripe's, that end within seven days; subscriptions whose payment failed and was not
    made since; current licenses, of customers not revoked, that end within seven days or have ended.
    """
    rows = cur.all(
        f"""
        SELECT 'trials_ending' AS kind, COUNT(*) AS count, {_NAMES}
          FROM customers
         CROSS JOIN LATERAL current_subscription(customer_id, %(now)s) AS current
         WHERE erased_at IS NULL
           AND current.status = 'trialing'
           AND trial_ends_at <= %(now)s + INTERVAL '7 days'
         UNION ALL
        SELECT 'payments_failed', COUNT(*), {_NAMES}
          FROM subscriptions
          JOIN customers USING (customer_id)
         WHERE erased_at IS NULL
           AND status IN ('past_due', 'unpaid', 'incomplete')
         UNION ALL
        SELECT 'licenses_lapsing', COUNT(*), {_NAMES}
          FROM licenses
          JOIN customers USING (customer_id)
         WHERE superseded_at IS NULL
           AND customers.revoked_at IS NULL
           AND erased_at IS NULL
           AND expires_at <= %(now)s + INTERVAL '7 days'
        """,
        {"now": now, "names": names},
    )
    return {row["kind"]: row for row in rows}
