-- What they subscribe to: Stripe's subscriptions as last fetched, trials of our own, and Stripe's events.

CREATE TABLE subscriptions (
    id                       BIGSERIAL    PRIMARY KEY,
    subscription_id          VARCHAR(255) NOT NULL UNIQUE CHECK (subscription_id ~ '^(sub|trial)_'),
    customer_id              VARCHAR(255) NOT NULL REFERENCES customers (customer_id),
    stripe_subscription_id   VARCHAR(255) UNIQUE,
    stripe_price_id          VARCHAR(255),
    plan                     VARCHAR(50)  NOT NULL
                             CHECK (plan IN ('trial', 'starter', 'professional', 'enterprise', 'unknown')),
    billing_interval         VARCHAR(10),
    amount                   BIGINT,
    currency                 VARCHAR(3),
    status                   VARCHAR(50)  NOT NULL CHECK (status <> ''),
    paid                     BOOLEAN      NOT NULL DEFAULT FALSE,
    trial_ends_at            TIMESTAMPTZ,
    current_period_starts_at TIMESTAMPTZ,
    current_period_ends_at   TIMESTAMPTZ,
    cancel_at_period_end     BOOLEAN      NOT NULL DEFAULT FALSE,
    cancel_at                TIMESTAMPTZ,
    ended_at                 TIMESTAMPTZ,
    details                  JSONB        NOT NULL DEFAULT '{}',
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
COMMENT ON COLUMN subscriptions.amount IS 'unit amount × quantity per interval, in the smallest unit of the currency';
COMMENT ON COLUMN subscriptions.details IS
    'for operators: pauseCollection {behavior, resumesAt}, scheduledChange {price, plan, at},
     unpaidInvoice {id, url, amountDue, currency, nextPaymentAttemptAt}';
COMMENT ON COLUMN subscriptions.changes IS 'changes asked of Stripe that had an outcome; part of the next idempotency key';
COMMENT ON COLUMN subscriptions.event_id IS 'the Stripe event that led to the present state, where one did';

CREATE TRIGGER subscriptions_audit AFTER INSERT OR UPDATE OR DELETE ON subscriptions
   FOR EACH ROW EXECUTE FUNCTION audit_row('subscription', 'subscription_id');

-- The one subscription that counts for a customer: what `entitle` in app/entitlements.py decides, for reads that filter
-- and count. `plan` is its own, `granted_plan` what it grants now; a local trial that has run out is `expired`.
CREATE FUNCTION current_subscription(the_customer TEXT, at TIMESTAMPTZ) RETURNS TABLE (
    id BIGINT, subscription_id VARCHAR, stripe_subscription_id VARCHAR, plan VARCHAR, billing_interval VARCHAR,
    status VARCHAR, trial_ends_at TIMESTAMPTZ, current_period_starts_at TIMESTAMPTZ,
    current_period_ends_at TIMESTAMPTZ, cancel_at_period_end BOOLEAN, cancel_at TIMESTAMPTZ, ended_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ, updated_at TIMESTAMPTZ, granted_plan VARCHAR, is_live BOOLEAN
) LANGUAGE sql STABLE AS $$
    SELECT s.id, s.subscription_id, s.stripe_subscription_id, s.plan, s.billing_interval,
           CASE WHEN on_trial AND s.trial_ends_at <= at THEN 'expired' ELSE s.status END, s.trial_ends_at,
           s.current_period_starts_at, s.current_period_ends_at, s.cancel_at_period_end, s.cancel_at, s.ended_at,
           s.created_at, s.updated_at, CASE WHEN pays OR on_trial AND s.trial_ends_at > at THEN s.plan ELSE 'trial' END,
           live
      FROM subscriptions AS s
     CROSS JOIN LATERAL (
           SELECT s.stripe_subscription_id IS NULL AND s.status = 'trialing' AS on_trial,
                  s.stripe_subscription_id IS NOT NULL AND s.status IN ('active', 'trialing', 'past_due') AS live) AS a
     CROSS JOIN LATERAL (SELECT live AND s.plan <> 'unknown' AS pays) AS b
     WHERE s.customer_id = the_customer
     ORDER BY pays DESC, on_trial AND s.trial_ends_at > at DESC, live DESC,
              CASE WHEN pays THEN ARRAY_POSITION(ARRAY['starter', 'professional', 'enterprise'], s.plan::TEXT) END DESC,
              pays AND s.status = 'active' DESC,
              CASE WHEN NOT pays THEN s.created_at END DESC,
              s.id DESC
     LIMIT 1
$$;

CREATE TABLE stripe_events (
    event_id           VARCHAR(255) PRIMARY KEY,
    type               VARCHAR(255) NOT NULL,
    object_id          VARCHAR(255),
    customer_id        VARCHAR(255) REFERENCES customers (customer_id),
    stripe_customer_id VARCHAR(255),
    outcome            VARCHAR(20)  NOT NULL CHECK (outcome IN ('done', 'ignored', 'failed')),
    error              VARCHAR(500),
    note               VARCHAR(500),
    attempts           INTEGER      NOT NULL DEFAULT 1,
    created_at         TIMESTAMPTZ  NOT NULL,
    received_at        TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    processed_at       TIMESTAMPTZ
);

CREATE INDEX stripe_events_received_at_idx ON stripe_events (received_at DESC, event_id DESC);
CREATE INDEX stripe_events_customer_id_idx ON stripe_events (customer_id, received_at DESC);

COMMENT ON COLUMN stripe_events.note IS 'what an operator should know: a refund, a dispute, a payer without a license';

-- The account that this database is for, as met first.
CREATE TABLE stripe_account (
    only_row   BOOLEAN      PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    account_id VARCHAR(255) NOT NULL,
    livemode   BOOLEAN      NOT NULL,
    created_at TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP
);

-- What each price sold, whatever becomes of it at Stripe.
CREATE TABLE stripe_prices (
    price_id   VARCHAR(255) PRIMARY KEY,
    plan       VARCHAR(50)  NOT NULL CHECK (plan IN ('starter', 'professional', 'enterprise')),
    created_at TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP
);

-- Payers that belong to nobody here, or pay for something else, and shall not be named again:
-- ids of customers, subscriptions, prices or products at Stripe.
CREATE TABLE stripe_ignored (
    stripe_id  VARCHAR(255) PRIMARY KEY,
    created_at TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP
);
