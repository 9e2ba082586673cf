"""The one decision, as a table: which subscriptions grant what, until when, and what a license says of it."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from app.entitlements import (
    FLOOR,
    LIVE_STATUSES,
    describe,
    describe_customer,
    entitle,
    license_expiry,
)
from app.licenses import fingerprint, license_claims
from app.plans import PLANS

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
DAY = timedelta(days=1)
STRIPE_STATUSES = (
    "active", "trialing", "past_due", "canceled", "incomplete", "incomplete_expired", "unpaid", "paused",
)  # fmt: skip
CUSTOMER = {
    "customer_id": "cust_0123456789ab", "email": "ada@example.com", "name": "Ada", "company_name": None,
    "max_devices": None, "retention_days": None, "overage_cap": None, "created_at": NOW - 90 * DAY,
}  # fmt: skip
_ids = itertools.count(1)


def stripe_row(status="active", plan="professional", **changes):
    number = next(_ids)
    return {
        "id": number, "subscription_id": f"sub_{number}", "stripe_subscription_id": f"sub_{number}",
        "plan": plan, "billing_interval": "month", "status": status, "paid": True, "trial_ends_at": None,
        "current_period_starts_at": NOW - 10 * DAY, "current_period_ends_at": NOW + 20 * DAY,
        "cancel_at_period_end": False, "cancel_at": None,
        "ended_at": NOW - 2 * DAY if status in ("canceled", "incomplete_expired") else None,
        "created_at": NOW - 40 * DAY, **changes,
    }  # fmt: skip


def trial_row(ends=4 * DAY, plan="trial", **changes):
    at, begins = NOW + ends, NOW + ends - 14 * DAY
    fixed = {
        "stripe_subscription_id": None, "subscription_id": "trial_1", "paid": False, "trial_ends_at": at,
        "current_period_starts_at": begins, "current_period_ends_at": at, "created_at": begins,
    }  # fmt: skip
    return stripe_row(changes.pop("status", "trialing"), plan, **fixed | changes)


def expiry(*rows, validity=365, grace=7):
    return license_expiry(entitle(CUSTOMER, rows, NOW), NOW, validity_days=validity, grace_days=grace)


def in_short(granted):
    return granted.plan.name, granted.status, granted.trial_mode, granted.trial_ends_at, granted.device_limit


@pytest.mark.parametrize(
    # status in Stripe → plan, trial end (None: no trial mode), license ends after
    ("status", "plan", "lapsed", "ends"),
    [
        ("active", "professional", None, 27),
        ("trialing", "professional", None, 27),
        ("past_due", "professional", None, 7),
        ("unpaid", "trial", NOW - 10 * DAY, 7),
        ("paused", "trial", NOW - 10 * DAY, 7),
        ("incomplete", "trial", NOW - 10 * DAY, 7),
        ("incomplete_expired", "trial", NOW - 2 * DAY, 7),
        ("canceled", "trial", NOW - 2 * DAY, 7),
        ("expired", "trial", NOW - 10 * DAY, 7),
        ("a_status_never_heard_of", "trial", NOW - 10 * DAY, 7),
        ("Active", "trial", NOW - 10 * DAY, 7),
    ],
)
def test_every_status_of_a_stripe_subscription(status, plan, lapsed, ends):
    granted = entitle(CUSTOMER, [stripe_row(status)], NOW)
    assert in_short(granted) == (plan, status, lapsed is not None, lapsed, PLANS[plan].max_devices)
    assert granted.retention_days == PLANS[plan].retention_days
    assert expiry(stripe_row(status)) == NOW + ends * DAY
    assert granted.live_count == (status in LIVE_STATUSES)
    # An unknown price grants nothing in any status.
    unknown = entitle(CUSTOMER, [stripe_row(status, "unknown")], NOW)
    assert (unknown.plan.name, unknown.trial_mode, unknown.device_limit) == ("trial", True, 5)
    assert "belongs to no plan" in unknown.reason
    assert unknown.trial_ends_at <= NOW
    assert expiry(stripe_row(status, "unknown")) == NOW + 7 * DAY
    beside = entitle(CUSTOMER, [trial_row(plan="enterprise"), stripe_row(status, "unknown")], NOW)
    assert in_short(beside)[::4] == ("enterprise", None)
    assert (beside.trial_mode, beside.live_count) == (True, status in LIVE_STATUSES)
    # A running trial counts unless something live is paid for.
    running = trial_row(plan="starter")
    beside = entitle(CUSTOMER, [running, stripe_row(status)], NOW)
    assert beside.plan.name == (plan if status in LIVE_STATUSES else "starter")
    if status not in LIVE_STATUSES:
        assert beside.trial_ends_at == expiry(running, stripe_row(status)) == running["trial_ends_at"]


@pytest.mark.parametrize("plan", ["trial", "starter", "professional", "enterprise"])
def test_a_trial_ends_by_the_clock_alone_to_the_second(plan):
    row = trial_row(plan=plan)
    end = row["trial_ends_at"]
    before = entitle(CUSTOMER, [row], end - timedelta(microseconds=1))
    assert in_short(before) == (plan, "trialing", True, end, PLANS[plan].max_devices)
    after = entitle(CUSTOMER, [row], end)
    assert in_short(after) == ("trial", "expired", True, end, 5)
    assert license_expiry(after, end, validity_days=365, grace_days=7) == end + 7 * DAY
    assert describe(CUSTOMER, row, end)["status"] == "expired"


def test_no_subscription_is_a_trial_that_lapsed_at_the_beginning():
    granted = entitle(CUSTOMER, [], NOW)
    assert in_short(granted) == ("trial", "expired", True, CUSTOMER["created_at"], 5)
    assert expiry() == NOW + 7 * DAY
    assert describe_customer(CUSTOMER, [], NOW)["subscription"] is None


def test_of_several_live_ones_the_better_plan_counts_then_the_active_one_then_the_newer():
    starter, late, paid = stripe_row("active", "starter"), stripe_row("past_due"), stripe_row("active")
    for rows in itertools.permutations([starter, late, paid]):
        granted = entitle(CUSTOMER, rows, NOW)
        assert (granted.subscription, granted.live_count) == (paid, 3)
    assert entitle(CUSTOMER, [starter, late], NOW).subscription is late
    newer = stripe_row("active")
    assert entitle(CUSTOMER, [newer, paid], NOW).subscription is newer
    ended = stripe_row("canceled", "enterprise", created_at=NOW)
    assert entitle(CUSTOMER, [starter, ended], NOW).subscription is starter


def test_with_nothing_live_the_latest_one_counts():
    old = stripe_row("canceled", created_at=NOW - 80 * DAY, ended_at=NOW - 50 * DAY)
    unpaid, run_out = stripe_row("unpaid"), trial_row(-DAY)
    assert entitle(CUSTOMER, [unpaid, old], NOW).subscription is unpaid
    assert entitle(CUSTOMER, [unpaid, old, run_out], NOW).subscription is run_out
    assert entitle(CUSTOMER, [unpaid, old, run_out], NOW).trial_ends_at == NOW - DAY
    ended = trial_row(status="canceled", ended_at=NOW - 3 * DAY)
    assert in_short(entitle(CUSTOMER, [ended], NOW))[:4] == ("trial", "canceled", True, NOW - 3 * DAY)


@pytest.mark.parametrize("own", [{}, {"max_devices": 1}, {"max_devices": 5000, "retention_days": 730}])
@pytest.mark.parametrize("row", [stripe_row, trial_row])
def test_own_figures_count_for_enterprise_only(own, row):
    for plan in ("starter", "professional", "enterprise"):
        granted = entitle(CUSTOMER | own, [row(plan=plan)], NOW)
        expected = (PLANS[plan].max_devices, PLANS[plan].retention_days)
        if plan == "enterprise":
            expected = (own.get("max_devices"), own.get("retention_days"))
        assert (granted.device_limit, granted.retention_days) == expected
    ended = entitle(CUSTOMER | own, [stripe_row("canceled", "enterprise")], NOW)
    assert (ended.device_limit, ended.retention_days) == (5, 30)


@pytest.mark.parametrize(
    ("ends_in", "validity", "grace", "expected"),
    [
        (20 * DAY, 365, 7, 27 * DAY),
        (360 * DAY, 365, 7, 365 * DAY),  # a yearly period: the validity is shorter
        (20 * DAY, 10, 7, 10 * DAY),
        (20 * DAY, 365, 30, 50 * DAY),
        (-3 * DAY, 365, 7, 4 * DAY),  # the renewal's news is late, within the grace
        # News later than the grace: Stripe's last word is still 'active', so the plan is granted, a day
        # at a time until the news comes.
        (-20 * DAY, 365, 7, FLOOR),
        (-20 * DAY, 1, 7, DAY),
        (None, 365, 7, 365 * DAY),
    ],
)
def test_a_paid_license_ends_soon_after_the_period_and_never_later_than_its_validity(
    ends_in, validity, grace, expected
):
    for status in ("active", "trialing"):
        row = stripe_row(status, current_period_ends_at=ends_in and NOW + ends_in)
        assert expiry(row, validity=validity, grace=grace) == NOW + expected


def test_a_set_end_counts_as_the_periods_end_does():
    assert expiry(stripe_row(cancel_at=NOW + 5 * DAY)) == NOW + 12 * DAY
    assert expiry(stripe_row(cancel_at=NOW + 60 * DAY)) == NOW + 27 * DAY
    for changes, pending in (
        ({}, False), ({"cancel_at_period_end": True}, True),
        ({"cancel_at": NOW + 20 * DAY}, True), ({"cancel_at": NOW + 19 * DAY}, False),
    ):  # fmt: skip
        described = describe(CUSTOMER, stripe_row(**changes), NOW)
        assert (described["cancel_at_period_end"], described["device_limit"]) == (pending, 50)


def test_every_license_that_is_issued_has_time_to_live():
    for days, status in itertools.product((-400, -8, -7, -1, 0, 1, 8, 400), [*STRIPE_STATUSES, "other"]):
        row = stripe_row(status, current_period_ends_at=NOW + days * DAY)
        assert NOW < expiry(row) <= NOW + 365 * DAY
        assert expiry(trial_row(days * DAY)) > NOW


def claims_of(*rows, **changes):
    customer = CUSTOMER | changes
    granted = entitle(customer, rows, NOW)
    return license_claims(
        customer, granted, issuer="zemfyre-billing", jti="j", issued_at=NOW, expires_at=NOW + DAY
    )


def test_the_claims_of_a_paid_license_are_exactly_these():
    assert claims_of(stripe_row()) == {
        "iss": "zemfyre-billing", "sub": "cust_0123456789ab", "jti": "j",
        "iat": 1773576000, "exp": 1773662400,
        "customerId": "cust_0123456789ab", "customerName": "Ada", "plan": "professional",
        "features": {
            "maxDevices": 50, "dataRetentionDays": 365, "canExportData": True, "hasAdvancedAlerts": True,
            "hasApiAccess": True, "hasMqttAccess": True, "hasCustomBranding": False,
        },
        "limits": {"maxUsers": 10, "maxAlertRules": 100, "maxDashboards": 20},
        "trial": {"isTrialMode": False},
        "subscription": {"status": "active", "currentPeriodEndsAt": "2026-04-04T12:00:00Z"},
        "issuedAt": 1773576000, "expiresAt": 1773662400,
    }  # fmt: skip


def test_the_claims_of_other_plans():
    for plan, alerts, branding, devices, days, limits in (
        ("starter", False, False, 10, 30, {"maxUsers": 5, "maxAlertRules": 25, "maxDashboards": 10}),
        ("enterprise", True, True, 999999, 999999, {}),
    ):
        claims = claims_of(stripe_row(plan=plan))
        features = claims["features"]
        assert (features["hasAdvancedAlerts"], features["hasCustomBranding"]) == (alerts, branding)
        assert (features["maxDevices"], features["dataRetentionDays"], claims["limits"]) == (
            devices, days, limits,
        )  # fmt: skip


def test_the_claims_of_trials_and_of_what_has_ended():
    running, lapsed = claims_of(trial_row()), claims_of(trial_row(-DAY))
    assert running["plan"] == "trial"
    assert running["trial"] == {"isTrialMode": True, "expiresAt": "2026-03-19T12:00:00Z"}
    assert running["subscription"] == {"status": "trialing", "currentPeriodEndsAt": "2026-03-19T12:00:00Z"}
    assert lapsed["trial"] == {"isTrialMode": True, "expiresAt": "2026-03-14T12:00:00Z"}
    assert lapsed["subscription"]["status"] == "expired"
    assert claims_of()["subscription"] == {"status": "expired"}
    # Deployed instances refuse a license that says `canceled`.
    statuses = [claims_of(stripe_row(status))["subscription"]["status"] for status in STRIPE_STATUSES]
    assert statuses == [status if status != "canceled" else "expired" for status in STRIPE_STATUSES]


def test_the_name_is_the_company_then_the_person_then_the_address():
    for changes, name in (
        ({"company_name": "Acme"}, "Acme"),
        ({}, "Ada"),
        ({"name": None}, "ada@example.com"),
    ):
        assert claims_of(**changes)["customerName"] == name


def test_the_fingerprint_follows_what_is_granted_and_nothing_else():
    base = fingerprint(claims_of(stripe_row()))
    assert fingerprint(claims_of(stripe_row()) | {"jti": "x", "iat": 1, "exp": 2, "issuedAt": 1}) == base
    changed = [
        claims_of(stripe_row("past_due")), claims_of(stripe_row(plan="starter")),
        claims_of(stripe_row(current_period_ends_at=NOW + 50 * DAY)),
        claims_of(stripe_row(), company_name="Acme"), claims_of(trial_row(plan="professional")), claims_of(),
    ]  # fmt: skip
    assert len({base, *map(fingerprint, changed)}) == 7


def test_the_one_that_counts_is_described_as_it_is_alone():
    kinds = [
        *(stripe_row(status) for status in STRIPE_STATUSES),
        *(stripe_row(status, plan) for status in ("active", "past_due") for plan in ("starter", "unknown")),
        *(trial_row(ends, plan) for ends in (4 * DAY, -DAY) for plan in ("trial", "enterprise")),
    ]
    owner = CUSTOMER | {"max_devices": 7, "retention_days": 9}
    for customer, *rows in itertools.product((CUSTOMER, owner), kinds, kinds):
        described = describe_customer(customer, rows, NOW)["subscription"]
        row = next(row for row in rows if row["id"] == described["id"])
        assert described == describe(customer, row, NOW)
