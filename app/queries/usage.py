"""Usage reports, the instances that send them, and what is summed over them: one function, one statement."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from app.db import Cursor, Row
from app.encoding import json_text
from app.licenses import Token

COLUMNS = "id, customer_id, instance_id, active_devices, total_devices, reported_at, created_at"
WINDOW_FIGURES = """COALESCE(total_reports, 0) AS total_reports, COALESCE(avg_active, 0) AS avg_active,
             COALESCE(peak_active, 0) AS peak_active, COALESCE(current_active, 0) AS current_active,
             COALESCE(current_total, 0) AS current_total"""


def store_usage_reports(
    cur: Cursor, reports: Sequence[Row], presented: Token | None, since: datetime
) -> list[Row]:
    """Store reports, each once: a row per customer that exists, see the function in sql/0005_usage.sql.

    As JSON, which is written ten times as fast as an array per column.
    """
    return cur.all(
        """
        SELECT *
          FROM store_usage_reports(%(reports)s, %(customer_ids)s, %(jti)s, %(issued_at)s, %(since)s)
        """,
        {
            "reports": json_text(reports),
            "customer_ids": list({report["customer_id"] for report in reports}),
            "jti": presented.jti if presented else None,
            "issued_at": presented.issued_at if presented else None,
            "since": since,
        },
    )


def select_usage_reports(
    cur: Cursor,
    customer_id: str,
    *,
    since: datetime | None,
    limit: int | None,
    before: tuple[datetime, int] | None = None,
) -> list[Row]:
    """A page of one customer's reports, newest first; `before` is (reported_at, id) of the last one seen."""
    before_at, before_id = before or ("infinity", 0)
    return cur.all(
        f"""
        SELECT {COLUMNS}
          FROM read_usage_reports(%(customer_id)s, %(since)s, %(before_at)s, %(before_id)s, %(limit)s)
        """,
        {
            "customer_id": customer_id,
            "since": since or "-infinity",
            "limit": limit,
            "before_at": before_at,
            "before_id": before_id,
        },
    )


def select_usage_of(cur: Cursor, customer_id: str, *, jti: str | None, since: datetime) -> Row | None:
    """What a customer may use by its current license, the figures of the contract's section 6 since then,
    and what is known of the license presented (`jti`).

    None: there is no such customer.
    """
    return cur.one(
        f"""
        SELECT %(customer_id)s AS customer_id, plan, device_limit, renews_at, recheck, plan_table,
               erased_at, license_known, license_revoked_at, tokens_revoked_at, {WINDOW_FIGURES}
          FROM find_license(%(customer_id)s, %(jti)s)
          LEFT JOIN read_usage_figures(ARRAY[%(customer_id)s], %(since)s) ON TRUE
        """,
        {"customer_id": customer_id, "jti": jti, "since": since},
    )


def select_usage_overview(
    cur: Cursor, *, since: datetime, limit: int | None, after: int | None = None
) -> list[Row]:
    """A page of customers (or all), oldest first, with what each may use by its current license, and the
    same figures; erased ones are left out.
    """
    return cur.all(
        f"""
        WITH page AS MATERIALIZED (
             SELECT id, customer_id, email, name, company_name, max_devices, retention_days, overage_cap,
                    created_at
               FROM customers
              WHERE erased_at IS NULL
                AND (%(after)s::BIGINT IS NULL OR id > %(after)s)
              ORDER BY id
              LIMIT %(limit)s
        )
        SELECT page.*, current.plan, current.status, current.device_limit, current.renews_at,
               current.recheck, current.plan_table, {WINDOW_FIGURES}
          FROM page
          LEFT JOIN licenses AS current
            ON current.customer_id = page.customer_id
           AND current.superseded_at IS NULL
          LEFT JOIN read_usage_figures((SELECT ARRAY_AGG(customer_id)::TEXT[] FROM page), %(since)s)
               AS figures ON figures.customer_id = page.customer_id
         ORDER BY page.id
        """,
        {"since": since, "limit": limit, "after": after},
    )


def select_usage_days(cur: Cursor, customer_ids: Sequence[str], since: datetime) -> list[Row]:
    """Active devices per customer and UTC day, oldest first; days without a report are left out."""
    return cur.all(
        """
        SELECT customer_id, day, active, reports
          FROM usage_days(%(customer_ids)s, %(since)s)
         ORDER BY customer_id, day
        """,
        {"customer_ids": list(customer_ids), "since": since},
    )


def select_instances_of(cur: Cursor, customer_id: str) -> list[Row]:
    """Every instance of a customer with the newest figures it reported."""
    return cur.all(
        """
        SELECT instance_id, active_devices, total_devices, last_reported_at, retired_at, created_at
          FROM instances
         WHERE customer_id = %(customer_id)s
         ORDER BY instance_id
        """,
        {"customer_id": customer_id},
    )


def select_silent_instances(cur: Cursor, *, customer_id: str | None, before: datetime) -> list[Row]:
    """Instances whose newest report is older, of one customer or (None) of all, without the retired ones."""
    return cur.all(
        """
        SELECT customer_id, instance_id, last_reported_at
          FROM instances
         WHERE (%(customer_id)s::TEXT IS NULL OR customer_id = %(customer_id)s)
           AND retired_at IS NULL
           AND last_reported_at < %(before)s
         ORDER BY last_reported_at, customer_id, instance_id
        """,
        {"customer_id": customer_id, "before": before},
    )


def select_usage_alerts(
    cur: Cursor,
    *,
    customer_id: str | None,
    kind: str | None,
    since: datetime,
    now: datetime,
    in_use_within: timedelta,
    silent_after: timedelta,
) -> list[Row]:
    """What an operator should look at, newest first, derived from the reports; see sql/0005_usage.sql."""
    return cur.all(
        """
        SELECT alert.created_at, customer_id, email, name, company_name, kind, instance_id, active_devices,
               device_limit
          FROM find_usage_alerts(%(customer_id)s, %(since)s, %(now)s, %(in_use_within)s, %(silent_after)s)
               AS alert
          JOIN customers USING (customer_id)
         WHERE erased_at IS NULL
           AND (%(kind)s::TEXT IS NULL OR kind = %(kind)s)
         ORDER BY alert.created_at DESC, customer_id, kind, instance_id
        """,
        {
            "customer_id": customer_id, "kind": kind, "since": since, "now": now,
            "in_use_within": in_use_within, "silent_after": silent_after,
        },
    )  # fmt: skip


def retire_instance(cur: Cursor, customer_id: str, instance_id: str, at: datetime) -> bool:
    """Take an instance out of the current figures; False when there is no such one."""
    cur.execute(
        """
        UPDATE instances
           SET retired_at = COALESCE(retired_at, %(at)s)
         WHERE customer_id = %(customer_id)s
           AND instance_id = %(instance_id)s
        """,
        {"customer_id": customer_id, "instance_id": instance_id, "at": at},
    )
    return cur.rowcount > 0


def ensure_usage_partitions(cur: Cursor) -> bool:
    """Make the partitions of this month, the next, and of reports that wait; False: not possible now."""
    return bool(cur.exactly_one("SELECT ensure_usage_partitions() AS done")["done"])


def select_usage_partitions(cur: Cursor, older_than: datetime) -> list[str]:
    """The months' partitions that lie wholly before, oldest first."""
    rows = cur.all(
        """
        SELECT child.relname
          FROM pg_inherits
          JOIN pg_class AS child ON child.oid = inhrelid
         WHERE inhparent = 'usage_reports'::REGCLASS
           AND child.relname ~ '^usage_reports_[0-9]{4}_[0-9]{2}$'
           AND (TO_DATE(RIGHT(child.relname, 7), 'YYYY_MM') + INTERVAL '1 month') AT TIME ZONE 'UTC'
               <= %(older_than)s
         ORDER BY child.relname
        """,
        {"older_than": older_than},
    )
    return [row["relname"] for row in rows]


def drop_usage_partition(cur: Cursor, partition: str) -> int:
    """Drop a month; how many reports went with it."""
    return int(
        cur.exactly_one("SELECT drop_usage_partition(%(partition)s) AS n", {"partition": partition})["n"]
    )


def delete_usage_reports(cur: Cursor, older_than: datetime) -> int:
    """Delete the reports before then that stand in a month still needed; how many they were."""
    cur.execute("DELETE FROM usage_reports WHERE reported_at < %(older_than)s", {"older_than": older_than})
    return cur.rowcount


def count_usage_reports(cur: Cursor, older_than: datetime) -> int:
    """How many reports lie before then."""
    row = cur.exactly_one(
        "SELECT COUNT(*) AS n FROM usage_reports WHERE reported_at < %(older_than)s",
        {"older_than": older_than},
    )
    return int(row["n"])


def delete_instances(cur: Cursor, older_than: datetime) -> None:
    """Forget the instances whose newest report is gone."""
    cur.execute("DELETE FROM instances WHERE last_reported_at < %(older_than)s", {"older_than": older_than})
