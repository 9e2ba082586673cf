"""JSON out: what callers may have sent can always be written, and times have one form."""

import json
from datetime import UTC, datetime

from app.encoding import json_text


def test_times_are_rfc_3339_in_utc_and_any_text_comes_back_as_it_was():
    at = datetime(2026, 1, 31, 10, 0, 0, 120, UTC)
    for text in ("\ud800", "a\udfffb", "é😀", '"\\\n\0', "\u2028"):
        given = {text: text, "at": [at, at.replace(microsecond=0), at.date()], "errors": {0: ["first"]}}
        assert json.loads(json_text(given)) == {
            text: text,
            "at": ["2026-01-31T10:00:00.000120Z", "2026-01-31T10:00:00Z", "2026-01-31"],
            "errors": {"0": ["first"]},
        }
