"""Lines out of bytes in any cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.ndjson import MAX_LINE_BYTES, LineReader, LineTooLongError


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=8), st.integers(1, 9)
)
def test_lines_are_the_same_in_any_cut(lines: list[bytes], size: int) -> None:
    body = b"\n".join(lines)
    reader, found = LineReader(), []
    for start in range(0, len(body), size):
        found += reader.feed(body[start : start + size])
    found += reader.finish()
    assert found == [line for line in lines if line.strip()]


def test_an_endless_line_is_given_up() -> None:
    reader = LineReader()
    for _ in range(MAX_LINE_BYTES // 65536):
        reader.feed(b"x" * 65536)
    with pytest.raises(LineTooLongError):
        reader.feed(b"x")


def test_a_line_that_is_too_long_is_given_up_when_it_comes_at_once() -> None:
    with pytest.raises(LineTooLongError):
        LineReader().feed(b"x" * (MAX_LINE_BYTES + 1) + b"\n")
