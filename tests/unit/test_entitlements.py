"""The one decision, as a table: which subscriptions grant what, until when, and what a license says of it."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.entitlements import (
    ENDED_STATUSES,
    FLOOR,
    KNOWN_STATUSES,
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
CUSTOMER: dict[str, Any] = {
    "customer_id": "cust_0123456789ab",
    "email": "ada@example.com",
    "name": "Ada",
    "company_name": None,
    "max_devices": None,
    "retention_days": None,
    "overage_cap": None,
    "created_at": NOW - 90 * DAY,
}
_ids = itertools.count(1)


def stripe_row(status: str = "active", plan: str = "professional", **changes: Any) -> dict[str, Any]:
    number = next(_ids)
    return {
        "id": number,
        "subscription_id": f"sub_{number}",
        "stripe_subscription_id": f"sub_{number}",
        "plan": plan,
        "billing_interval": "month",
        "status": status,
        "paid": True,
        "trial_ends_at": None,
        "current_period_starts_at": NOW - 10 * DAY,
        "current_period_ends_at": NOW + 20 * DAY,
        "cancel_at_period_end": False,
        "cancel_at": None,
        "ended_at": NOW - 2 * DAY if status in ("canceled", "incomplete_expired") else None,
        "created_at": NOW - 40 * DAY,
        **changes,
    }


def trial_row(ends: timedelta = 4 * DAY, plan: str = "trial", **changes: Any) -> dict[str, Any]:
    ends_at = NOW + ends
    return stripe_row(changes.pop("status", "trialing"), plan, **{
        "stripe_subscription_id": None,
        "subscription_id": "trial_1",
        "paid": False,
        "trial_ends_at": ends_at,
        "current_period_starts_at": ends_at - 14 * DAY,
        "current_period_ends_at": ends_at,
        "created_at": ends_at - 14 * DAY,
        **changes,
    })  # fmt: skip


def expiry(*rows: dict[str, Any], validity: int = 365, grace: int = 7) -> datetime:
    return license_expiry(entitle(CUSTOMER, rows, NOW), NOW, validity_days=validity, grace_days=grace)


def test_the_three_kinds_of_status_are_all_of_stripes_and_ours() -> None:
    assert {"active", "trialing", "past_due"} == LIVE_STATUSES
    assert set(STRIPE_STATUSES) | {"expired"} == KNOWN_STATUSES
    assert not LIVE_STATUSES & ENDED_STATUSES


TABLE = [
    # status in Stripe → plan, trial mode, trial end, device limit, license ends
    ("active", "professional", False, None, 50, NOW + 27 * DAY),
    ("trialing", "professional", False, None, 50, NOW + 27 * DAY),
    ("past_due", "professional", False, None, 50, NOW + 7 * DAY),
    ("unpaid", "trial", True, NOW - 10 * DAY, 5, NOW + 7 * DAY),
    ("paused", "trial", True, NOW - 10 * DAY, 5, NOW + 7 * DAY),
    ("incomplete", "trial", True, NOW - 10 * DAY, 5, NOW + 7 * DAY),
    ("incomplete_expired", "trial", True, NOW - 2 * DAY, 5, NOW + 7 * DAY),
    ("canceled", "trial", True, NOW - 2 * DAY, 5, NOW + 7 * DAY),
    ("expired", "trial", True, NOW - 10 * DAY, 5, NOW + 7 * DAY),
    ("a_status_never_heard_of", "trial", True, NOW - 10 * DAY, 5, NOW + 7 * DAY),
    ("Active", "trial", True, NOW - 10 * DAY, 5, NOW + 7 * DAY),
]


def test_the_table_names_every_status_of_stripe() -> None:
    assert set(STRIPE_STATUSES) <= {row[0] for row in TABLE}


@pytest.mark.parametrize(
    ("status", "plan", "trial_mode", "trial_ends_at", "device_limit", "ends"), TABLE, ids=str
)
def test_every_status_of_a_stripe_subscription(
    status: str,
    plan: str,
    trial_mode: bool,
    trial_ends_at: datetime | None,
    device_limit: int,
    ends: datetime,
) -> None:
    granted = entitle(CUSTOMER, [stripe_row(status)], NOW)
    assert (granted.plan.name, granted.trial_mode, granted.trial_ends_at, granted.device_limit) == (
        plan, trial_mode, trial_ends_at, device_limit,
    )  # fmt: skip
    assert granted.status == status
    assert granted.retention_days == PLANS[plan].retention_days
    assert expiry(stripe_row(status)) == ends
    assert granted.live_count == (status in LIVE_STATUSES)


@pytest.mark.parametrize("status", [*STRIPE_STATUSES, "expired", "a_status_never_heard_of"])
def test_an_unknown_price_grants_nothing_in_any_status(status: str) -> None:
    granted = entitle(CUSTOMER, [stripe_row(status, "unknown")], NOW)
    assert (granted.plan.name, granted.trial_mode, granted.device_limit) == ("trial", True, 5)
    assert "belongs to no plan" in granted.reason
    assert granted.trial_ends_at is not None
    assert granted.trial_ends_at <= NOW
    assert expiry(stripe_row(status, "unknown")) == NOW + 7 * DAY


@pytest.mark.parametrize("status", [*STRIPE_STATUSES, "expired", "a_status_never_heard_of"])
def test_a_running_trial_beside_a_stripe_subscription_of_every_status(status: str) -> None:
    running = trial_row(plan="starter")
    granted = entitle(CUSTOMER, [running, stripe_row(status)], NOW)
    if status in LIVE_STATUSES:
        assert (granted.plan.name, granted.trial_mode, granted.trial_ends_at) == ("professional", False, None)
    else:
        assert (granted.plan.name, granted.trial_mode, granted.device_limit) == ("starter", True, 10)
        assert granted.trial_ends_at == running["trial_ends_at"]
        assert expiry(running, stripe_row(status)) == running["trial_ends_at"]


def test_an_unknown_price_does_not_take_a_running_trial_away() -> None:
    granted = entitle(CUSTOMER, [trial_row(plan="enterprise"), stripe_row("active", "unknown")], NOW)
    assert (granted.plan.name, granted.trial_mode, granted.device_limit) == ("enterprise", True, None)
    assert granted.live_count == 1


@pytest.mark.parametrize("plan", ["trial", "starter", "professional", "enterprise"])
def test_a_trial_ends_by_the_clock_alone_to_the_second(plan: str) -> None:
    row = trial_row(plan=plan)
    end = row["trial_ends_at"]
    before = entitle(CUSTOMER, [row], end - timedelta(microseconds=1))
    assert (before.plan.name, before.status, before.trial_mode) == (plan, "trialing", True)
    assert before.trial_ends_at == end
    after = entitle(CUSTOMER, [row], end)
    assert (after.plan.name, after.status, after.device_limit, after.trial_ends_at) == (
        "trial", "expired", 5, end,
    )  # fmt: skip
    assert license_expiry(after, end, validity_days=365, grace_days=7) == end + 7 * DAY


def test_nothing_at_all_is_a_lapsed_trial_since_the_beginning() -> None:
    granted = entitle(CUSTOMER, [], NOW)
    assert (granted.plan.name, granted.status, granted.trial_mode) == ("trial", "expired", True)
    assert granted.trial_ends_at == CUSTOMER["created_at"]
    assert granted.subscription is None
    assert expiry() == NOW + 7 * DAY
    assert describe_customer(CUSTOMER, [], NOW)["subscription"] is None


def test_of_several_live_ones_the_better_plan_counts_then_the_active_one_then_the_newer() -> None:
    starter, late, paid = stripe_row("active", "starter"), stripe_row("past_due"), stripe_row("active")
    for rows in itertools.permutations([starter, late, paid]):
        granted = entitle(CUSTOMER, rows, NOW)
        assert granted.subscription is paid
        assert granted.live_count == 3
    assert entitle(CUSTOMER, [starter, late], NOW).subscription is late
    newer = stripe_row("active")
    assert entitle(CUSTOMER, [newer, paid], NOW).subscription is newer


def test_a_live_one_counts_over_any_ended_one() -> None:
    ended = stripe_row("canceled", "enterprise", created_at=NOW)
    granted = entitle(CUSTOMER, [stripe_row("past_due", "starter"), ended], NOW)
    assert (granted.plan.name, granted.device_limit, granted.live_count) == ("starter", 10, 1)


def test_with_nothing_live_the_latest_one_is_told_of() -> None:
    old = stripe_row("canceled", created_at=NOW - 80 * DAY, ended_at=NOW - 50 * DAY)
    unpaid = stripe_row("unpaid", created_at=NOW - 40 * DAY)
    run_out = trial_row(-DAY)
    assert entitle(CUSTOMER, [unpaid, old], NOW).subscription is unpaid
    assert entitle(CUSTOMER, [unpaid, old, run_out], NOW).subscription is run_out
    assert entitle(CUSTOMER, [unpaid, old, run_out], NOW).trial_ends_at == NOW - DAY


def test_a_trial_that_was_ended_early_lapsed_then() -> None:
    ended = trial_row(status="canceled", ended_at=NOW - 3 * DAY)
    granted = entitle(CUSTOMER, [ended], NOW)
    assert (granted.plan.name, granted.status, granted.trial_ends_at) == ("trial", "canceled", NOW - 3 * DAY)


OWN = {"max_devices": 5000, "retention_days": 730}


@pytest.mark.parametrize("plan", ["starter", "professional", "enterprise"])
@pytest.mark.parametrize("own", [{}, {"max_devices": 1}, {"retention_days": 1}, OWN])
@pytest.mark.parametrize("row", [stripe_row, trial_row])
def test_own_figures_count_for_enterprise_only(plan: str, own: dict[str, int], row: Any) -> None:
    granted = entitle(CUSTOMER | own, [row(plan=plan)], NOW)
    expected_devices, expected_days = PLANS[plan].max_devices, PLANS[plan].retention_days
    if plan == "enterprise":
        expected_devices, expected_days = own.get("max_devices"), own.get("retention_days")
    assert (granted.device_limit, granted.retention_days) == (expected_devices, expected_days)


def test_own_figures_end_with_the_enterprise_subscription() -> None:
    granted = entitle(CUSTOMER | OWN, [stripe_row("canceled", "enterprise")], NOW)
    assert (granted.device_limit, granted.retention_days) == (5, 30)


@pytest.mark.parametrize(
    ("ends_in", "validity", "grace", "expected"),
    [
        (20 * DAY, 365, 7, 27 * DAY),
        (360 * DAY, 365, 7, 365 * DAY),  # a yearly period: the validity is shorter
        (358 * DAY, 365, 7, 365 * DAY),
        (20 * DAY, 10, 7, 10 * DAY),
        (20 * DAY, 365, 30, 50 * DAY),
        (-3 * DAY, 365, 7, 4 * DAY),  # the renewal's news is late, within the grace
        (-6 * DAY, 365, 7, DAY),
        # News later than the grace: Stripe's last word is still 'active', so the plan is granted, and a
        # license that grants it is never born dead. It lives a day at a time until the news comes.
        (-20 * DAY, 365, 7, FLOOR),
        (-20 * DAY, 1, 7, DAY),
        (None, 365, 7, 365 * DAY),
    ],
)
@pytest.mark.parametrize("status", ["active", "trialing"])
def test_a_paid_license_ends_soon_after_the_period_and_never_later_than_its_validity(
    status: str, ends_in: timedelta | None, validity: int, grace: int, expected: timedelta
) -> None:
    row = stripe_row(status, current_period_ends_at=None if ends_in is None else NOW + ends_in)
    assert expiry(row, validity=validity, grace=grace) == NOW + expected


def test_every_license_that_is_issued_has_time_to_live() -> None:
    offsets = [timedelta(days=d) for d in (-400, -8, -7, -1, 0, 1, 8, 400)]
    for status, offset in itertools.product([*STRIPE_STATUSES, "never_heard_of"], offsets):
        row = stripe_row(status, current_period_ends_at=NOW + offset)
        assert NOW < expiry(row) <= NOW + 365 * DAY
    for offset in offsets:
        assert expiry(trial_row(offset)) > NOW


def claims_of(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    granted = entitle(CUSTOMER | changes, rows, NOW)
    return license_claims(
        CUSTOMER | changes, granted, issuer="zemfyre-billing", jti="j", issued_at=NOW, expires_at=NOW + DAY
    )


def test_the_claims_of_a_paid_license_are_exactly_these() -> None:
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


@pytest.mark.parametrize(
    ("plan", "alerts", "branding", "devices", "days", "limits"),
    [
        ("starter", False, False, 10, 30, {"maxUsers": 5, "maxAlertRules": 25, "maxDashboards": 10}),
        ("professional", True, False, 50, 365, {"maxUsers": 10, "maxAlertRules": 100, "maxDashboards": 20}),
        ("enterprise", True, True, 999999, 999999, {}),
    ],
)
def test_the_claims_of_each_plan(
    plan: str, alerts: bool, branding: bool, devices: int, days: int, limits: dict[str, int]
) -> None:
    claims = claims_of(stripe_row(plan=plan))
    features = claims["features"]
    assert (features["hasAdvancedAlerts"], features["hasCustomBranding"]) == (alerts, branding)
    assert (features["maxDevices"], features["dataRetentionDays"]) == (devices, days)
    assert claims["limits"] == limits


def test_the_claims_of_trials_running_and_lapsed() -> None:
    running = claims_of(trial_row())
    assert running["plan"] == "trial"
    assert running["trial"] == {"isTrialMode": True, "expiresAt": "2026-03-19T12:00:00Z"}
    assert running["subscription"] == {"status": "trialing", "currentPeriodEndsAt": "2026-03-19T12:00:00Z"}
    lapsed = claims_of(trial_row(-DAY))
    assert lapsed["trial"] == {"isTrialMode": True, "expiresAt": "2026-03-14T12:00:00Z"}
    assert lapsed["subscription"]["status"] == "expired"
    assert claims_of()["subscription"] == {"status": "expired"}
    custom = claims_of(stripe_row(plan="enterprise"), **OWN)["features"]
    assert (custom["maxDevices"], custom["dataRetentionDays"]) == (5000, 730)


def test_the_name_is_the_company_then_the_person_then_the_address() -> None:
    assert claims_of(company_name="Acme")["customerName"] == "Acme"
    assert claims_of()["customerName"] == "Ada"
    assert claims_of(name=None)["customerName"] == "ada@example.com"


def test_the_fingerprint_follows_what_is_granted_and_nothing_else() -> None:
    base = fingerprint(claims_of(stripe_row()))
    assert fingerprint(claims_of(stripe_row()) | {"jti": "x", "iat": 1, "exp": 2, "issuedAt": 1}) == base
    changed = [
        claims_of(stripe_row("past_due")),
        claims_of(stripe_row(plan="starter")),
        claims_of(stripe_row(current_period_ends_at=NOW + 50 * DAY)),
        claims_of(stripe_row(), company_name="Acme"),
        claims_of(trial_row(plan="professional")),
        claims_of(),
    ]
    assert len({base, *map(fingerprint, changed)}) == 7


def test_the_one_that_counts_is_described_as_it_is_alone() -> None:
    kinds: list[dict[str, Any]] = [
        *(stripe_row(status) for status in STRIPE_STATUSES),
        *(stripe_row(status, plan) for status in ("active", "past_due") for plan in ("starter", "unknown")),
        *(trial_row(ends, plan) for ends in (4 * DAY, -DAY) for plan in ("trial", "enterprise")),
    ]
    owner = CUSTOMER | {"max_devices": 7, "retention_days": 9}
    for customer, *rows in itertools.product((CUSTOMER, owner), kinds, kinds, kinds):
        described = describe_customer(customer, rows, NOW)["subscription"]
        row = next(row for row in rows if row["id"] == described["id"])
        assert described == describe(customer, row, NOW)


def test_a_described_subscription_tells_of_a_pending_end_however_it_was_set() -> None:
    period_end = NOW + 20 * DAY
    for changes, pending in (
        ({}, False),
        ({"cancel_at_period_end": True}, True),
        ({"cancel_at": period_end}, True),
        ({"cancel_at": period_end - DAY}, False),
    ):
        described = describe(CUSTOMER, stripe_row(**changes), NOW)
        assert described["cancel_at_period_end"] is pending
        assert described["device_limit"] == 50
    assert describe(CUSTOMER, trial_row(-DAY), NOW)["status"] == "expired"
