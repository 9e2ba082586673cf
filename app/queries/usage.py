"""Usage reports, the instances that send them, and what is summed over them: one function, one statement."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from app.db import Cursor, Row
from app.encoding import json_text

COLUMNS = "id, customer_id, instance_id, active_devices, total_devices, reported_at, created_at"
REPORT = """customer_id TEXT, instance_id TEXT, active_devices INTEGER, total_devices INTEGER,
            reported_at TIMESTAMPTZ"""
WINDOW_FIGURES = """COALESCE(total_reports, 0) AS total_reports, COALESCE(avg_active, 0) AS avg_active,
             COALESCE(peak_active, 0) AS peak_active, COALESCE(current_active, 0) AS current_active,
             COALESCE(current_total, 0) AS current_total"""


def insert_usage_report(cur: Cursor, report: dict[str, Any]) -> Row | None:
    """Store a report unless its key is taken, or the license presented for it (`jti`) does not count.

    The row tells also what was known before (license, previous report, threshold) and what the other
    instances use. `id` is None when nothing was stored; no row at all when there is no such customer.
    """
    return cur.one(
        """
        SELECT *, %(customer_id)s AS customer_id
          FROM report_usage(%(customer_id)s, %(instance_id)s, %(active_devices)s, %(total_devices)s,
                            %(reported_at)s, %(jti)s, %(since)s)
        """,
        report,
    )


def insert_usage_reports(cur: Cursor, reports: Sequence[Row]) -> list[Row]:
    """Store many reports; the rows that were new. A key that is taken, or stands twice, is stored once.

    In key order, so that two batches at once never wait for each other in a ring. As JSON, which is written
    ten times as fast as an array per column.
    """
    return cur.all(
        f"""
        INSERT INTO usage_reports (customer_id, instance_id, active_devices, total_devices, reported_at)
        SELECT customer_id, instance_id, active_devices, total_devices, reported_at
          FROM ROWS FROM (JSON_TO_RECORDSET(%(reports)s) AS ({REPORT})) WITH ORDINALITY
         ORDER BY customer_id, instance_id, reported_at, ordinality
            ON CONFLICT (customer_id, instance_id, reported_at) DO NOTHING
     RETURNING id, customer_id, instance_id, active_devices, total_devices, reported_at
        """,
        {"reports": json_text(reports)},
    )


def upsert_instances(cur: Cursor, newest: Sequence[Row]) -> None:
    """Remember these reports, one per instance, unless a newer one is known; in key order again."""
    cur.execute(
        f"""
        INSERT INTO instances AS known (customer_id, instance_id, active_devices, total_devices,
                                        last_reported_at)
        SELECT customer_id, instance_id, active_devices, total_devices, reported_at
          FROM JSON_TO_RECORDSET(%(newest)s) AS report ({REPORT})
         ORDER BY customer_id, instance_id
            ON CONFLICT (customer_id, instance_id) DO UPDATE
           SET active_devices = EXCLUDED.active_devices,
               total_devices = EXCLUDED.total_devices,
               last_reported_at = EXCLUDED.last_reported_at
         WHERE EXCLUDED.last_reported_at > known.last_reported_at
        """,
        {"newest": json_text(newest)},
    )


def select_usage_reports_by_key(cur: Cursor, keys: Sequence[Row]) -> list[Row]:
    """The stored reports with these (customer, instance, time) keys."""
    return cur.all(
        f"""
        SELECT {COLUMNS}
          FROM usage_reports
         WHERE (customer_id, instance_id, reported_at) IN (
               SELECT *
                 FROM UNNEST(%(customer_id)s::TEXT[], %(instance_id)s::TEXT[],
                             %(reported_at)s::TIMESTAMPTZ[]))
        """,
        _columns(keys),
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


def select_usage_of(
    cur: Cursor, customer_id: str, *, jti: str | None, since: datetime, silent_before: datetime
) -> Row | None:
    """What a customer may use by its current license, the figures of the contract's section 6 since then,
    whether any instance is silent, and what is known of the license presented (`jti`).

    None: there is no such customer.
    """
    return cur.one(
        f"""
        SELECT %(customer_id)s AS customer_id, plan, device_limit, renews_at, recheck, plan_table,
               erased_at, license_known, license_revoked_at, tokens_revoked_at, {WINDOW_FIGURES},
               EXISTS (SELECT 1
                         FROM instances
                        WHERE customer_id = %(customer_id)s
                          AND last_reported_at < %(silent_before)s) AS any_silent
          FROM find_license(%(customer_id)s, %(jti)s)
          LEFT JOIN read_usage_figures(ARRAY[%(customer_id)s], %(since)s) ON TRUE
        """,
        {"customer_id": customer_id, "jti": jti, "since": since, "silent_before": silent_before},
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


def select_usage_days(cur: Cursor, customer_id: str, since: datetime) -> list[Row]:
    """Active devices per UTC day of one customer, oldest first; days without a report are left out."""
    return cur.all(
        """
        SELECT day, SUM(active)::BIGINT AS active
          FROM (SELECT (reported_at AT TIME ZONE 'UTC')::DATE AS day, MAX(active_devices) AS active
                  FROM usage_reports
                 WHERE customer_id = %(customer_id)s
                   AND reported_at >= %(since)s
                 GROUP BY instance_id, day) AS instance_days
         GROUP BY day
         ORDER BY day
        """,
        {"customer_id": customer_id, "since": since},
    )


def select_instances_of(cur: Cursor, customer_id: str) -> list[Row]:
    """Every instance of a customer with the newest figures it reported."""
    return cur.all(
        """
        SELECT instance_id, active_devices, total_devices, last_reported_at, created_at
          FROM instances
         WHERE customer_id = %(customer_id)s
         ORDER BY instance_id
        """,
        {"customer_id": customer_id},
    )


def select_silent_instances(cur: Cursor, *, customer_id: str | None, before: datetime) -> list[Row]:
    """Instances whose newest report is older, of one customer or (None) of all.

    `select_usage_of` tells whether there are any, by the same condition.
    """
    return cur.all(
        """
        SELECT customer_id, instance_id, last_reported_at
          FROM instances
         WHERE (%(customer_id)s::TEXT IS NULL OR customer_id = %(customer_id)s)
           AND last_reported_at < %(before)s
         ORDER BY last_reported_at, customer_id, instance_id
        """,
        {"customer_id": customer_id, "before": before},
    )


def select_usage_standings(cur: Cursor, customer_ids: Sequence[str], since: datetime) -> list[Row]:
    """What these customers use (newest report of each instance since then) and may use, and the threshold
    each is at; erased ones are left out.
    """
    return cur.all(
        """
        SELECT customer.customer_id, current.device_limit, current.renews_at, current.recheck, current.plan_table,
               COALESCE(usage_levels.level, 0) AS level, usage_levels.device_limit AS level_limit,
               COALESCE(used.active, 0) AS active, used.instances
          FROM customers AS customer
          LEFT JOIN licenses AS current
            ON current.customer_id = customer.customer_id
           AND current.superseded_at IS NULL
          LEFT JOIN usage_levels ON usage_levels.customer_id = customer.customer_id
         CROSS JOIN LATERAL (
               SELECT SUM(active_devices)::BIGINT AS active, COUNT(*) AS instances
                 FROM instances
                WHERE instances.customer_id = customer.customer_id
                  AND last_reported_at >= %(since)s) AS used
         WHERE customer.customer_id = ANY(%(customer_ids)s)
           AND erased_at IS NULL
         ORDER BY customer.customer_id
        """,
        {"customer_ids": customer_ids, "since": since},
    )


def select_instances_by_key(cur: Cursor, keys: Sequence[Row]) -> list[Row]:
    """These instances as they are known."""
    return cur.all(
        """
        SELECT customer_id, instance_id, active_devices, last_reported_at
          FROM instances
         WHERE (customer_id, instance_id) IN (
               SELECT * FROM UNNEST(%(customer_id)s::TEXT[], %(instance_id)s::TEXT[]))
        """,
        _columns(keys),
    )


def lock_usage_level(cur: Cursor, customer_id: str, device_limit: int | None) -> Row:
    """The threshold a customer is at, held against others until the transaction ends; at first 0."""
    return cur.exactly_one(
        """
        INSERT INTO usage_levels AS known (customer_id, level, device_limit)
        VALUES (%(customer_id)s, 0, %(device_limit)s)
            ON CONFLICT (customer_id) DO UPDATE
           SET level = known.level
     RETURNING level, device_limit, changed_at
        """,
        {"customer_id": customer_id, "device_limit": device_limit},
    )


def update_usage_level(cur: Cursor, customer_id: str, *, level: int, device_limit: int | None) -> None:
    """Move a customer to this threshold (0, 80, 100)."""
    cur.execute(
        """
        UPDATE usage_levels
           SET level = %(level)s, device_limit = %(device_limit)s, changed_at = CURRENT_TIMESTAMP
         WHERE customer_id = %(customer_id)s
        """,
        {"customer_id": customer_id, "level": level, "device_limit": device_limit},
    )


def insert_usage_alert(
    cur: Cursor,
    customer_id: str,
    *,
    kind: str,
    instance_id: str | None,
    active_devices: int,
    device_limit: int | None,
) -> None:
    """Put an observation on record, of one instance or (None) of all together."""
    cur.execute(
        """
        INSERT INTO usage_alerts (customer_id, instance_id, kind, active_devices, device_limit)
        VALUES (%(customer_id)s, %(instance_id)s, %(kind)s, %(active_devices)s, %(device_limit)s)
        """,
        {
            "customer_id": customer_id,
            "instance_id": instance_id,
            "kind": kind,
            "active_devices": active_devices,
            "device_limit": device_limit,
        },
    )


def select_usage_alerts(cur: Cursor, *, customer_id: str | None, since: datetime | None) -> list[Row]:
    """What went on record since then, newest first."""
    return cur.all(
        """
        SELECT created_at, customer_id, instance_id, kind, active_devices, device_limit
          FROM usage_alerts
         WHERE (%(customer_id)s::TEXT IS NULL OR customer_id = %(customer_id)s)
           AND (%(since)s::TIMESTAMPTZ IS NULL OR created_at >= %(since)s)
         ORDER BY id DESC
        """,
        {"customer_id": customer_id, "since": since},
    )


def ensure_usage_partition(cur: Cursor, moment: datetime) -> None:
    """Make sure that the month of `moment` has its partition."""
    cur.execute("SELECT ensure_usage_partition(%(moment)s)", {"moment": moment})


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


def delete_instances(cur: Cursor, older_than: datetime) -> None:
    """Forget the instances whose newest report is gone."""
    cur.execute("DELETE FROM instances WHERE last_reported_at < %(older_than)s", {"older_than": older_than})


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows as one array per column, for UNNEST: unlike of JSON, PostgreSQL knows how many rows it will be."""
    return {name: [row[name] for row in rows] for name in rows[0]}
