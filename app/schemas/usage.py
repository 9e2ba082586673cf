"""Usage reports in, figures out."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from marshmallow import ValidationError, fields, post_load, validate

from app.schemas.base import CamelSchema, InputSchema, Instant, read_instant
from app.schemas.subscriptions import CUSTOMER_ID

MAX_DEVICES: Final = 10_000_000
MAX_BATCH: Final = 1000
AHEAD: Final = timedelta(minutes=5)
BACK: Final = timedelta(days=35)
METRICS: Final = ("activeDevices", "totalDevices", "active_devices", "total_devices")

_FIGURES: Final = {"activeDevices", "totalDevices"}
_OPTIONAL: Final = {"instanceId", "timestamp"}
_FLAT: Final = {"customerId"} | _FIGURES
_NESTED: Final = {"customerId", "metrics"}
_customer_id: Final = re.compile(r"[A-Za-z0-9_]{1,255}", re.ASCII)
_devices = validate.Range(0, MAX_DEVICES)


class NewReport(InputSchema):
    """A report in either of its two shapes: figures flat, or under `metrics`."""

    def load(self, data: Any, **options: Any) -> dict[str, Any]:
        return ordinary_report(data) or super().load(data, **options)

    customerId = fields.String(attribute="customer_id", required=True, validate=CUSTOMER_ID)
    instanceId = fields.String(
        attribute="instance_id", load_default="default", validate=validate.Length(1, 100)
    )
    timestamp = Instant(attribute="reported_at")
    activeDevices = fields.Integer(attribute="active_devices", required=True, strict=True, validate=_devices)
    totalDevices = fields.Integer(attribute="total_devices", required=True, strict=True, validate=_devices)

    def reshape(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Lift the figures out of `metrics`."""
        if "metrics" not in data:
            return data
        flat = {name: value for name, value in data.items() if name != "metrics"}
        if not isinstance(data["metrics"], Mapping):
            raise ValidationError({"metrics": ["Not an object."]})
        for name, value in data["metrics"].items():
            if name in flat or name not in METRICS:
                raise ValidationError({"metrics": {name: ["Unknown here, or given twice."]}})
            flat[name] = value
        return flat

    @post_load
    def judge(self, report: dict[str, Any], **_: Any) -> dict[str, Any]:
        at = datetime.now(UTC)
        reported_at = report.setdefault("reported_at", at)
        if reported_at > at + AHEAD:
            raise ValidationError({"timestamp": ["More than 5 minutes ahead of our clock."]})
        if reported_at < at - BACK:
            raise ValidationError({"timestamp": ["More than 35 days back."]})
        if report["active_devices"] > report["total_devices"]:
            raise ValidationError({"activeDevices": ["More than totalDevices."]})
        if not report["instance_id"].isprintable():
            raise ValidationError({"instanceId": ["Contains characters that are not printable."]})
        return report


def ordinary_report(data: Any) -> dict[str, Any] | None:
    """What the schema above makes of a report as nearly all instances send it: in camelCase, and right in
    every field. None for any other, which the schema judges; it takes ten times as long.
    """
    if type(data) is not dict:
        return None
    figures = data.get("metrics", data)
    needed = _FLAT if figures is data else _NESTED
    if (
        data.keys() - _OPTIONAL != needed
        or type(figures) is not dict
        or figures.keys() & _FIGURES != _FIGURES
    ):
        return None
    if figures is not data and len(figures) > len(_FIGURES):
        return None
    at = datetime.now(UTC)
    try:
        reported_at = read_instant(data["timestamp"]) if "timestamp" in data else at
    except ValidationError:
        return None
    customer_id, instance_id = data["customerId"], data.get("instanceId", "default")
    active, total = figures["activeDevices"], figures["totalDevices"]
    is_right = (
        type(customer_id) is str
        and _customer_id.fullmatch(customer_id)
        and type(instance_id) is str
        and 1 <= len(instance_id) <= 100
        and instance_id.isprintable()
        and type(active) is int
        and type(total) is int
        and 0 <= active <= total <= MAX_DEVICES
        and at - BACK <= reported_at <= at + AHEAD
    )
    if not is_right:
        return None
    return {
        "customer_id": customer_id,
        "instance_id": instance_id,
        "active_devices": active,
        "total_devices": total,
        "reported_at": reported_at,
    }


class Items(fields.List[Any]):
    """A list whose items are judged elsewhere."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.make_error("invalid")
        return value


class Reports(InputSchema):
    """The items are judged one by one, so that a bad one never spoils the rest."""

    reports = Items(fields.Raw(allow_none=True), required=True, validate=validate.Length(1, MAX_BATCH))


class ReportSchema(CamelSchema):
    report_id = fields.Integer(attribute="id", required=True)
    customer_id = fields.String(required=True)
    instance_id = fields.String(required=True)
    active_devices = fields.Integer(required=True)
    total_devices = fields.Integer(required=True)
    reported_at = Instant(required=True)
    received_at = Instant(attribute="created_at", required=True)


class ReportAnswer(ReportSchema):
    device_limit = fields.Integer(required=True, allow_none=True)
    utilization = fields.Float(required=True, allow_none=True)
    over_limit = fields.Boolean(required=True)
    warning = fields.String()
    license = fields.String()
    last_report_at = Instant(attribute="last_reported_at", required=True, allow_none=True)


class BatchResult(CamelSchema):
    index = fields.Integer(required=True)
    status = fields.Integer(required=True)
    report_id = fields.Integer()
    errors = fields.Dict()


class BatchAnswer(CamelSchema):
    accepted = fields.Integer(required=True)
    duplicates = fields.Integer(required=True)
    rejected = fields.Integer(required=True)
    results = fields.List(fields.Nested(BatchResult), required=True)


class SummarySchema(CamelSchema):
    total_reports = fields.Integer(required=True)
    avg_active = fields.Float(required=True)
    peak_active = fields.Integer(required=True)
    current_active = fields.Integer(required=True)
    current_total = fields.Integer(required=True)
    limit = fields.Integer(required=True, allow_none=True)
    remaining = fields.Integer(required=True, allow_none=True)
    utilization = fields.Float(required=True, allow_none=True)


class SilentInstance(CamelSchema):
    instance_id = fields.String(required=True)
    last_reported_at = Instant(required=True)


class UsageAnswer(CamelSchema):
    customer_id = fields.String(required=True)
    plan = fields.String(required=True)
    device_limit = fields.Integer(required=True, allow_none=True)
    reports = fields.List(fields.Nested(ReportSchema), required=True)
    summary = fields.Nested(SummarySchema, required=True)
    silent_instances = fields.List(fields.Nested(SilentInstance), required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class CustomerUsage(CamelSchema):
    customer_id = fields.String(required=True)
    email = fields.String(required=True)
    name = fields.String(required=True, allow_none=True)
    company_name = fields.String(required=True, allow_none=True)
    plan = fields.String(required=True)
    status = fields.String(required=True)
    device_limit = fields.Integer(required=True, allow_none=True)
    summary = fields.Nested(SummarySchema, required=True)


class OverviewAnswer(CamelSchema):
    customers = fields.List(fields.Nested(CustomerUsage), required=True)
    next_cursor = fields.String(required=True, allow_none=True)
