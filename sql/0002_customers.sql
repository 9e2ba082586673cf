-- Who the customers are.

CREATE TABLE customers (
    id                 BIGSERIAL    PRIMARY KEY,
    customer_id        VARCHAR(255) NOT NULL UNIQUE CHECK (customer_id ~ '^cust_[a-z0-9]{12,}$'),
    email              VARCHAR(255),
    name               VARCHAR(255) CHECK (name <> ''),
    company_name       VARCHAR(255) CHECK (company_name <> ''),
    stripe_customer_id VARCHAR(255) UNIQUE,
    max_devices        INTEGER      CHECK (max_devices BETWEEN 1 AND 10000000),
    retention_days     INTEGER      CHECK (retention_days BETWEEN 1 AND 36500),
    overage_price      INTEGER      CHECK (overage_price > 0 AND overage_price % 30 = 0),
    overage_cap        INTEGER      CHECK (overage_cap BETWEEN 1 AND 10000000),
    trial_used_at      TIMESTAMPTZ,
    revoked_at         TIMESTAMPTZ,
    revoke_reason      VARCHAR(500),
    tokens_revoked_at  TIMESTAMPTZ,
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
COMMENT ON COLUMN customers.overage_price IS 'own price per extra device and month, in cents; NULL = the plan''s';
COMMENT ON COLUMN customers.overage_cap IS 'NULL = overage is off; else the device limit of its licenses';
COMMENT ON COLUMN customers.trial_used_at IS 'when the one trial of a paid plan began';
COMMENT ON COLUMN customers.revoked_at IS 'no license is issued until it is NULL again';
COMMENT ON COLUMN customers.tokens_revoked_at IS 'the latest revocation: no license issued before it serves';

CREATE TRIGGER customers_audit AFTER INSERT OR UPDATE OR DELETE ON customers
   FOR EACH ROW EXECUTE FUNCTION audit_row('customer', 'customer_id');

-- Addresses whose trial is used up although the customer was erased: a keyed hash, not the address.
CREATE TABLE erased_emails (
    email_hash CHAR(64)    PRIMARY KEY,
    erased_at  TIMESTAMPTZ NOT NULL DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE email_hash_key (
    only_row BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    key      TEXT    NOT NULL DEFAULT GEN_RANDOM_UUID()::TEXT || GEN_RANDOM_UUID()::TEXT
);

INSERT INTO email_hash_key DEFAULT VALUES;
