"""The event stream reader: any cut of the bytes gives the same events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.sse import MAX_EVENT_BYTES, EventTooLongError, SseReader

Events = list[tuple[bytes, bytes]]


def read(*chunks: bytes) -> Events:
    reader = SseReader()
    events = [event for chunk in chunks for event in reader.feed(chunk)]
    return events + reader.finish()


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b"data: a\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")], id="two events"),
        pytest.param(b"data:a\r\n\r\ndata: b\r\r", [(b"", b"a"), (b"", b"b")], id="all line ends"),
        pytest.param(b": keepalive 1/1\n\ndata: a\n\n", [(b"", b"a")], id="comment"),
        pytest.param(b"event: error\ndata: x\n\n", [(b"error", b"x")], id="named"),
        pytest.param(b"data: a\ndata: b\n\n", [(b"", b"a\nb")], id="several data lines"),
        pytest.param(b"id: 1\nretry: 5\nfoo\n\ndata: a\n\n", [(b"", b"a")], id="other fields"),
        pytest.param(b"data: a", [(b"", b"a")], id="no end"),
        pytest.param(b"data: a\n", [(b"", b"a")], id="no blank line"),
        pytest.param(b"data:\n\n", [(b"", b"")], id="empty data"),
        pytest.param(b"\n\n\n", [], id="blank lines"),
        pytest.param(b"event: x\n\ndata: a\n\n", [(b"", b"a")], id="an event without data is dropped"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_a_stream_is_read_as_the_format_says(stream: bytes, events: Events) -> None:
    assert read(stream) == events


_LINES = st.lists(
    st.sampled_from(['data: {"a": "é漢"}', "data:x", ": c", "event: e", "", "id: 4"]), max_size=12
)


@given(lines=_LINES, end=st.sampled_from(["\n", "\r\n"]), cuts=st.lists(st.integers(0, 200), max_size=8))
def test_any_cut_gives_the_same_events(lines: list[str], end: str, cuts: list[int]) -> None:
    stream = "".join(line + end for line in lines).encode()
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    pieces = [stream[start:stop] for start, stop in pairwise(places)]
    assert read(*pieces) == read(stream)


def test_a_cut_inside_a_crlf_does_not_end_the_event_twice() -> None:
    assert read(b"data: a\r", b"\ndata: b\r", b"\n\r\n") == [(b"", b"a\nb")]


def test_a_line_without_an_end_is_given_up_and_not_kept() -> None:
    with pytest.raises(EventTooLongError, match=str(MAX_EVENT_BYTES)):
        read(*[b"x" * (1024 * 1024)] * 100)


def test_an_event_of_many_short_lines_is_given_up_too() -> None:
    with pytest.raises(EventTooLongError):
        read(*[(b"data: " + b"x" * 1000 + b"\n") * 200] * 100)


def test_lines_that_say_nothing_do_not_pile_up() -> None:
    with pytest.raises(EventTooLongError):
        read(*[b"data:\n" * 100_000] * 100)
