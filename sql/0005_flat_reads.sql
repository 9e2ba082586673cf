-- read_customer and read_license with plain columns, only those that are asked for: taking whole rows
-- apart, column by column, cost more than finding them. The former serve the version before still; a
-- later migration drops them.

CREATE FUNCTION find_customer(the_customer TEXT, the_license UUID) RETURNS TABLE (
    customer_id VARCHAR, email VARCHAR, name VARCHAR, company_name VARCHAR, stripe_customer_id VARCHAR,
    max_devices INTEGER, retention_days INTEGER, revoked_at TIMESTAMPTZ, revoke_reason VARCHAR,
    erased_at TIMESTAMPTZ, created_at TIMESTAMPTZ, updated_at TIMESTAMPTZ,
    license_known BOOLEAN, license_revoked_at TIMESTAMPTZ,
    id BIGINT, subscription_id VARCHAR, stripe_subscription_id VARCHAR, plan VARCHAR, status VARCHAR,
    trial_ends_at TIMESTAMPTZ, current_period_starts_at TIMESTAMPTZ, current_period_ends_at TIMESTAMPTZ,
    cancel_at_period_end BOOLEAN, cancel_at TIMESTAMPTZ, ended_at TIMESTAMPTZ,
    subscription_created_at TIMESTAMPTZ, subscription_updated_at TIMESTAMPTZ
) LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY
    SELECT c.customer_id, c.email, c.name, c.company_name, c.stripe_customer_id,
           c.max_devices, c.retention_days, c.revoked_at, c.revoke_reason,
           c.erased_at, c.created_at, c.updated_at,
           presented.jti IS NOT NULL, presented.revoked_at,
           s.id, s.subscription_id, s.stripe_subscription_id, s.plan, s.status,
           s.trial_ends_at, s.current_period_starts_at, s.current_period_ends_at,
           s.cancel_at_period_end, s.cancel_at, s.ended_at,
           s.created_at, s.updated_at
      FROM customers AS c
      LEFT JOIN licenses AS presented
        ON presented.jti = the_license
       AND presented.customer_id = c.customer_id
      LEFT JOIN subscriptions AS s ON s.customer_id = c.customer_id
     WHERE c.customer_id = the_customer
     ORDER BY s.id;
END
$$;

CREATE FUNCTION find_license(the_customer TEXT, the_license UUID) RETURNS TABLE (
    jti TEXT, customer_id VARCHAR, kid VARCHAR, plan VARCHAR, status VARCHAR, device_limit INTEGER,
    token TEXT, issued_at TIMESTAMPTZ, renews_at TIMESTAMPTZ, expires_at TIMESTAMPTZ, recheck BOOLEAN,
    erased_at TIMESTAMPTZ, license_known BOOLEAN, license_revoked_at TIMESTAMPTZ
) LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY
    SELECT l.jti::TEXT, l.customer_id, l.kid, l.plan, l.status, l.device_limit,
           l.token, l.issued_at, l.renews_at, l.expires_at, l.recheck,
           c.erased_at, presented.jti IS NOT NULL, presented.revoked_at
      FROM customers AS c
      LEFT JOIN licenses AS presented
        ON presented.jti = the_license
       AND presented.customer_id = c.customer_id
      LEFT JOIN licenses AS l
        ON l.customer_id = c.customer_id
       AND l.superseded_at IS NULL
     WHERE c.customer_id = the_customer;
END
$$;
