"""The figures of a window against a plain computation over the same reports."""

from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.conftest import ADMIN
from tests.factories import make_customer

LIMIT = 50

# An instance, how many days ago, at which time of that day, and how many devices.
_clocks = st.sampled_from(
    [time(0), time(0, 0, 0, 1), time(12, 30), time(23, 59, 59), time(23, 59, 59, 999_999)]
) | st.times(max_value=time(23, 59))
_reports = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 34), _clocks, st.integers(0, 80), st.integers(0, 20)),
    max_size=25,
    unique_by=lambda report: report[:3],
)
# Days of 1 to 3 reports near each other make the interesting cases likely.
_dense = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), _clocks, st.integers(0, 80), st.integers(0, 20)),
    max_size=25,
    unique_by=lambda report: report[:3],
)


def plain_summary(reports: list[dict[str, Any]], since: datetime) -> dict[str, Any]:
    """The contract's words as code: no SQL, no cleverness."""
    inside = [report for report in reports if report["at"] >= since]
    highest: dict[date, dict[str, int]] = defaultdict(dict)
    latest: dict[str, dict[str, Any]] = {}
    for report in inside:
        day, name = report["at"].date(), report["instance"]
        highest[day][name] = max(highest[day].get(name, 0), report["active"])
        if name not in latest or report["at"] > latest[name]["at"]:
            latest[name] = report
    totals = [sum(of_day.values()) for of_day in highest.values()]
    active = sum(report["active"] for report in latest.values())
    return {
        "totalReports": len(inside),
        "avgActive": sum(totals) / len(totals) if totals else 0,
        "peakActive": max(totals, default=0),
        "currentActive": active,
        "currentTotal": sum(report["total"] for report in latest.values()),
        "limit": LIMIT,
        "remaining": max(0, LIMIT - active),
        "utilization": active / LIMIT,
    }


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    given_reports=_reports | _dense,
    days=st.sampled_from([1, 2, 7, 30, 400]),
    batched=st.integers(0, 25),
)
@example(
    given_reports=[(0, 1, time(23, 59, 59, 999_999), 5, 0), (0, 0, time(0), 9, 0), (1, 1, time(0), 3, 1)],
    days=7,
    batched=1,
)
def test_figures_are_those_of_a_plain_computation(
    app: Flask, given_reports: list[tuple[int, int, time, int, int]], days: int, batched: int
) -> None:
    client = app.test_client()
    customer_id = make_customer(client, plan="professional")["customerId"]
    start = datetime.now(UTC)
    reports = [
        {
            "instance": f"i{instance}",
            "at": datetime.combine(start.date() - timedelta(days=back), clock, UTC),
            "active": active,
            "total": active + idle,
        }
        for instance, back, clock, active, idle in given_reports
    ]
    reports = [report for report in reports if report["at"] <= start]
    bodies = [
        {
            "customerId": customer_id, "instanceId": report["instance"],
            "timestamp": report["at"].isoformat(),
            "activeDevices": report["active"], "totalDevices": report["total"],
        }
        for report in reports
    ]  # fmt: skip
    if bodies[:batched]:
        sent = client.post("/api/usage/reports", json={"reports": bodies[:batched]}, headers=ADMIN)
        assert sent.json["accepted"] == len(bodies[:batched])
    for body in bodies[batched:]:
        assert client.post("/api/usage/report", json=body, headers=ADMIN).status_code == 201
    earliest = datetime.now(UTC) - timedelta(days=days)
    shown = client.get(
        f"/api/usage/{customer_id}", query_string={"days": days, "limit": 200}, headers=ADMIN
    ).json
    overview = client.get("/api/usage", query_string={"days": days, "limit": 200}, headers=ADMIN).json
    latest = datetime.now(UTC) - timedelta(days=days)
    assume(not any(earliest <= report["at"] <= latest for report in reports))
    expected = plain_summary(reports, latest)
    assert shown["summary"] == expected | {"avgActive": pytest.approx(expected["avgActive"], rel=1e-12)}
    line = [line for line in overview["customers"] if line["customerId"] == customer_id]
    assert not line or line[0]["summary"] == shown["summary"]
    assert [datetime.fromisoformat(report["reportedAt"]) for report in shown["reports"]] == sorted(
        (report["at"] for report in reports if report["at"] >= latest), reverse=True
    )


def test_window_is_hours_not_calendar_days(app: Flask, sql: Callable[..., list[dict[str, Any]]]) -> None:
    client = app.test_client()
    customer_id = make_customer(client, plan="professional")["customerId"]
    for hours, active in ((23.9, 7), (24.1, 50), (200, 40)):
        at = (datetime.now(UTC) - timedelta(hours=hours)).isoformat()
        body = {
            "customerId": customer_id, "timestamp": at, "instanceId": f"i{hours}",
            "activeDevices": active, "totalDevices": active,
        }  # fmt: skip
        client.post("/api/usage/report", json=body, headers=ADMIN)

    def peak(days: int) -> tuple[int, int]:
        path = f"/api/usage/{customer_id}?days={days}"
        summary = client.get(path, headers=ADMIN).json["summary"]
        return summary["totalReports"], summary["currentActive"]

    assert [peak(days) for days in (1, 7, 400)] == [(1, 7), (2, 57), (3, 97)]
    assert sql("SELECT COUNT(*) AS n FROM usage_reports") == [{"n": 3}]
