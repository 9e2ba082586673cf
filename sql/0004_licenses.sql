-- The licenses, and the keys that sign them.

-- Every public key that ever signed; the private halves live outside the database.
CREATE TABLE license_keys (
    kid        VARCHAR(64) PRIMARY KEY,
    public_key TEXT        NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT CURRENT_TIMESTAMP,
    removed_at TIMESTAMPTZ
);

CREATE TRIGGER license_keys_audit AFTER INSERT OR UPDATE OR DELETE ON license_keys
   FOR EACH ROW EXECUTE FUNCTION audit_row('key', 'kid');

CREATE TABLE licenses (
    id            BIGSERIAL    PRIMARY KEY,
    jti           UUID         NOT NULL UNIQUE,
    customer_id   VARCHAR(255) NOT NULL REFERENCES customers (customer_id),
    kid           VARCHAR(64)  NOT NULL REFERENCES license_keys (kid),
    plan          VARCHAR(50)  NOT NULL CHECK (plan IN ('trial', 'starter', 'professional', 'enterprise')),
    status        VARCHAR(50)  NOT NULL,
    device_limit  INTEGER,
    token         TEXT,
    fingerprint   CHAR(64)     NOT NULL,
    plan_table    CHAR(16)     NOT NULL,
    issued_at     TIMESTAMPTZ  NOT NULL,
    renews_at     TIMESTAMPTZ  NOT NULL,
    expires_at    TIMESTAMPTZ  NOT NULL,
    recheck       BOOLEAN      NOT NULL DEFAULT FALSE,
    superseded_at TIMESTAMPTZ,
    revoked_at    TIMESTAMPTZ,
    CHECK (issued_at <= renews_at AND renews_at <= expires_at),
    CHECK (token IS NOT NULL OR revoked_at IS NOT NULL),
    CHECK (revoked_at IS NULL OR superseded_at IS NOT NULL)
);

CREATE UNIQUE INDEX licenses_one_current_key ON licenses (customer_id) WHERE superseded_at IS NULL;
CREATE INDEX licenses_customer_id_idx ON licenses (customer_id, id);
CREATE INDEX licenses_kid_idx ON licenses (kid, expires_at);
CREATE INDEX licenses_revoked_idx ON licenses (expires_at) WHERE revoked_at IS NOT NULL;

COMMENT ON COLUMN licenses.device_limit IS 'what was bought, without overage; NULL = unlimited';
COMMENT ON COLUMN licenses.fingerprint IS 'SHA-256 of the claims that the entitlement decides';
COMMENT ON COLUMN licenses.plan_table IS 'hash of the plan table that it was derived from';
COMMENT ON COLUMN licenses.renews_at IS 'from here on the next request for the license issues a new one';
COMMENT ON COLUMN licenses.recheck IS 'customer or subscription changed since: derive it again before use';

CREATE TRIGGER licenses_audit AFTER INSERT OR UPDATE OF revoked_at ON licenses
   FOR EACH ROW EXECUTE FUNCTION audit_row('license', 'jti', 'issue');

-- The current license doubles as the stored entitlement. Any change of what it was derived
-- from, this service or an operator's UPDATE, makes it be derived again before it is used.
CREATE FUNCTION recheck_license() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    -- A subscription may have moved to another customer: both are concerned.
    PERFORM 1
       FROM customers
      WHERE customer_id IN (OLD.customer_id, NEW.customer_id)
      ORDER BY id
        FOR NO KEY UPDATE;
    UPDATE licenses
       SET recheck = TRUE
     WHERE customer_id IN (OLD.customer_id, NEW.customer_id)
       AND superseded_at IS NULL;
    RETURN NULL;
END
$$;

CREATE TRIGGER customers_recheck_license AFTER UPDATE ON customers
   FOR EACH ROW EXECUTE FUNCTION recheck_license();
CREATE TRIGGER subscriptions_recheck_license AFTER INSERT OR UPDATE OR DELETE ON subscriptions
   FOR EACH ROW EXECUTE FUNCTION recheck_license();

-- The reads of every request are functions, because planning these statements costs more than running them; here a
-- connection plans each once. The license presented with the request (NULL: none was) is looked up on the way.

-- A customer and every subscription it ever had.
CREATE FUNCTION find_customer(the_customer TEXT, the_license UUID) RETURNS TABLE (
    customer_id VARCHAR, email VARCHAR, name VARCHAR, company_name VARCHAR, stripe_customer_id VARCHAR,
    max_devices INTEGER, retention_days INTEGER, overage_price INTEGER, overage_cap INTEGER,
    revoked_at TIMESTAMPTZ, revoke_reason VARCHAR, tokens_revoked_at TIMESTAMPTZ, erased_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ, updated_at TIMESTAMPTZ, license_known BOOLEAN, license_revoked_at TIMESTAMPTZ,
    id BIGINT, subscription_id VARCHAR, stripe_subscription_id VARCHAR, plan VARCHAR, billing_interval VARCHAR,
    status VARCHAR, trial_ends_at TIMESTAMPTZ, current_period_starts_at TIMESTAMPTZ,
    current_period_ends_at TIMESTAMPTZ, cancel_at_period_end BOOLEAN, cancel_at TIMESTAMPTZ,
    ended_at TIMESTAMPTZ, subscription_created_at TIMESTAMPTZ, subscription_updated_at TIMESTAMPTZ
) LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY
    SELECT c.customer_id, c.email, c.name, c.company_name, c.stripe_customer_id,
           c.max_devices, c.retention_days, c.overage_price, c.overage_cap,
           c.revoked_at, c.revoke_reason, c.tokens_revoked_at, c.erased_at,
           c.created_at, c.updated_at, presented.jti IS NOT NULL, presented.revoked_at,
           s.id, s.subscription_id, s.stripe_subscription_id, s.plan, s.billing_interval,
           s.status, s.trial_ends_at, s.current_period_starts_at,
           s.current_period_ends_at, s.cancel_at_period_end, s.cancel_at,
           s.ended_at, s.created_at, s.updated_at
      FROM customers AS c
      LEFT JOIN licenses AS presented
        ON presented.jti = the_license
       AND presented.customer_id = c.customer_id
      LEFT JOIN subscriptions AS s ON s.customer_id = c.customer_id
     WHERE c.customer_id = the_customer
     ORDER BY s.id;
END
$$;

-- The current license of a customer, its columns NULL without one.
CREATE FUNCTION find_license(the_customer TEXT, the_license UUID) RETURNS TABLE (
    jti TEXT, customer_id VARCHAR, kid VARCHAR, plan VARCHAR, status VARCHAR, device_limit INTEGER,
    token TEXT, plan_table CHAR(16), issued_at TIMESTAMPTZ, renews_at TIMESTAMPTZ, expires_at TIMESTAMPTZ,
    recheck BOOLEAN, tokens_revoked_at TIMESTAMPTZ, erased_at TIMESTAMPTZ, license_known BOOLEAN,
    license_revoked_at TIMESTAMPTZ
) LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY
    SELECT l.jti::TEXT, c.customer_id, l.kid, l.plan, l.status, l.device_limit,
           l.token, l.plan_table, l.issued_at, l.renews_at, l.expires_at,
           l.recheck, c.tokens_revoked_at, c.erased_at, presented.jti IS NOT NULL,
           presented.revoked_at
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
