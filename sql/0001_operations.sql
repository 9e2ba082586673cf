-- What serves all others: the audit log with its trigger, kept answers, leases.

CREATE TABLE audit_log (
    id          BIGSERIAL    PRIMARY KEY,
    at          TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    actor       VARCHAR(255) NOT NULL,
    action      VARCHAR(50)  NOT NULL,
    customer_id VARCHAR(255),
    subject     VARCHAR(255) NOT NULL,
    before      JSONB,
    after       JSONB,
    request_id  VARCHAR(64)
);

CREATE INDEX audit_log_customer_id_idx ON audit_log (customer_id, id);

-- Records a changed row: the service names itself by set_config, a person at psql is named by
-- the role. Arguments: the noun, the column that identifies the row, and what an INSERT is called if not 'create'.
-- Of an update only what differs is kept.
CREATE FUNCTION audit_row() RETURNS TRIGGER LANGUAGE plpgsql AS $$
DECLARE
    not_recorded CONSTANT TEXT[] := ARRAY['id', 'token', 'fingerprint', 'plan_table', 'public_key', 'recheck',
                                          'changes', 'event_id', 'fetched_at', 'updated_at'];
    old_row JSONB := CASE WHEN TG_OP <> 'INSERT' THEN TO_JSONB(OLD) - not_recorded END;
    new_row JSONB := CASE WHEN TG_OP <> 'DELETE' THEN TO_JSONB(NEW) - not_recorded END;
    any_row JSONB := COALESCE(new_row, old_row);
    verb    TEXT  := CASE TG_OP WHEN 'INSERT' THEN COALESCE(TG_ARGV[2], 'create') ELSE LOWER(TG_OP) END;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        SELECT JSONB_OBJECT_AGG(key, old_row -> key), JSONB_OBJECT_AGG(key, value)
          INTO old_row, new_row
          FROM JSONB_EACH(new_row)
         WHERE value IS DISTINCT FROM old_row -> key;
        IF new_row IS NULL THEN RETURN NULL; END IF;
    END IF;
    INSERT INTO audit_log (actor, action, customer_id, subject, before, after, request_id)
    VALUES (COALESCE(NULLIF(CURRENT_SETTING('billing.actor', TRUE), ''), 'database:' || SESSION_USER),
            COALESCE(NULLIF(CURRENT_SETTING('billing.action', TRUE), ''), TG_ARGV[0] || '.' || verb),
            any_row ->> 'customer_id', any_row ->> TG_ARGV[1], old_row, new_row,
            NULLIF(CURRENT_SETTING('billing.request_id', TRUE), ''));
    RETURN NULL;
END
$$;

-- Answers kept for Idempotency-Key; status_code is NULL while the first request is at work.
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

-- Locks for the time that Stripe is called, without an open transaction; they end by themselves.
CREATE TABLE leases (
    name    VARCHAR(255) PRIMARY KEY,
    token   VARCHAR(255) NOT NULL,
    ends_at TIMESTAMPTZ  NOT NULL
);
