"""The plan table as data: what each plan costs and grants. Licenses follow a change when next asked for."""

import hashlib
from dataclasses import dataclass
from typing import Final

UNLIMITED_IN_LICENSE: Final = 999_999
"""Deployed instances compare numbers, so a license spells 'unlimited' as one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One column of the table; ``None`` is unlimited (for a price: there is none).

    `overage_cents`: per extra device and month of 30 device-days, hence divisible by 30.
    """

    name: str
    rank: int
    monthly_cents: int | None
    overage_cents: int | None
    max_devices: int | None
    retention_days: int | None
    has_advanced_alerts: bool
    has_custom_branding: bool
    max_users: int | None
    max_alert_rules: int | None
    max_dashboards: int | None
    support: str | None

    def features(self, max_devices: int | None, retention_days: int | None) -> dict[str, int | bool | None]:
        """The API's `features` for a customer with these figures of their own (None: unlimited)."""
        return {
            "maxDevices": max_devices,
            "dataRetentionDays": retention_days,
            "canExportData": True,
            "hasAdvancedAlerts": self.has_advanced_alerts,
            "hasApiAccess": True,
            "hasMqttAccess": True,
            "hasCustomBranding": self.has_custom_branding,
        }

    def limits(self) -> dict[str, int | None]:
        return {
            "maxUsers": self.max_users,
            "maxAlertRules": self.max_alert_rules,
            "maxDashboards": self.max_dashboards,
        }


TRIAL: Final = Plan("trial", 0, None, None, 5, 30, False, False, 5, 25, 10, None)
STARTER: Final = Plan("starter", 1, 2900, 300, 10, 30, False, False, 5, 25, 10, "email")
PROFESSIONAL: Final = Plan("professional", 2, 9900, 270, 50, 365, True, False, 10, 100, 20, "priority")
ENTERPRISE: Final = Plan("enterprise", 3, None, None, None, None, True, True, None, None, None, "24/7 phone")

PLANS: Final = {plan.name: plan for plan in (TRIAL, STARTER, PROFESSIONAL, ENTERPRISE)}
PAID_PLANS: Final = ("starter", "professional", "enterprise")
INTERVALS: Final = ("month", "year")

PLAN_TABLE: Final = hashlib.sha256(repr(PLANS).encode()).hexdigest()[:16]
"""Identifies the table in the licenses that were derived from it."""
