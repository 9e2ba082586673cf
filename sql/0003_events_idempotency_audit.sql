-- What came from outside, what was answered, and who did what.

CREATE TABLE stripe_events (
    event_id     VARCHAR(255) PRIMARY KEY,
    type         VARCHAR(255) NOT NULL,
    object_id    VARCHAR(255),
    customer_id  VARCHAR(255) REFERENCES customers (customer_id),
    stripe_customer_id VARCHAR(255),
    outcome      VARCHAR(20)  NOT NULL CHECK (outcome IN ('done', 'ignored', 'failed')),
    error        VARCHAR(500),
    attempts     INTEGER      NOT NULL DEFAULT 1,
    created_at   TIMESTAMPTZ  NOT NULL,
    received_at  TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    processed_at TIMESTAMPTZ
);

CREATE INDEX stripe_events_received_at_idx ON stripe_events (received_at DESC, event_id DESC);
CREATE INDEX stripe_events_customer_id_idx ON stripe_events (customer_id, received_at DESC);

CREATE TABLE idempotency_keys (
    caller      VARCHAR(255) NOT NULL,
    route       VARCHAR(255) NOT NULL,
    key         VARCHAR(255) NOT NULL,
    body_hash   CHAR(64)     NOT NULL,
    status_code SMALLINT     CHECK (status_code BETWEEN 200 AND 499),
    response    TEXT,
    created_at  TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (caller, route, key),
    CHECK ((status_code IS NULL) = (response IS NULL))
);

CREATE INDEX idempotency_keys_created_at_idx ON idempotency_keys (created_at);

CREATE TABLE audit_log (
    id          BIGSERIAL    PRIMARY KEY,
    at          TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    actor       VARCHAR(255) NOT NULL,
    action      VARCHAR(50)  NOT NULL,
    customer_id VARCHAR(255) REFERENCES customers (customer_id),
    subject     VARCHAR(255) NOT NULL,
    before      JSONB,
    after       JSONB,
    request_id  VARCHAR(64)
);

CREATE INDEX audit_log_customer_id_idx ON audit_log (customer_id, id);

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
