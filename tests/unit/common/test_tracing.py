"""W3C trace context: what is read, what is ignored, what is sent on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.tracing import TraceContext, UnrecordedTracer, parse_traceparent

# The example of W3C Trace Context section 3.2.3.
EXAMPLE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_the_standards_example_is_read_and_written_back() -> None:
    context = parse_traceparent(EXAMPLE)
    assert context == TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
    assert context.traceparent == EXAMPLE


@pytest.mark.parametrize(
    "value",
    [
        "",
        EXAMPLE.upper(),
        EXAMPLE[:-1],
        EXAMPLE + "-more",
        "ff" + EXAMPLE[2:],
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    ],
    ids=["empty", "upper", "short", "long", "version-ff", "zero-trace", "zero-span"],
)
def test_what_the_standard_forbids_is_ignored(value: str) -> None:
    assert parse_traceparent(value) is None


def test_a_later_version_may_say_more() -> None:
    context = parse_traceparent("01" + EXAMPLE[2:-2] + "00-more")
    assert context is not None
    assert not context.sampled


@given(st.text(max_size=80))
def test_no_header_makes_reading_fail(value: str) -> None:
    parse_traceparent(value)


def test_a_span_without_a_parent_begins_a_trace() -> None:
    context = UnrecordedTracer(randomness=lambda size: bytes(range(1, size + 1))).begin("x", None).context
    assert context.traceparent == f"00-{bytes(range(1, 17)).hex()}-{bytes(range(17, 25)).hex()}-00"


def test_a_span_with_a_parent_stays_in_its_trace() -> None:
    parent = TraceContext("ab" * 16, "cd" * 8, sampled=True)
    context = UnrecordedTracer().begin("x", parent).context
    assert (context.trace_id, context.sampled) == (parent.trace_id, True)
    assert context.span_id != parent.span_id
