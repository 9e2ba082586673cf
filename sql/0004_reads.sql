-- What is read most. Functions, because planning these statements costs more than running them; here a
-- connection plans each once, behind PgBouncer too. A license presented with the request (NULL: none was)
-- is looked up on the way.

CREATE FUNCTION read_customer(the_customer TEXT, the_license UUID) RETURNS TABLE (
    customer customers, subscription subscriptions, license_known BOOLEAN, license_revoked_at TIMESTAMPTZ
) LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY
    SELECT customers, subscriptions, presented.jti IS NOT NULL, presented.revoked_at
      FROM customers
      LEFT JOIN licenses AS presented
        ON presented.jti = the_license
       AND presented.customer_id = customers.customer_id
      LEFT JOIN subscriptions ON subscriptions.customer_id = customers.customer_id
     WHERE customers.customer_id = the_customer
     ORDER BY subscriptions.id;
END
$$;

CREATE FUNCTION read_license(the_customer TEXT, the_license UUID) RETURNS TABLE (
    current licenses, erased_at TIMESTAMPTZ, license_known BOOLEAN, license_revoked_at TIMESTAMPTZ
) LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY
    SELECT latest, customers.erased_at, presented.jti IS NOT NULL, presented.revoked_at
      FROM customers
      LEFT JOIN licenses AS presented
        ON presented.jti = the_license
       AND presented.customer_id = customers.customer_id
      LEFT JOIN licenses AS latest
        ON latest.customer_id = customers.customer_id
       AND latest.superseded_at IS NULL
     WHERE customers.customer_id = the_customer;
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
