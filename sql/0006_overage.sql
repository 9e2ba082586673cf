-- Usage-based billing: when it was on, which periods were paid for, and each day that goes onto an invoice.

CREATE TABLE overage_terms (
    id          BIGSERIAL    PRIMARY KEY,
    customer_id VARCHAR(255) NOT NULL REFERENCES customers (customer_id),
    cap         INTEGER      NOT NULL CHECK (cap BETWEEN 1 AND 10000000),
    price       INTEGER      CHECK (price > 0 AND price % 30 = 0),
    starts_at   TIMESTAMPTZ  NOT NULL,
    ends_at     TIMESTAMPTZ  CHECK (ends_at >= starts_at)
);

CREATE INDEX overage_terms_customer_id_idx ON overage_terms (customer_id);
CREATE UNIQUE INDEX overage_terms_one_current_key ON overage_terms (customer_id) WHERE ends_at IS NULL;

COMMENT ON COLUMN overage_terms.price IS 'own price per extra device and month, in cents; NULL = the plan''s';
COMMENT ON COLUMN overage_terms.ends_at IS 'switched off, or other terms from here on; NULL = still on';

-- The periods of a subscription as Stripe invoiced them. `subscriptions` knows only the newest one.
CREATE TABLE overage_periods (
    subscription_id VARCHAR(255) NOT NULL REFERENCES subscriptions (subscription_id),
    starts_at       TIMESTAMPTZ  NOT NULL,
    ends_at         TIMESTAMPTZ  NOT NULL CHECK (ends_at > starts_at),
    customer_id     VARCHAR(255) NOT NULL REFERENCES customers (customer_id),
    is_paid         BOOLEAN      NOT NULL,
    closed_as       VARCHAR(10)  CHECK (closed_as IN ('billed', 'shadow')),
    closed_at       TIMESTAMPTZ,
    PRIMARY KEY (subscription_id, starts_at),
    CHECK ((closed_as IS NULL) = (closed_at IS NULL))
);

CREATE INDEX overage_periods_customer_id_idx ON overage_periods (customer_id, starts_at);

COMMENT ON COLUMN overage_periods.is_paid IS 'false: a trial at Stripe';
COMMENT ON COLUMN overage_periods.closed_as IS 'its days were put onto a bill; NULL = not yet';

-- To be looked for inside a period: both ends are closed by the period's own.
CREATE FUNCTION utc_day(day DATE) RETURNS TSTZRANGE LANGUAGE sql IMMUTABLE
RETURN TSTZRANGE(day::TIMESTAMP AT TIME ZONE 'UTC', (day + 1)::TIMESTAMP AT TIME ZONE 'UTC');

-- When a period really ended: as planned, by the next one (another interval), or with the subscription.
CREATE VIEW paid_periods AS
SELECT *
  FROM (SELECT customer_id, subscription_id, starts_at, is_paid, closed_as,
               GREATEST(starts_at, LEAST(period.ends_at, LEAD(starts_at) OVER later, ended_at)) AS ends_at,
               LEAD(starts_at) OVER later IS NOT NULL OR ended_at IS NOT NULL AS is_over
          FROM overage_periods AS period
          JOIN (SELECT subscription_id, ended_at FROM subscriptions) AS subscription USING (subscription_id)
        WINDOW later AS (PARTITION BY customer_id, subscription_id ORDER BY starts_at)) AS period
 WHERE is_paid;

-- Ledger, outbox and evidence: a day of a customer as it was computed, one row per revision. A row with a `bill`
-- is on its way to Stripe; it is billed when it knows its invoice item.
CREATE TABLE overage_days (
    customer_id     VARCHAR(255) NOT NULL REFERENCES customers (customer_id),
    day             DATE         NOT NULL,
    revision        INTEGER      NOT NULL,
    total           BIGINT       NOT NULL,
    included        INTEGER      NOT NULL,
    over            BIGINT       NOT NULL CHECK (over >= 0),
    due             BIGINT       NOT NULL CHECK (due >= 0),
    price           INTEGER      NOT NULL CHECK (price > 0),
    reports         JSONB        NOT NULL,
    state           VARCHAR(10)  NOT NULL CHECK (state IN ('open', 'held', 'late', 'billed')),
    released        BOOLEAN      NOT NULL DEFAULT FALSE,
    reason          VARCHAR(500),
    actor           VARCHAR(255) NOT NULL
                    DEFAULT COALESCE(NULLIF(CURRENT_SETTING('billing.actor', TRUE), ''), SESSION_USER),
    created_at      TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    bill            VARCHAR(255),
    subscription_id VARCHAR(255),
    invoice_item_id VARCHAR(255),
    billed_at       TIMESTAMPTZ,
    PRIMARY KEY (customer_id, day, revision),
    CHECK (bill IS NOT NULL OR state <> 'billed'),
    CHECK ((bill IS NULL) = (subscription_id IS NULL)),
    CHECK ((state = 'billed') = (billed_at IS NOT NULL))
);

CREATE INDEX overage_days_unbilled_idx ON overage_days (customer_id, bill) WHERE bill IS NOT NULL AND state <> 'billed';

COMMENT ON COLUMN overage_days.due IS 'device-days that this revision adds to what was billed before';
COMMENT ON COLUMN overage_days.price IS 'per device-day, in the smallest unit of the currency';
COMMENT ON COLUMN overage_days.reports IS 'the report of each instance that made the total';
COMMENT ON COLUMN overage_days.released IS 'an operator looked at it: it is not held by itself again';

-- The newest revision of each day, and the device-days that are on bills by now (NULL: the day is on none).
CREATE VIEW overage_current AS
SELECT DISTINCT ON (customer_id, day) *,
       (SUM(due) FILTER (WHERE bill IS NOT NULL) OVER (PARTITION BY customer_id, day))::BIGINT AS billed
  FROM overage_days
 ORDER BY customer_id, day, revision DESC;

-- The newest revision of a day that may still go onto a bill: not of an erased customer, nor of a period that
-- ended under OVERAGE=shadow.
CREATE VIEW overage_unbilled AS
SELECT *
  FROM overage_days AS days
 WHERE bill IS NULL
   AND NOT EXISTS (SELECT 1
                     FROM overage_days
                    WHERE customer_id = days.customer_id
                      AND day = days.day
                      AND revision > days.revision)
   AND customer_id IN (SELECT customer_id FROM customers WHERE erased_at IS NULL)
   AND NOT EXISTS (SELECT 1
                     FROM paid_periods
                    WHERE customer_id = days.customer_id
                      AND closed_as = 'shadow'
                      AND TSTZRANGE(starts_at, ends_at) @> UTC_DAY(day));

CREATE FUNCTION keep_overage_day() RETURNS TRIGGER LANGUAGE plpgsql AS $$
DECLARE
    changeable CONSTANT TEXT[] := ARRAY['state', 'bill', 'subscription_id', 'invoice_item_id', 'billed_at'];
BEGIN
    IF TG_OP = 'DELETE' OR OLD.state = 'billed' OR TO_JSONB(OLD) - changeable <> TO_JSONB(NEW) - changeable THEN
        RAISE EXCEPTION 'overage_days is append-only: % revision %', OLD.day, OLD.revision;
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER overage_days_are_kept BEFORE UPDATE OR DELETE ON overage_days
   FOR EACH ROW EXECUTE FUNCTION keep_overage_day();
