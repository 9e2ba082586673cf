"""JSON out: what callers may have sent can always be written, and times have one form."""

import json
from datetime import UTC, date, datetime

import pytest

from app.encoding import json_text


def test_times_are_rfc_3339_in_utc():
    at = datetime(2026, 1, 31, 10, 0, 0, 120, UTC)
    assert json.loads(json_text([at, at.replace(microsecond=0)])) == [
        "2026-01-31T10:00:00.000120Z",
        "2026-01-31T10:00:00Z",
    ]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "é😀", '"\\\n\0', "\u2028"])
def test_any_text_comes_back_as_it_was(text):
    at = datetime(2026, 1, 31, tzinfo=UTC)
    written = json_text({text: text, "at": at, "errors": {0: ["first"]}})
    assert json.loads(written) == {text: text, "at": "2026-01-31T00:00:00Z", "errors": {"0": ["first"]}}
    assert json.loads(json_text({"day": date(2026, 1, 31), "text": text}))["day"] == "2026-01-31"
