-- Who the customers are, what they may use, and the licenses that say so.

CREATE TABLE customers (
    id                 BIGSERIAL    PRIMARY KEY,
    customer_id        VARCHAR(255) NOT NULL UNIQUE CHECK (customer_id ~ '^cust_[a-z0-9]{12,}$'),
    email              VARCHAR(255),
    name               VARCHAR(255) CHECK (name <> ''),
    company_name       VARCHAR(255) CHECK (company_name <> ''),
    stripe_customer_id VARCHAR(255) UNIQUE,
    max_devices        INTEGER      CHECK (max_devices BETWEEN 1 AND 10000000),
    retention_days     INTEGER      CHECK (retention_days BETWEEN 1 AND 36500),
    trial_used_at      TIMESTAMPTZ,
    revoked_at         TIMESTAMPTZ,
    revoke_reason      VARCHAR(500),
    erased_at          TIMESTAMPTZ,
    created_at         TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at         TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CHECK ((email IS NULL) = (erased_at IS NOT NULL)),
    CHECK (revoked_at IS NOT NULL OR revoke_reason IS NULL)
);

-- One customer per address, whatever the letter case. Addresses are ASCII, so "C" folds them fully.
CREATE UNIQUE INDEX customers_email_key ON customers (LOWER(email COLLATE "C"));

COMMENT ON COLUMN customers.max_devices IS 'an enterprise customer''s own device limit; NULL = the plan''s';
COMMENT ON COLUMN customers.retention_days IS 'an enterprise customer''s own data retention; NULL = the plan''s';
COMMENT ON COLUMN customers.trial_used_at IS 'when the one trial of a paid plan began';

CREATE TABLE subscriptions (
    id                       BIGSERIAL    PRIMARY KEY,
    subscription_id          VARCHAR(255) NOT NULL UNIQUE CHECK (subscription_id ~ '^(sub|trial)_'),
    customer_id              VARCHAR(255) NOT NULL REFERENCES customers (customer_id),
    stripe_subscription_id   VARCHAR(255) UNIQUE,
    stripe_price_id          VARCHAR(255),
    plan                     VARCHAR(50)  NOT NULL
                             CHECK (plan IN ('trial', 'starter', 'professional', 'enterprise', 'unknown')),
    status                   VARCHAR(50)  NOT NULL CHECK (status <> ''),
    paid                     BOOLEAN      NOT NULL DEFAULT FALSE,
    trial_ends_at            TIMESTAMPTZ,
    current_period_starts_at TIMESTAMPTZ,
    current_period_ends_at   TIMESTAMPTZ,
    cancel_at_period_end     BOOLEAN      NOT NULL DEFAULT FALSE,
    cancel_at                TIMESTAMPTZ,
    ended_at                 TIMESTAMPTZ,
    changes                  INTEGER      NOT NULL DEFAULT 0,
    event_id                 VARCHAR(255),
    fetched_at               TIMESTAMPTZ,
    created_at               TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at               TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CHECK (stripe_subscription_id IS NULL OR stripe_subscription_id = subscription_id),
    CHECK (stripe_subscription_id IS NOT NULL
           OR (status IN ('trialing', 'canceled') AND plan <> 'unknown'
               AND trial_ends_at IS NOT NULL AND NOT paid))
);

CREATE INDEX subscriptions_customer_id_idx ON subscriptions (customer_id);
CREATE UNIQUE INDEX subscriptions_one_local_trial_key ON subscriptions (customer_id)
 WHERE stripe_subscription_id IS NULL AND status = 'trialing';

COMMENT ON COLUMN subscriptions.stripe_subscription_id IS 'NULL for a trial of our own';
COMMENT ON COLUMN subscriptions.paid IS 'has been paid at least once; never goes back';
COMMENT ON COLUMN subscriptions.changes IS 'changes asked of Stripe that had an outcome; part of the next idempotency key';
COMMENT ON COLUMN subscriptions.event_id IS 'the Stripe event that led to the present state, where one did';

-- Every public key that ever signed; the private halves live outside the database.
CREATE TABLE license_keys (
    kid        VARCHAR(64) PRIMARY KEY,
    public_key TEXT        NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT CURRENT_TIMESTAMP,
    removed_at TIMESTAMPTZ
);

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

COMMENT ON COLUMN licenses.device_limit IS 'NULL = unlimited';
COMMENT ON COLUMN licenses.fingerprint IS 'SHA-256 of the claims that the entitlement decides';
COMMENT ON COLUMN licenses.renews_at IS 'from here on a new license is issued when one is asked for';
COMMENT ON COLUMN licenses.recheck IS 'customer or subscription changed since: compare before handing it out';

-- The current license doubles as the entitlement that is known to hold. Whatever changes what it was
-- derived from, this application or an operator's UPDATE, makes it be derived again before it is used.
CREATE FUNCTION recheck_license() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    -- A row may have left its customer, deleted or given to another one: the one it left is asked too.
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
