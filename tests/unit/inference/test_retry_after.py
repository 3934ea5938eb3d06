"""How long a server asks to be left alone."""

from __future__ import annotations

import pytest

from services.inference.retry_after import retry_after_seconds

NOW = 1_800_000_000.0
"""2027-01-15 08:00:00 UTC."""


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({}, None, id="nothing said"),
        pytest.param({"retry-after": "30"}, 30.0, id="seconds"),
        pytest.param({"retry-after": " 1.5 "}, 1.5, id="a fraction"),
        pytest.param({"retry-after-ms": "250", "retry-after": "1"}, 0.25, id="milliseconds go first"),
        pytest.param({"retry-after": "Fri, 15 Jan 2027 08:01:00 GMT"}, 60.0, id="a date"),
        pytest.param({"retry-after": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0.0, id="a date that is over"),
        pytest.param(
            {"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT", "date": "Thu, 01 Jan 1970 00:00:00 GMT"},
            60.0,
            id="a server whose clock is wrong",
        ),
        pytest.param({"retry-after": "soon"}, None, id="words"),
        pytest.param({"retry-after": ""}, None, id="empty"),
        pytest.param({"retry-after": "nan"}, None, id="not a number"),
        pytest.param({"retry-after": "-3"}, None, id="negative"),
        pytest.param({"retry-after": "٣"}, None, id="other digits"),
        pytest.param({"retry-after": "9" * 400}, 86_400.0, id="more than a number holds"),
        pytest.param({"retry-after-ms": "9" * 400}, 86_400.0, id="milliseconds without end"),
        pytest.param({"retry-after": "Fri, 15 Jan 9999 07:00:00 GMT"}, 86_400.0, id="a date far away"),
        pytest.param(
            {"retry-after": f"Fri, 15 Jan {'9' * 30} 07:00:00 GMT"}, None, id="a year that no date has"
        ),
        pytest.param(
            {"retry-after": f"Fri, 15 Jan 2027 07:00:00 +{'9' * 30}"}, None, id="a zone that no place has"
        ),
        pytest.param({"retry-after": "Fri, 99 Jan 2027 07:00:00 GMT"}, None, id="no such date"),
    ],
)
def test_a_header_is_read_as_it_was_meant(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, now=NOW) == seconds
