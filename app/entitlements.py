"""What a customer may use, and until when its license is valid. Pure: no Flask, no SQL, no clock.

Subscriptions are rows as `queries.subscriptions` returns them, times are aware datetimes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from app.plans import PLANS, TRIAL, Plan

Row = Mapping[str, Any]

LIVE_STATUSES: Final = frozenset({"active", "trialing", "past_due"})
ENDED_STATUSES: Final = frozenset({"canceled", "incomplete_expired", "expired"})
FLOOR: Final = timedelta(days=1)
KNOWN_STATUSES: Final = LIVE_STATUSES | ENDED_STATUSES | {"incomplete", "unpaid", "paused"}


@dataclass(frozen=True, slots=True)
class Entitlement:
    """The outcome: `plan` is what is granted, `subscription` the row it is derived from, or None."""

    plan: Plan
    subscription: Row | None
    status: str
    reason: str
    trial_mode: bool
    trial_ends_at: datetime | None
    device_limit: int | None
    retention_days: int | None
    live_count: int
    license_devices: int | None
    """What the license allows: the device limit, or with overage the cap."""

    @property
    def period_end(self) -> datetime | None:
        """When what is granted is renewed, or ends; None when it has ended."""
        ended = self.subscription is None or self.status in ENDED_STATUSES
        return None if ended else self.subscription["current_period_ends_at"]  # type: ignore[index]


def is_local(subscription: Row) -> bool:
    """A trial of our own, which Stripe knows nothing of."""
    return subscription["stripe_subscription_id"] is None


def status_at(subscription: Row, now: datetime) -> str:
    """The status for callers: a local trial that has run out is `expired` by the clock alone."""
    on_trial = is_local(subscription) and subscription["status"] == "trialing"
    return "expired" if on_trial and subscription["trial_ends_at"] <= now else str(subscription["status"])


def is_live(subscription: Row) -> bool:
    """Stripe keeps serving it. An unknown plan is live too, it only grants nothing."""
    return not is_local(subscription) and subscription["status"] in LIVE_STATUSES


def ends_with_period(subscription: Row) -> bool:
    """Whether a cancellation is pending for the end of the period: the portal only sets `cancel_at`."""
    cancel_at = subscription["cancel_at"]
    return subscription["cancel_at_period_end"] or (
        cancel_at is not None and cancel_at == subscription["current_period_ends_at"]
    )


def entitle(customer: Row, subscriptions: Sequence[Row], now: datetime) -> Entitlement:
    """The one decision: a live Stripe subscription, else a running local trial, else trial mode."""
    live = [s for s in subscriptions if is_live(s)]
    paying = [s for s in live if s["plan"] in PLANS]
    running = [s for s in subscriptions if is_local(s) and status_at(s, now) == "trialing"]
    best: Row | None
    trial_ends_at: datetime | None = None
    if paying:
        best = max(paying, key=lambda s: (PLANS[s["plan"]].rank, s["status"] == "active", s["id"]))
        plan, reason = PLANS[best["plan"]], "live Stripe subscription"
    elif running:
        best = max(running, key=_age)
        plan, reason, trial_ends_at = PLANS[best["plan"]], "running trial", best["trial_ends_at"]
    else:
        # An unknown price still being paid for outranks older history: it is what needs attention.
        best = max(live or subscriptions, key=_age, default=None)
        plan, reason = TRIAL, _reason_for_nothing(best, now)
        trial_ends_at = _lapsed_at(best, now) if best else customer["created_at"]
    own = customer if plan.name == "enterprise" else {"max_devices": None, "retention_days": None}
    device_limit = plan.max_devices if own["max_devices"] is None else own["max_devices"]
    cap = customer["overage_cap"] if paying and device_limit is not None else None
    return Entitlement(
        plan=plan,
        subscription=best,
        status=status_at(best, now) if best else "expired",
        reason=reason,
        trial_mode=not paying,
        trial_ends_at=trial_ends_at,
        device_limit=device_limit,
        retention_days=plan.retention_days if own["retention_days"] is None else own["retention_days"],
        live_count=len(live),
        license_devices=device_limit if cap is None else max(cap, device_limit),
    )


def _reason_for_nothing(subscription: Row | None, now: datetime) -> str:
    if subscription is None:
        return "no subscription yet"
    status = status_at(subscription, now)
    if subscription["plan"] not in PLANS:
        return f"subscription is {status}, but its price belongs to no plan"
    if status not in KNOWN_STATUSES:
        return f"subscription has the unknown status {status}"
    return f"subscription is {status}"


def license_expiry(
    entitlement: Entitlement, now: datetime, *, validity_days: int, grace_days: int
) -> datetime:
    """When a license issued `now` ends; the table of the contract's section 5."""
    grace = timedelta(days=grace_days)
    if entitlement.subscription is None:
        return now + grace
    if entitlement.trial_mode:
        running = entitlement.status == "trialing" and is_local(entitlement.subscription)
        return entitlement.subscription["trial_ends_at"] if running else now + grace
    if entitlement.status == "past_due":
        return now + grace
    ends: list[datetime | None] = [
        entitlement.subscription[name] for name in ("current_period_ends_at", "cancel_at")
    ]
    earliest = min([now + timedelta(days=validity_days), *(end + grace for end in ends if end)])
    return max(earliest, now + FLOOR)  # an end long gone is a renewal that we have not heard of yet


def _lapsed_at(subscription: Row, now: datetime) -> datetime:
    """When the last entitlement ended: its end, or the start of the period that was not paid."""
    lapsed: datetime | None = subscription["ended_at"]
    if lapsed is None and is_local(subscription):
        lapsed = subscription["trial_ends_at"]
    known: datetime = lapsed or subscription["current_period_starts_at"] or subscription["created_at"]
    return min(known, now)


def _age(subscription: Row) -> tuple[datetime, int]:
    return subscription["created_at"], subscription["id"]


def describe(customer: Row, subscription: Row, now: datetime) -> dict[str, Any]:
    """A subscription as callers see it: its row, its present status, and what it alone grants."""
    return _described(subscription, entitle(customer, [subscription], now))


def describe_customer(customer: Row, subscriptions: Sequence[Row], now: datetime) -> dict[str, Any]:
    """A customer with the subscription that counts."""
    granted = entitle(customer, subscriptions, now)
    current = granted.subscription
    return {**customer, "subscription": current and _described(current, granted)}


def _described(subscription: Row, granted: Entitlement) -> dict[str, Any]:
    return {
        **subscription,
        "interval": subscription["billing_interval"],
        "status": granted.status,
        "cancel_at_period_end": ends_with_period(subscription),
        "device_limit": granted.device_limit,
        "features": granted.plan.features(granted.device_limit, granted.retention_days),
        "limits": granted.plan.limits(),
    }
