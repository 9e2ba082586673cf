"""Overage: terms, paid periods and the ledger of days; one function, one statement."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final

from app.db import Cursor, Row
from app.encoding import json_text
from app.plans import PAID_PLANS, PLANS

PLAN_PRICES: Final = json_text({name: PLANS[name].overage_cents for name in PAID_PLANS})
"""Per extra device and month."""
DAY_COLUMNS = """customer_id, day, revision, total, included, over, due, price, reports, state, released,
             reason, actor, created_at, bill, subscription_id, invoice_item_id, billed_at"""
EXPORTED: Final = {
    "overage_terms": "cap, price, starts_at, ends_at",
    "overage_periods": "subscription_id, starts_at, ends_at, is_paid, closed_as, closed_at",
}
ALWAYS: Final[Row] = {"starts_at": None, "ends_at": None}


# When it is on


def update_terms(cur: Cursor, customer_id: str, *, cap: int | None, price: int | None, at: datetime) -> None:
    """From now on overage is on up to that cap, which the next license has, or (None) off.

    Two terms never overlap, whatever the clock says. `price`: the customer's own.
    """
    cur.execute(
        """
        WITH ended AS (
             UPDATE overage_terms
                SET ends_at = GREATEST(starts_at, %(at)s)
              WHERE customer_id = %(customer_id)s
                AND ends_at IS NULL
          RETURNING ends_at
        ), begun AS (
             INSERT INTO overage_terms (customer_id, cap, price, starts_at)
             SELECT %(customer_id)s, %(cap)s, %(price)s,
                    GREATEST(%(at)s, (SELECT MAX(ends_at) FROM ended), MAX(ends_at))
               FROM overage_terms
              WHERE customer_id = %(customer_id)s
             HAVING %(cap)s IS NOT NULL
        )
        UPDATE customers
           SET overage_cap = %(cap)s, overage_price = %(price)s, updated_at = CURRENT_TIMESTAMP
         WHERE customer_id = %(customer_id)s
        """,
        {"customer_id": customer_id, "cap": cap, "price": price, "at": at},
    )


def select_overage_customers(cur: Cursor) -> list[str]:
    """Every customer that has or had overage on, erased ones left out."""
    rows = cur.all(
        """
        SELECT customer_id
          FROM customers
         WHERE erased_at IS NULL
           AND customer_id IN (SELECT customer_id FROM overage_terms)
         ORDER BY id
        """
    )
    return [row["customer_id"] for row in rows]


def select_billable_subscriptions(cur: Cursor, customer_id: str) -> list[Row]:
    """Subscriptions at Stripe since overage was first on, live ones first; none of an erased customer."""
    return cur.all(
        """
        SELECT subscription_id, ended_at,
               EXISTS (SELECT 1
                         FROM overage_days
                        WHERE customer_id = %(customer_id)s
                          AND subscription_id = subscriptions.subscription_id) AS is_billed
          FROM subscriptions
          JOIN customers USING (customer_id)
         WHERE customer_id = %(customer_id)s
           AND erased_at IS NULL
           AND stripe_subscription_id IS NOT NULL
           AND status NOT IN ('incomplete', 'incomplete_expired')
           AND COALESCE(ended_at, 'infinity') > (SELECT MIN(starts_at)
                                                   FROM overage_terms
                                                  WHERE customer_id = %(customer_id)s)
         ORDER BY ended_at DESC NULLS FIRST, subscriptions.id DESC
        """,
        {"customer_id": customer_id},
    )


# Paid periods


def insert_periods(cur: Cursor, customer_id: str, invoiced: Sequence[Mapping[str, Any]]) -> None:
    """Periods as Stripe invoiced them, and the present ones as the subscriptions say them, for who asks
    before Stripe invoices again. Known ones stay.
    """
    cur.execute(
        """
        INSERT INTO overage_periods (customer_id, subscription_id, starts_at, ends_at, is_paid)
        SELECT DISTINCT ON (subscription_id, starts_at)
               %(customer_id)s, subscription_id, starts_at, ends_at, is_paid
          FROM (SELECT subscription_id, TO_TIMESTAMP(starts_at) AS starts_at,
                       TO_TIMESTAMP(ends_at) AS ends_at, is_paid, TRUE AS is_invoiced
                  FROM JSON_TO_RECORDSET(%(invoiced)s)
                       AS line (subscription_id TEXT, starts_at BIGINT, ends_at BIGINT, is_paid BOOLEAN)
                 UNION ALL
                SELECT subscription_id, current_period_starts_at, current_period_ends_at, TRUE, FALSE
                  FROM subscriptions
                 WHERE customer_id = %(customer_id)s
                   AND stripe_subscription_id IS NOT NULL
                   AND status IN ('active', 'past_due')
                   AND (trial_ends_at IS NULL OR trial_ends_at <= current_period_starts_at)) AS period
         WHERE starts_at < ends_at
         ORDER BY subscription_id, starts_at, is_invoiced DESC, is_paid DESC
            ON CONFLICT (subscription_id, starts_at) DO NOTHING
        """,
        {"customer_id": customer_id, "invoiced": json_text(invoiced)},
    )


def select_paid_periods(cur: Cursor, customer_id: str) -> list[Row]:
    """What was paid for, oldest first."""
    return cur.all(
        """
        SELECT subscription_id, starts_at, ends_at, is_over, closed_as
          FROM paid_periods
         WHERE customer_id = %(customer_id)s
         ORDER BY starts_at, subscription_id
        """,
        {"customer_id": customer_id},
    )


def close_period(cur: Cursor, period: Row, closed_as: str, at: datetime) -> None:
    """What is reported for its days from now on is late."""
    cur.execute(
        """
        UPDATE overage_periods
           SET closed_as = %(closed_as)s, closed_at = %(at)s
         WHERE subscription_id = %(subscription_id)s
           AND starts_at = %(starts_at)s
        """,
        {**period, "closed_as": closed_as, "at": at},
    )


# Days


def compute_days(cur: Cursor, customer_id: str, since: datetime) -> None:
    """Put each day of a paid period into the ledger whose figures are new, from that time on.

    docs/overage.md says the rules.
    """
    cur.execute(
        """
        INSERT INTO overage_days (customer_id, day, revision, total, included, over, due, price, reports,
                                  released, state)
        WITH periods AS MATERIALIZED (
             SELECT TSTZRANGE(starts_at, ends_at) AS period, closed_as
               FROM paid_periods
              WHERE customer_id = %(customer_id)s
        ), highest AS (
             SELECT DISTINCT ON (day, instance_id) day, instance_id, active_devices, reported_at, id
               FROM usage_reports
              CROSS JOIN LATERAL (SELECT (reported_at AT TIME ZONE 'UTC')::DATE AS day) AS utc
              WHERE customer_id = %(customer_id)s
                AND reported_at >= %(since)s::TIMESTAMPTZ - INTERVAL '8 days'
              ORDER BY day, instance_id, active_devices DESC, reported_at
        ), totals AS (
             SELECT day, SUM(active_devices)::BIGINT AS total,
                    MAX(SUM(active_devices)) OVER (ORDER BY day RANGE BETWEEN INTERVAL '7 days' PRECEDING
                                                   AND INTERVAL '1 day' PRECEDING) AS week_peak,
                    JSONB_AGG(JSONB_BUILD_OBJECT('reportId', id, 'instanceId', instance_id,
                                                 'activeDevices', active_devices, 'reportedAt', reported_at)
                              ORDER BY instance_id) AS reports
               FROM highest
              GROUP BY day
        ), computed AS (
             SELECT day, total, reports, device_limit AS included, GREATEST(total - device_limit, 0) AS over,
                    COALESCE(terms.price, plans.price::INTEGER) / 30 AS price,
                    total > 3 * week_peak AND total > device_limit AS is_unusual,
                    EXISTS (SELECT 1
                              FROM periods
                             WHERE closed_as = 'billed'
                               AND period @> UTC_DAY(day)) AS is_closed
               FROM totals
              CROSS JOIN LATERAL (
                    SELECT plan, status, device_limit
                      FROM licenses
                     WHERE customer_id = %(customer_id)s
                       AND issued_at < UPPER(UTC_DAY(day))
                       AND COALESCE(superseded_at, 'infinity') > LOWER(UTC_DAY(day))
                     ORDER BY device_limit DESC NULLS FIRST, id DESC
                     LIMIT 1) AS license
               JOIN JSON_EACH_TEXT(%(plan_prices)s) AS plans (plan, price) USING (plan)
               JOIN overage_terms AS terms
                 ON terms.customer_id = %(customer_id)s
                AND TSTZRANGE(terms.starts_at, terms.ends_at) @> LOWER(UTC_DAY(day))
              WHERE status IN ('active', 'past_due')
                AND device_limit IS NOT NULL
                AND COALESCE(terms.price, plans.price::INTEGER) IS NOT NULL
                AND LOWER(UTC_DAY(day)) >= %(since)s
                AND EXISTS (SELECT 1 FROM periods WHERE period @> UTC_DAY(day))
                AND (SELECT RANGE_AGG(TSTZRANGE(starts_at, ends_at))
                       FROM overage_terms
                      WHERE customer_id = %(customer_id)s) @> UTC_DAY(day)
        )
        SELECT %(customer_id)s, computed.day, COALESCE(revision, 0) + 1, computed.total, computed.included,
               computed.over, computed.over - COALESCE(billed, 0),
               CASE known.included WHEN computed.included THEN known.price ELSE computed.price END,
               computed.reports, COALESCE(released, FALSE),
               CASE WHEN state = 'held' OR (is_unusual AND released IS NOT TRUE) THEN 'held'
                    WHEN is_closed THEN 'late'
                    ELSE 'open' END
          FROM computed
          LEFT JOIN overage_current AS known
            ON known.customer_id = %(customer_id)s
           AND known.day = computed.day
         WHERE (computed.total, computed.included) IS DISTINCT FROM (known.total, known.included)
           AND computed.total >= COALESCE(known.total, 0) -- fewer: reports were pruned
           AND (computed.over > COALESCE(billed, 0) OR billed IS NULL AND NOT is_closed)
        """,
        {"customer_id": customer_id, "plan_prices": PLAN_PRICES, "since": since},
    )


def put_on_bill(cur: Cursor, customer_id: str, bill: str, subscription_id: str, period: Row | None) -> None:
    """Open days that are wholly inside the period go onto a bill, or (None) every late one."""
    cur.execute(
        """
        UPDATE overage_unbilled
           SET bill = %(bill)s, subscription_id = %(subscription_id)s
         WHERE customer_id = %(customer_id)s
           AND state = CASE WHEN %(starts_at)s IS NULL THEN 'late' ELSE 'open' END
           AND TSTZRANGE(%(starts_at)s, %(ends_at)s) @> UTC_DAY(day)
        """,
        {**(period or ALWAYS), "customer_id": customer_id, "bill": bill, "subscription_id": subscription_id},
    )


def mark_billed(cur: Cursor, customer_id: str, bill: str, invoice_item_id: str | None, at: datetime) -> None:
    """Stripe has this bill (None: it came to nothing, no line was made)."""
    cur.execute(
        """
        UPDATE overage_days
           SET state = 'billed', invoice_item_id = %(invoice_item_id)s, billed_at = %(at)s
         WHERE customer_id = %(customer_id)s
           AND bill = %(bill)s
           AND state <> 'billed'
        """,
        {"customer_id": customer_id, "bill": bill, "invoice_item_id": invoice_item_id, "at": at},
    )


def select_waiting_days(cur: Cursor, customer_id: str | None, states: list[str]) -> list[Row]:
    """Days in one of these states that are on no bill, of one customer or of all, with the currency of the
    subscription that would be billed now.
    """
    return cur.all(
        f"""
        SELECT {DAY_COLUMNS},
               COALESCE((SELECT currency
                           FROM subscriptions
                          WHERE customer_id = overage_unbilled.customer_id
                            AND stripe_subscription_id IS NOT NULL
                            AND status NOT IN ('incomplete', 'incomplete_expired')
                          ORDER BY ended_at DESC NULLS FIRST, id DESC
                          LIMIT 1), 'usd') AS currency
          FROM overage_unbilled
         WHERE (%(customer_id)s::TEXT IS NULL OR customer_id = %(customer_id)s)
           AND state = ANY(%(states)s)
         ORDER BY customer_id, day
        """,
        {"customer_id": customer_id, "states": states},
    )


def select_days(
    cur: Cursor, customer_id: str, *, day: date | None = None, period: Row | None = None, unsent: bool = False
) -> list[Row]:
    """Every revision: of one day, of those wholly inside a period, of those on a bill Stripe may not have."""
    return cur.all(
        f"""
        SELECT {DAY_COLUMNS}
          FROM overage_days
         WHERE customer_id = %(customer_id)s
           AND (%(day)s::DATE IS NULL OR day = %(day)s)
           AND TSTZRANGE(%(starts_at)s, %(ends_at)s) @> UTC_DAY(day)
           AND (NOT %(unsent)s OR bill IS NOT NULL AND state <> 'billed')
         ORDER BY day, revision
        """,
        {**(period or ALWAYS), "customer_id": customer_id, "day": day, "unsent": unsent},
    )


def select_exported(cur: Cursor, table: str, customer_id: str) -> list[Row]:
    """What one of these tables holds about a customer, oldest first."""
    return cur.all(
        f"SELECT {EXPORTED[table]} FROM {table} WHERE customer_id = %(customer_id)s ORDER BY starts_at",
        {"customer_id": customer_id},
    )


def insert_decision(cur: Cursor, customer_id: str, day: date, *, hold: bool, reason: str | None) -> Row:
    """A revision of a day with the same figures that an operator holds or releases."""
    return cur.exactly_one(
        f"""
        INSERT INTO overage_days (customer_id, day, revision, total, included, over, due, price, reports,
                                  released, reason, state)
        SELECT customer_id, day, revision + 1, total, included, over, due, price, reports, NOT %(hold)s,
               %(reason)s,
               CASE WHEN %(hold)s THEN 'held'
                    WHEN EXISTS (SELECT 1
                                   FROM paid_periods
                                  WHERE customer_id = %(customer_id)s
                                    AND closed_as = 'billed'
                                    AND TSTZRANGE(starts_at, ends_at) @> UTC_DAY(day)) THEN 'late'
                    ELSE 'open' END
          FROM overage_current
         WHERE customer_id = %(customer_id)s
           AND day = %(day)s
     RETURNING {DAY_COLUMNS}
        """,
        {"customer_id": customer_id, "day": day, "hold": hold, "reason": reason},
    )


def select_overage_totals(cur: Cursor) -> list[Row]:
    """What will be billed, per customer: device-days and amount, largest amount first."""
    return cur.all(
        """
        SELECT customer_id, SUM(due)::BIGINT AS device_days, SUM(due * price)::BIGINT AS amount
          FROM overage_unbilled
         WHERE state = 'open'
         GROUP BY customer_id
        HAVING SUM(due) > 0
         ORDER BY amount DESC, customer_id
        """
    )
