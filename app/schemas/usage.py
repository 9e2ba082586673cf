"""Usage reports in, figures out."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from marshmallow import ValidationError, fields, validate

from app.schemas.base import CamelSchema, InputSchema, Instant, read_instant

MAX_DEVICES: Final = 10_000_000
MAX_BATCH: Final = 1000
AHEAD: Final = timedelta(minutes=5)
BACK: Final = timedelta(days=35)

_FIGURES: Final = {
    "activeDevices": "activeDevices", "active_devices": "activeDevices",
    "activeAgents": "activeDevices", "active_agents": "activeDevices",
    "totalDevices": "totalDevices", "total_devices": "totalDevices",
    "totalAgents": "totalDevices", "total_agents": "totalDevices",
}  # fmt: skip
_MEMBERS: Final = _FIGURES | {
    "customerId": "customerId", "customer_id": "customerId",
    "instanceId": "instanceId", "instance_id": "instanceId", "timestamp": "timestamp",
}  # fmt: skip
_REQUIRED: Final = ("customerId", "activeDevices", "totalDevices")
_EXPECTED: Final = {
    "customerId": "Not a customer id.",
    "instanceId": "Expected 1 to 100 printable characters.",
    "activeDevices": "Expected an integer from 0 to 10000000.",
    "totalDevices": "Expected an integer from 0 to 10000000.",
}
_CUSTOMER_ID: Final = re.compile(r"[A-Za-z0-9_]{1,255}", re.ASCII)


def read_report(data: Any, *, back: timedelta | None = BACK) -> dict[str, Any]:
    """A report in any of its spellings as a row, checked in every field. Raises ValidationError.

    `back`: how old it may be. A plain function, because marshmallow takes ten times as long.
    """
    given = _members(data)
    customer_id, instance_id = given["customerId"], given.get("instanceId", "default")
    active, total = given["activeDevices"], given["totalDevices"]
    valid = {
        "customerId": type(customer_id) is str and _CUSTOMER_ID.fullmatch(customer_id),
        "instanceId": type(instance_id) is str and 1 <= len(instance_id) <= 100 and instance_id.isprintable(),
        "activeDevices": type(active) is int and 0 <= active <= MAX_DEVICES,
        "totalDevices": type(total) is int and 0 <= total <= MAX_DEVICES,
    }
    errors = {name: [_EXPECTED[name]] for name, is_valid in valid.items() if not is_valid}
    if valid["activeDevices"] and valid["totalDevices"] and active > total:
        errors["activeDevices"] = ["More than totalDevices."]
    try:
        reported_at = _time_of(given, back)
    except ValidationError as error:
        errors["timestamp"] = error.messages  # type: ignore[assignment]
    if errors:
        raise ValidationError(errors)
    return {
        "customer_id": customer_id, "instance_id": instance_id, "active_devices": active,
        "total_devices": total, "reported_at": reported_at,
    }  # fmt: skip


def _members(data: Any) -> dict[str, Any]:
    """What was given, by the names of the API, the figures from `metrics` too."""
    if not isinstance(data, dict):
        raise ValidationError('Send one report as a JSON object, several as {"reports": […]} to …/reports.')
    metrics = data.get("metrics", {})
    if not isinstance(metrics, dict):
        raise ValidationError({"metrics": ["Not an object."]})
    given: dict[str, Any] = {}
    errors: dict[str, list[str]] = {}
    for members, names in ((data, _MEMBERS), (metrics, _FIGURES)):
        for spelled, value in members.items():
            name = names.get(spelled)
            if name is not None and name not in given:
                given[name] = value
            elif members is metrics:
                errors["metrics"] = [f"{spelled}: unknown here, or given twice."]
            elif spelled != "metrics":
                errors[name or spelled] = ["Given in two spellings; send one." if name else "Unknown field."]
    missing = [name for name in _REQUIRED if name not in given]
    errors |= {name: ["Missing data for required field."] for name in missing}
    if errors:
        raise ValidationError(errors)
    return given


def _time_of(given: dict[str, Any], back: timedelta | None) -> datetime:
    at = datetime.now(UTC)
    if "timestamp" not in given:
        return at
    reported_at = read_instant(given["timestamp"])
    if reported_at > at + AHEAD:
        raise ValidationError("More than 5 minutes ahead of our clock.")
    if back is not None and reported_at < at - back:
        raise ValidationError("More than 35 days back.")
    return reported_at


class NewReport(InputSchema):
    """Documents a report; `read_report` checks it."""

    customerId = fields.String(required=True, validate=validate.Length(1, 255))
    instanceId = fields.String(validate=validate.Length(1, 100))
    timestamp = Instant()
    activeDevices = fields.Integer(required=True, validate=validate.Range(0, MAX_DEVICES))
    totalDevices = fields.Integer(required=True, validate=validate.Range(0, MAX_DEVICES))

    def load(self, data: Any, **options: Any) -> dict[str, Any]:
        return read_report(data)


class Items(fields.List[Any]):
    """A list whose items are only documented here: they are checked one by one, each with its own result."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.make_error("invalid")
        return value


class Reports(InputSchema):
    """A batch, of which a bad item never spoils the rest."""

    reports = Items(fields.Nested(NewReport), required=True, validate=validate.Length(1, MAX_BATCH))


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
    license = fields.String()


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
