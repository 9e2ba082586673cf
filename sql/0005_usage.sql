-- What the instances report. One partition a month (UTC), so that old months leave by DROP TABLE.

-- The customer is a foreign key of `instances` alone, which has each one that reported: checking it for every report
-- took a third of a batch's time.
CREATE TABLE usage_reports (
    id             BIGSERIAL    NOT NULL,
    customer_id    VARCHAR(255) NOT NULL,
    instance_id    VARCHAR(255) NOT NULL CHECK (LENGTH(instance_id) BETWEEN 1 AND 100),
    active_devices INTEGER      NOT NULL CHECK (active_devices >= 0),
    total_devices  INTEGER      NOT NULL CHECK (total_devices <= 10000000),
    reported_at    TIMESTAMPTZ  NOT NULL,
    created_at     TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CHECK (active_devices <= total_devices),
    PRIMARY KEY (customer_id, instance_id, reported_at)
) PARTITION BY RANGE (reported_at);

-- History, newest first, and the sums over it, without a visit to the table.
CREATE INDEX usage_reports_history_idx ON usage_reports (customer_id, reported_at DESC, id DESC)
     INCLUDE (instance_id, active_devices, total_devices);

-- Takes what no month's partition takes, so that a missing one never loses a report.
CREATE TABLE usage_reports_default PARTITION OF usage_reports DEFAULT;

-- Makes the partitions of this month, the next one, and every month whose reports wait in the default partition.
-- False when that is not possible now (a backup reads the table, another session is at it).
CREATE FUNCTION ensure_usage_partitions() RETURNS BOOLEAN LANGUAGE plpgsql SET lock_timeout = '200ms' AS $$
DECLARE
    month       TIMESTAMP;
    partition   TEXT;
    lower_bound TEXT;
    upper_bound TEXT;
BEGIN
    IF NOT PG_TRY_ADVISORY_XACT_LOCK(HASHTEXT('usage_partitions')) THEN RETURN FALSE; END IF;
    -- Nothing may be on its way into the default partition while a part of that is moved.
    LOCK TABLE ONLY usage_reports IN SHARE ROW EXCLUSIVE MODE;
    LOCK TABLE usage_reports_default IN ACCESS EXCLUSIVE MODE;
    FOR month IN
        SELECT DATE_TRUNC('month', CURRENT_TIMESTAMP AT TIME ZONE 'UTC') + number * INTERVAL '1 month'
          FROM GENERATE_SERIES(0, 1) AS number
         UNION
        SELECT DATE_TRUNC('month', reported_at AT TIME ZONE 'UTC')
          FROM usage_reports_default
    LOOP
        partition := 'usage_reports_' || TO_CHAR(month, 'YYYY_MM');
        CONTINUE WHEN TO_REGCLASS(partition) IS NOT NULL;
        lower_bound := TO_CHAR(month, 'YYYY-MM-DD') || ' 00:00:00+00';
        upper_bound := TO_CHAR(month + INTERVAL '1 month', 'YYYY-MM-DD') || ' 00:00:00+00';
        EXECUTE FORMAT('CREATE TABLE %I (LIKE usage_reports INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition);
        EXECUTE FORMAT('WITH moved AS (DELETE FROM usage_reports_default'
                       ' WHERE reported_at >= %L AND reported_at < %L RETURNING *)'
                       ' INSERT INTO %I SELECT * FROM moved', lower_bound, upper_bound, partition);
        EXECUTE FORMAT('ALTER TABLE usage_reports ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                       partition, lower_bound, upper_bound);
    END LOOP;
    RETURN TRUE;
EXCEPTION
    WHEN lock_not_available THEN RETURN FALSE;
END
$$;

-- Counts before it drops: the lock that shuts out everybody else is held for a moment only.
CREATE FUNCTION drop_usage_partition(partition TEXT) RETURNS BIGINT LANGUAGE plpgsql
   SET lock_timeout = '10s' AS $$
DECLARE
    reports BIGINT;
BEGIN
    EXECUTE FORMAT('SELECT COUNT(*) FROM %I', partition) INTO reports;
    EXECUTE FORMAT('DROP TABLE %I', partition);
    RETURN reports;
END
$$;

-- The newest report of each instance: what is in use now, which ones are silent.
CREATE TABLE instances (
    customer_id          VARCHAR(255) NOT NULL REFERENCES customers (customer_id),
    instance_id          VARCHAR(255) NOT NULL,
    active_devices       INTEGER      NOT NULL,
    total_devices        INTEGER      NOT NULL,
    last_reported_at     TIMESTAMPTZ  NOT NULL,
    previous_reported_at TIMESTAMPTZ,
    retired_at           TIMESTAMPTZ,
    created_at           TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (customer_id, instance_id)
) WITH (fillfactor = 80);

COMMENT ON COLUMN instances.previous_reported_at IS 'what last_reported_at was before the newest report';
COMMENT ON COLUMN instances.retired_at IS 'from here on in no current figure; NULL again with the next report';

CREATE TYPE incoming_report AS (
    position INTEGER, id BIGINT, customer_id TEXT, instance_id TEXT, active_devices INTEGER, total_devices INTEGER,
    reported_at TIMESTAMPTZ, created_at TIMESTAMPTZ, status INTEGER
);

-- Stores reports (a JSON array of rows) and returns a row per customer: its current license, what is known of the
-- license presented with the request (NULL: none was), the devices in use since `since`, and of each report its
-- position in `given`, id and status: 201 new, 200 stored before, 409 stored before with other figures, 503 deleted
-- meanwhile. `created_at` and `last_reported_at` are those of a single report; `unplaced`: some went to the default
-- partition. Nothing is stored for an erased customer, or by a license that does not serve.
-- One statement after the other, so that each sees what other sessions have committed by then; in key order, so that
-- no two sessions wait for each other. The planner does not know how few rows it will find: without these settings it
-- makes a new plan for each call, or reads tables of some hundred rows as a whole, which doubles the time.
CREATE FUNCTION store_usage_reports(
    given JSON, customer_ids TEXT[], the_license UUID, issued TIMESTAMPTZ, since TIMESTAMPTZ
) RETURNS TABLE (
    customer_id VARCHAR, erased_at TIMESTAMPTZ, tokens_revoked_at TIMESTAMPTZ, license_known BOOLEAN,
    license_revoked_at TIMESTAMPTZ, jti TEXT, device_limit INTEGER, issued_at TIMESTAMPTZ, renews_at TIMESTAMPTZ,
    recheck BOOLEAN, plan_table CHAR(16), in_use BIGINT, positions INTEGER[], ids BIGINT[], statuses INTEGER[],
    created_at TIMESTAMPTZ, last_reported_at TIMESTAMPTZ, unplaced BOOLEAN
) LANGUAGE plpgsql SET plan_cache_mode = 'force_generic_plan' SET random_page_cost = 1.1
   SET lock_timeout = '2s' AS $$
#variable_conflict use_column
DECLARE
    reports  incoming_report[];
    single   incoming_report;
    stored   INTEGER;
    unplaced BOOLEAN;
BEGIN
    reports := ARRAY(
        SELECT (ordinality - 1, NEXTVAL('usage_reports_id_seq'), customer_id, instance_id, active_devices,
                total_devices, reported_at, CURRENT_TIMESTAMP, 201)::incoming_report
          FROM ROWS FROM (JSON_TO_RECORDSET(given) AS (
                   customer_id TEXT, instance_id TEXT, active_devices INTEGER, total_devices INTEGER,
                   reported_at TIMESTAMPTZ)) WITH ORDINALITY
         WHERE customer_id IN (
               SELECT customer.customer_id
                 FROM customers AS customer
                 LEFT JOIN licenses AS presented
                   ON presented.jti = the_license
                  AND presented.customer_id = customer.customer_id
                WHERE customer.customer_id = ANY(customer_ids)
                  AND erased_at IS NULL
                  AND CASE WHEN the_license IS NULL THEN TRUE
                           WHEN presented.jti IS NULL THEN COALESCE(tokens_revoked_at < issued, TRUE)
                           ELSE presented.revoked_at IS NULL END)
         ORDER BY customer_id, instance_id, reported_at, ordinality);
    WITH stored AS (
         INSERT INTO usage_reports (id, customer_id, instance_id, active_devices, total_devices, reported_at)
         SELECT id, customer_id, instance_id, active_devices, total_devices, reported_at
           FROM UNNEST(reports)
             ON CONFLICT (customer_id, instance_id, reported_at) DO NOTHING
      RETURNING customer_id, instance_id, active_devices, total_devices, reported_at, tableoid
    ), newest AS (
         INSERT INTO instances AS known (customer_id, instance_id, active_devices, total_devices, last_reported_at)
         SELECT DISTINCT ON (customer_id, instance_id) customer_id, instance_id, active_devices, total_devices,
                reported_at
           FROM stored
          ORDER BY customer_id, instance_id, reported_at DESC
             ON CONFLICT (customer_id, instance_id) DO UPDATE
            SET active_devices = EXCLUDED.active_devices,
                total_devices = EXCLUDED.total_devices,
                last_reported_at = EXCLUDED.last_reported_at,
                previous_reported_at = known.last_reported_at,
                retired_at = NULL
          WHERE EXCLUDED.last_reported_at > known.last_reported_at
    )
    SELECT COUNT(*), COALESCE(BOOL_OR(tableoid = 'usage_reports_default'::REGCLASS), FALSE)
      INTO stored, unplaced
      FROM stored;
    IF stored < CARDINALITY(reports) THEN
        reports := ARRAY(
            SELECT (position, COALESCE(found.id, report.id), customer_id, instance_id, active_devices, total_devices,
                    reported_at, COALESCE(found.created_at, CURRENT_TIMESTAMP),
                    CASE WHEN found.id IS NULL THEN 503
                         WHEN found.id = report.id THEN 201
                         WHEN found.is_same THEN 200
                         ELSE 409 END)::incoming_report
              FROM UNNEST(reports) AS report
              LEFT JOIN LATERAL (
                   SELECT id, created_at, (active_devices, total_devices)
                          = (report.active_devices, report.total_devices) AS is_same
                     FROM usage_reports
                    WHERE customer_id = report.customer_id
                      AND instance_id = report.instance_id
                      AND reported_at = report.reported_at
                    LIMIT 1) AS found ON TRUE);
    END IF;
    single := reports[1];
    RETURN QUERY
    SELECT customer.customer_id, erased_at, tokens_revoked_at, presented.jti IS NOT NULL, presented.revoked_at,
           current.jti::TEXT, current.device_limit, current.issued_at, current.renews_at,
           current.recheck, current.plan_table, COALESCE(used.active, 0), outcomes.positions, outcomes.ids,
           outcomes.statuses, single.created_at, used.last_reported_at, unplaced
      FROM customers AS customer
      LEFT JOIN licenses AS presented
        ON presented.jti = the_license
       AND presented.customer_id = customer.customer_id
      LEFT JOIN licenses AS current
        ON current.customer_id = customer.customer_id
       AND current.superseded_at IS NULL
      LEFT JOIN (
           SELECT customer_id, ARRAY_AGG(position) AS positions, ARRAY_AGG(id) AS ids, ARRAY_AGG(status) AS statuses
             FROM UNNEST(reports)
            GROUP BY customer_id) AS outcomes ON outcomes.customer_id = customer.customer_id
     CROSS JOIN LATERAL (
           SELECT SUM(active_devices) FILTER (WHERE retired_at IS NULL AND last_reported_at >= since)::BIGINT AS active,
                  MAX(CASE WHEN single.status = 201 AND single.reported_at = last_reported_at
                           THEN previous_reported_at
                           ELSE last_reported_at END) FILTER (WHERE instance_id = single.instance_id)
                  AS last_reported_at
             FROM instances
            WHERE customer_id = customer.customer_id) AS used
     WHERE customer.customer_id = ANY(customer_ids);
END
$$;

-- The months that a plan made once need not open are found when it starts to run. PostgreSQL does not count on that
-- when it compares the costs, and would go on planning each time: hence the setting.
CREATE FUNCTION read_usage_reports(
    the_customer TEXT, since TIMESTAMPTZ, before_at TIMESTAMPTZ, before_id BIGINT, page_size INTEGER
) RETURNS SETOF usage_reports LANGUAGE plpgsql STABLE SET plan_cache_mode = 'force_generic_plan' AS $$
BEGIN
    RETURN QUERY
    SELECT *
      FROM usage_reports
     WHERE customer_id = the_customer
       AND reported_at >= since
       AND reported_at <= before_at -- what lets whole months be left out
       AND (reported_at, id) < (before_at, before_id)
     ORDER BY reported_at DESC, id DESC
     LIMIT page_size;
END
$$;

-- A day of a customer is the sum of its instances' highest counts of that day (UTC).
CREATE FUNCTION usage_days(customer_ids TEXT[], since TIMESTAMPTZ) RETURNS TABLE (
    customer_id VARCHAR, day DATE, active BIGINT, reports BIGINT
) LANGUAGE sql STABLE AS $$
    SELECT customer_id, day, SUM(active)::BIGINT, SUM(reports)::BIGINT
      FROM (SELECT customer_id, (reported_at AT TIME ZONE 'UTC')::DATE AS day, MAX(active_devices) AS active,
                   COUNT(*) AS reports
              FROM usage_reports
             WHERE customer_id = ANY(customer_ids)
               AND reported_at >= since
             GROUP BY customer_id, instance_id, day) AS instance_days
     GROUP BY customer_id, day
$$;

CREATE FUNCTION read_usage_figures(customer_ids TEXT[], since TIMESTAMPTZ) RETURNS TABLE (
    customer_id VARCHAR, total_reports BIGINT, avg_active FLOAT, peak_active BIGINT,
    current_active BIGINT, current_total BIGINT
) LANGUAGE plpgsql STABLE SET plan_cache_mode = 'force_generic_plan'
   SET random_page_cost = 1.1 AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT customer_id, SUM(reports)::BIGINT, SUM(days.active)::FLOAT / COUNT(*), MAX(days.active),
           current.active, current.total
      FROM usage_days(customer_ids, since) AS days
      LEFT JOIN (
           SELECT customer_id, SUM(active_devices)::BIGINT AS active, SUM(total_devices)::BIGINT AS total
             FROM instances
            WHERE customer_id = ANY(customer_ids)
              AND retired_at IS NULL
              AND last_reported_at >= since
            GROUP BY customer_id) AS current USING (customer_id)
     GROUP BY customer_id, current.active, current.total;
END
$$;

-- What an operator should look at. An instance counts in its customer's total from a report until the next one,
-- until it has been silent for `in_use_within`, or until it is retired. A threshold is crossed when the total reaches
-- it and did not before, or did so under a lower limit. The limit of a time is that of the newest license by then.
CREATE FUNCTION find_usage_alerts(
    the_customer TEXT, since TIMESTAMPTZ, moment TIMESTAMPTZ, in_use_within INTERVAL, silent_after INTERVAL
) RETURNS TABLE (
    created_at TIMESTAMPTZ, customer_id VARCHAR, kind TEXT, instance_id VARCHAR, active_devices BIGINT,
    device_limit INTEGER
) LANGUAGE sql STABLE AS $$
    WITH reports AS (
         SELECT customer_id, instance_id, active_devices AS active, reported_at,
                LAG(active_devices) OVER instance AS last_active,
                LAG(reported_at) OVER instance AS last_at,
                LEAD(reported_at) OVER instance AS next_at
           FROM usage_reports
          WHERE (the_customer IS NULL OR customer_id = the_customer)
            AND reported_at >= since - in_use_within
         WINDOW instance AS (PARTITION BY customer_id, instance_id ORDER BY reported_at)
    ), steps AS (
         SELECT customer_id, reported_at AS at,
                active - CASE WHEN last_at >= reported_at - in_use_within THEN last_active ELSE 0 END AS step
           FROM reports
          UNION ALL
         SELECT customer_id, LEAST(reported_at + in_use_within, CASE WHEN next_at IS NULL THEN retired_at END), -active
           FROM reports
           JOIN instances USING (customer_id, instance_id)
          WHERE next_at > reported_at + in_use_within
             OR next_at IS NULL AND (retired_at IS NOT NULL OR reported_at + in_use_within < moment)
    ), totals AS (
         SELECT DISTINCT customer_id, at, SUM(step) OVER (PARTITION BY customer_id ORDER BY at) AS active
           FROM steps
    ), limits AS (
         SELECT *, (SELECT device_limit
                      FROM licenses
                     WHERE customer_id = totals.customer_id
                       AND issued_at <= at
                     ORDER BY id DESC
                     LIMIT 1) AS device_limit
           FROM totals
    ), levels AS (
         SELECT *, active * 100.0 / device_limit AS percentage,
                CASE WHEN device_limit > LAG(device_limit) OVER customer THEN 0
                     ELSE COALESCE(LAG(active * 100.0 / device_limit) OVER customer, 0) END AS last_percentage
           FROM limits
         WINDOW customer AS (PARTITION BY customer_id ORDER BY at)
    ), newcomers AS (
         SELECT instances.*, ROW_NUMBER() OVER (PARTITION BY customer_id ORDER BY created_at, instance_id) AS number
           FROM instances
          WHERE the_customer IS NULL OR customer_id = the_customer
    )
    SELECT at, customer_id, 'threshold_' || threshold, NULL::TEXT, active::BIGINT, device_limit
      FROM levels
      JOIN (VALUES (80), (100)) AS thresholds (threshold) ON threshold > last_percentage AND threshold <= percentage
     WHERE at >= since
     UNION ALL
    SELECT reported_at, customer_id, 'sudden_drop', instance_id, active, NULL
      FROM reports
     WHERE last_active >= 10
       AND active * 2 <= last_active
       AND reported_at >= since
     UNION ALL
    SELECT created_at, customer_id, 'shared_license', instance_id, active_devices, NULL
      FROM newcomers
     WHERE number > 1
       AND created_at >= since
     UNION ALL
    SELECT last_reported_at + silent_after, customer_id, 'silent', instance_id, NULL, NULL
      FROM newcomers
     WHERE last_reported_at < moment - silent_after
       AND retired_at IS NULL
$$;
