"""The state of affairs in numbers: one function, one statement."""

from datetime import datetime

from app.db import Cursor, Row


def select_customer_counts(cur: Cursor, now: datetime) -> list[Row]:
    """Customers by the plan and status of the subscription that counts (entitlements' order)."""
    return cur.all(
        """
        SELECT plan, status, is_live, COUNT(*) AS customers
          FROM (SELECT DISTINCT ON (customer_id) plan, is_live,
                       CASE WHEN is_local AND status = 'trialing' AND trial_ends_at <= %(now)s
                            THEN 'expired' ELSE status END AS status
                  FROM subscriptions
                 CROSS JOIN LATERAL (
                       SELECT stripe_subscription_id IS NULL AS is_local,
                              stripe_subscription_id IS NOT NULL AND plan <> 'unknown'
                              AND status IN ('active', 'trialing', 'past_due') AS is_live) AS kind
                  JOIN customers USING (customer_id)
                 WHERE erased_at IS NULL
                 ORDER BY customer_id, is_live DESC,
                       is_local AND status = 'trialing' AND trial_ends_at > %(now)s DESC,
                       CASE WHEN is_live THEN ARRAY_POSITION(
                            ARRAY['trial', 'starter', 'professional', 'enterprise'], plan::TEXT) END DESC,
                       subscriptions.created_at DESC, subscriptions.id DESC) AS current
         GROUP BY plan, status, is_live
         ORDER BY plan, status
        """,
        {"now": now},
    )


def select_trials_ending(cur: Cursor, now: datetime) -> int:
    """Trials, ours and Stripe's, that end within seven days."""
    return int(
        cur.exactly_one(
            """
            SELECT COUNT(*) AS trials
              FROM subscriptions
             WHERE status = 'trialing'
               AND trial_ends_at BETWEEN %(now)s AND %(now)s + INTERVAL '7 days'
            """,
            {"now": now},
        )["trials"]
    )
