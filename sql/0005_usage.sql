-- What the instances report. One partition a month (UTC), so that old months leave by DROP TABLE.

CREATE TABLE usage_reports (
    id             BIGSERIAL    NOT NULL,
    customer_id    VARCHAR(255) NOT NULL REFERENCES customers (customer_id),
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

-- Gives up after two seconds of waiting (for a backup, say): until the next try the default takes all.
CREATE FUNCTION ensure_usage_partition(moment TIMESTAMPTZ) RETURNS VOID LANGUAGE plpgsql
   SET lock_timeout = '2s' AS $$
DECLARE
    month_start TIMESTAMP := DATE_TRUNC('month', moment AT TIME ZONE 'UTC');
    lower_bound TEXT := TO_CHAR(month_start, 'YYYY-MM-DD') || ' 00:00:00+00';
    upper_bound TEXT := TO_CHAR(month_start + INTERVAL '1 month', 'YYYY-MM-DD') || ' 00:00:00+00';
    partition   TEXT := 'usage_reports_' || TO_CHAR(month_start, 'YYYY_MM');
BEGIN
    IF TO_REGCLASS(partition) IS NOT NULL THEN RETURN; END IF;
    -- A row on its way into the default partition must not find itself in the wrong one on arrival.
    LOCK TABLE ONLY usage_reports IN SHARE ROW EXCLUSIVE MODE;
    LOCK TABLE usage_reports_default IN ACCESS EXCLUSIVE MODE;
    IF TO_REGCLASS(partition) IS NOT NULL THEN RETURN; END IF;
    EXECUTE FORMAT('CREATE TABLE %I (LIKE usage_reports INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition);
    EXECUTE FORMAT('WITH moved AS (DELETE FROM usage_reports_default'
                   ' WHERE reported_at >= %L AND reported_at < %L RETURNING *)'
                   ' INSERT INTO %I SELECT * FROM moved', lower_bound, upper_bound, partition);
    EXECUTE FORMAT('ALTER TABLE usage_reports ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   partition, lower_bound, upper_bound);
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

-- The newest report of each instance: what is in use now, who has fallen silent.
CREATE TABLE instances (
    customer_id      VARCHAR(255) NOT NULL REFERENCES customers (customer_id),
    instance_id      VARCHAR(255) NOT NULL,
    active_devices   INTEGER      NOT NULL,
    total_devices    INTEGER      NOT NULL,
    last_reported_at TIMESTAMPTZ  NOT NULL,
    created_at       TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (customer_id, instance_id)
) WITH (fillfactor = 80);

CREATE TABLE usage_levels (
    customer_id  VARCHAR(255) PRIMARY KEY REFERENCES customers (customer_id),
    level        SMALLINT     NOT NULL CHECK (level IN (0, 80, 100)),
    device_limit INTEGER,
    changed_at   TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP
);

COMMENT ON TABLE usage_levels IS 'the threshold a customer is at; a crossing is a change of this row';
COMMENT ON COLUMN usage_levels.device_limit IS 'what it was judged against; NULL = unlimited';

CREATE TABLE usage_alerts (
    id             BIGSERIAL    PRIMARY KEY,
    customer_id    VARCHAR(255) NOT NULL REFERENCES customers (customer_id),
    instance_id    VARCHAR(255),
    kind           VARCHAR(50)  NOT NULL CHECK (kind IN ('threshold_80', 'threshold_100', 'sudden_drop', 'shared_license')),
    active_devices BIGINT       NOT NULL,
    device_limit   INTEGER,
    created_at     TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP
);

CREATE INDEX usage_alerts_customer_id_idx ON usage_alerts (customer_id, id);

-- Takes in one report. A function, because its statement does in one round trip all that a report needs,
-- and planning it each time would cost more than running it; here a connection plans it once.
CREATE FUNCTION report_usage(
    the_customer TEXT, the_instance TEXT, active INTEGER, total INTEGER, moment TIMESTAMPTZ, the_license UUID,
    since TIMESTAMPTZ
) RETURNS TABLE (
    id BIGINT, created_at TIMESTAMPTZ, erased_at TIMESTAMPTZ, license_known BOOLEAN,
    license_revoked_at TIMESTAMPTZ, current_jti TEXT, device_limit INTEGER, renews_at TIMESTAMPTZ,
    recheck BOOLEAN, plan_table CHAR(16), tokens_revoked_at TIMESTAMPTZ, last_reported_at TIMESTAMPTZ, last_active INTEGER, others_active BIGINT,
    other_instances BIGINT, level INTEGER, level_limit INTEGER
) LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH customer AS MATERIALIZED (
         SELECT customers.customer_id, erased_at, tokens_revoked_at, presented.jti IS NOT NULL AS license_known,
                presented.revoked_at AS license_revoked_at
           FROM customers
           LEFT JOIN licenses AS presented
             ON presented.jti = the_license
            AND presented.customer_id = customers.customer_id
          WHERE customers.customer_id = the_customer
    ), report AS (
         INSERT INTO usage_reports (customer_id, instance_id, active_devices, total_devices, reported_at)
         SELECT customer_id, the_instance, active, total, moment
           FROM customer
          WHERE erased_at IS NULL
            AND (the_license IS NULL OR license_known AND license_revoked_at IS NULL)
             ON CONFLICT (customer_id, instance_id, reported_at) DO NOTHING
      RETURNING id, created_at
    ), newest AS (
         INSERT INTO instances AS known (customer_id, instance_id, active_devices, total_devices,
                                         last_reported_at)
         SELECT the_customer, the_instance, active, total, moment
           FROM report
             ON CONFLICT (customer_id, instance_id) DO UPDATE
            SET active_devices = EXCLUDED.active_devices,
                total_devices = EXCLUDED.total_devices,
                last_reported_at = EXCLUDED.last_reported_at
          WHERE EXCLUDED.last_reported_at > known.last_reported_at
    )
    SELECT report.id, report.created_at, customer.erased_at, customer.license_known,
           customer.license_revoked_at, current.jti::TEXT AS current_jti, current.device_limit,
           current.renews_at, current.recheck, current.plan_table, customer.tokens_revoked_at, instance.last_reported_at,
           instance.active_devices AS last_active, COALESCE(others.active, 0) AS others_active,
           others.instances AS other_instances, COALESCE(usage_levels.level, 0) AS level,
           usage_levels.device_limit AS level_limit
      FROM customer
      LEFT JOIN report ON TRUE
      LEFT JOIN licenses AS current
        ON current.customer_id = customer.customer_id
       AND current.superseded_at IS NULL
      LEFT JOIN instances AS instance
        ON instance.customer_id = customer.customer_id
       AND instance.instance_id = the_instance
      LEFT JOIN usage_levels ON usage_levels.customer_id = customer.customer_id
     CROSS JOIN LATERAL (
           SELECT SUM(active_devices) AS active, COUNT(*) AS instances
             FROM instances AS other
            WHERE other.customer_id = customer.customer_id
              AND other.instance_id <> the_instance
              AND other.last_reported_at >= since) AS others;
END
$$;

-- The months that a plan made once need not open are found when it starts to run. PostgreSQL does not
-- count on that when it compares the costs, and would go on planning each time: hence the setting.

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
CREATE FUNCTION read_usage_figures(customer_ids TEXT[], since TIMESTAMPTZ) RETURNS TABLE (
    customer_id VARCHAR, total_reports BIGINT, avg_active FLOAT, peak_active BIGINT,
    current_active BIGINT, current_total BIGINT
) LANGUAGE plpgsql STABLE SET plan_cache_mode = 'force_generic_plan' AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH instance_days AS (
         SELECT customer_id, COUNT(*) AS reports, MAX(active_devices) AS active,
                (reported_at AT TIME ZONE 'UTC')::DATE AS day
           FROM usage_reports
          WHERE customer_id = ANY(customer_ids)
            AND reported_at >= since
          GROUP BY customer_id, instance_id, day
    ), days AS (
         SELECT customer_id, SUM(reports)::BIGINT AS reports, SUM(active) AS active
           FROM instance_days
          GROUP BY customer_id, day
    ), totals AS (
         SELECT customer_id, SUM(reports)::BIGINT AS total_reports,
                SUM(active)::FLOAT / COUNT(*) AS avg_active, MAX(active) AS peak_active
           FROM days
          GROUP BY customer_id
    ), current AS (
         SELECT customer_id, SUM(active_devices)::BIGINT AS current_active,
                SUM(total_devices)::BIGINT AS current_total
           FROM instances
          WHERE customer_id = ANY(customer_ids)
            AND last_reported_at >= since
          GROUP BY customer_id
    )
    SELECT customer_id, total_reports, avg_active, peak_active, current_active, current_total
      FROM totals
      JOIN current USING (customer_id);
END
$$;
