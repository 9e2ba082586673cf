"""The short way through a report's validation leads where the schema leads."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import ValidationError

from app.schemas.base import InputSchema
from app.schemas.usage import NewReport, ordinary_report

_SCHEMA = NewReport()
_now = datetime.now(UTC)
_odd = st.sampled_from(
    [None, True, False, 0, -1, 5, 5.0, 1e308, float("nan"), 10_000_000, 10_000_001, "5", "", "a", [], {},
     "\0", "\ud800", "a\n", "cust_1\n", "٣", "i" * 100, "i" * 101, {"activeDevices": 1, "totalDevices": 2}]
)  # fmt: skip
_times = st.builds(
    lambda at, style: style(at),
    st.timedeltas(timedelta(days=-40), timedelta(minutes=10))
    .filter(lambda delta: abs(delta - timedelta(minutes=5)) > timedelta(minutes=1))
    .filter(lambda delta: abs(delta + timedelta(days=35)) > timedelta(minutes=1))
    .map(lambda delta: _now + delta),
    st.sampled_from(
        [datetime.isoformat, lambda at: at.isoformat().replace("+00:00", "z"),
         lambda at: at.strftime("%Y-%m-%dT%H:%M:%S"),
         lambda at: at.astimezone().isoformat(" "), lambda at: at.strftime("%Y-%m-%dT%H:%M:%S-11:30")]
    ),
)  # fmt: skip
_count = st.integers(-2, 12) | st.integers(9_999_990, 10_000_003) | _odd
_values = {
    "customerId": st.from_regex(r"cust_[a-z0-9]{12}", fullmatch=True) | st.text(max_size=5) | _odd,
    "instanceId": st.text(max_size=5) | _odd,
    "timestamp": _times | st.text(max_size=5) | _odd,
    "activeDevices": _count,
    "totalDevices": _count,
}
_flat = st.fixed_dictionaries({}, optional=_values)
_ordinary = st.fixed_dictionaries(
    {
        "customerId": st.just("cust_abcdefghijkl"),
        "activeDevices": st.integers(0, 9),
        "totalDevices": st.integers(5, 9),
    },
    optional={"instanceId": st.text(min_size=1, max_size=3), "timestamp": _times},
)
_figures = st.fixed_dictionaries(
    {"activeDevices": _count, "totalDevices": _count}, optional={"active_devices": _count, "extra": _odd}
)


def _spell(body: Any, nested: Any, extra: Any, snake: bool) -> Any:
    body = dict(body)
    if nested == "lifted":
        body["metrics"] = {name: body.pop(name) for name in ("activeDevices", "totalDevices") if name in body}
    elif nested is not None:
        body["metrics"] = nested
    if extra is not None:
        body["device_count"] = extra
    if snake and "customerId" in body:
        body["customer_id"] = body.pop("customerId")
    return body


_bodies = _odd | st.builds(
    _spell, _flat | _ordinary, st.sampled_from([None, None, "lifted"]) | _figures | _odd,
    st.none() | st.none() | _odd, st.sampled_from([False, False, True]),
)  # fmt: skip


def by_schema(body: Any) -> Any:
    """The schema's word, without the short way."""
    try:
        return InputSchema.load(_SCHEMA, body)
    except ValidationError:
        return None


@settings(max_examples=1500, deadline=None)
@given(body=_bodies)
def test_short_way_agrees_with_the_schema(body: Any) -> None:
    before = datetime.now(UTC)
    short = ordinary_report(body)
    long = by_schema(body)
    if short is None:
        return
    assert long is not None
    if "timestamp" not in body:
        assert before <= short.pop("reported_at") <= long.pop("reported_at") <= datetime.now(UTC)
    assert short == long
    assert {name: type(value) for name, value in short.items()} == {n: type(v) for n, v in long.items()}


@settings(max_examples=200, deadline=None)
@given(body=_ordinary, lifted=st.booleans())
def test_ordinary_reports_do_go_the_short_way(body: Any, lifted: bool) -> None:
    spelled = _spell(body, "lifted" if lifted else None, None, False)
    assert (ordinary_report(spelled) is None) == (by_schema(spelled) is None)
