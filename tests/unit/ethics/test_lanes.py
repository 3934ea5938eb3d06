"""Lines through lanes: in order, in bounded memory, and never lost."""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kala.errors import FailedPreconditionError
from kala.ethics import lanes
from kala.ethics.lanes import Line, Verdict, judge_in_lanes, read_lines


class Echo:
    """Answers every line with its number; closes after so many lines, when told."""

    def __init__(self, *, lasts: int | None = None) -> None:
        self.left = lasts
        self.asked: list[int] = []

    @property
    def is_open(self) -> bool:
        return self.left is None or self.left > 0

    def ask(self, batch: Sequence[Line]) -> list[Verdict]:
        self.asked += [line.number for line in batch]
        if self.left is not None:
            self.left -= len(batch)
        return [{"id": line.number, "outcome": "ALLOW"} for line in batch]


class Broken(Echo):
    def ask(self, batch: Sequence[Line]) -> list[Verdict]:
        raise FailedPreconditionError("no judge can start here")


def numbered(count: int, size: int = 10) -> Iterator[Line]:
    return (Line(number, size, b"x") for number in range(1, count + 1))


@settings(max_examples=30, deadline=None)  # threads wait for cores
@given(st.integers(0, 200), st.integers(1, 4), st.integers(1, lanes.MAX_BATCH_BYTES * 2))
def test_answers_come_in_the_order_of_the_lines(count: int, judges: int, size: int) -> None:
    found = list(judge_in_lanes(numbered(count, size), [Echo() for _ in range(judges)]))
    assert [answer.verdict["id"] for answer in found] == list(range(1, count + 1))
    assert not any(answer.failed for answer in found)


def test_a_batch_fits_the_pipe_and_a_longer_line_goes_alone() -> None:
    batches: list[list[int]] = []

    class Sizes(Echo):
        def ask(self, batch: Sequence[Line]) -> list[Verdict]:
            batches.append([line.size_bytes for line in batch])
            return super().ask(batch)

    sizes = [10_000, 10_000, 100_000, *([1] * 40)]
    list(judge_in_lanes((Line(n, size, b"x") for n, size in enumerate(sizes, 1)), [Sizes()]))
    assert list(itertools.chain(*batches)) == sizes
    assert all(len(batch) == 1 or sum(batch) <= lanes.MAX_BATCH_BYTES for batch in batches)
    assert max(map(len, batches)) == lanes.MAX_BATCH_LINES


def test_no_more_lines_are_read_than_may_wait() -> None:
    read: list[int] = []
    go = threading.Event()

    def lines() -> Iterator[Line]:
        for line in numbered(10_000):
            read.append(line.number)
            yield line

    class Slow(Echo):
        def ask(self, batch: Sequence[Line]) -> list[Verdict]:
            if batch[0].number == 1:
                go.wait()
            return super().ask(batch)

    found = judge_in_lanes(lines(), [Slow(), Slow()])
    threading.Timer(0.3, go.set).start()
    next(found)
    assert len(read) <= 2 * lanes.WAITING_PER_LANE + 2
    assert len(list(found)) == 9_999


def test_what_no_lane_is_left_for_is_an_error_and_never_an_outcome() -> None:
    found = list(judge_in_lanes(numbered(100), [Echo(lasts=16), Echo(lasts=16)]))
    assert [answer.line.number for answer in found] == list(range(1, 101))
    assert [answer.failed for answer in found] == [False] * 32 + [True] * 68
    assert all("outcome" not in answer.verdict for answer in found if answer.failed)


def test_a_lane_that_cannot_judge_at_all_ends_the_run_with_its_reason() -> None:
    with pytest.raises(FailedPreconditionError, match="no judge can start here"):
        list(judge_in_lanes(numbered(100), [Broken(), Echo()]))


def test_an_unreadable_input_ends_the_run() -> None:
    def lines() -> Iterator[Line]:
        yield from numbered(3)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(judge_in_lanes(lines(), [Echo()]))


def test_whoever_stops_reading_stops_the_lanes() -> None:
    lane = Echo()
    found = judge_in_lanes(numbered(100_000), [lane])
    next(found)
    found.close()
    assert len(lane.asked) < 1_000


def test_lines_keep_their_numbers_over_blank_and_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_LINE_BYTES", 20)
    data = b'{"id": 1}\n\n  \n' + b"x" * 100 + b"\n" + b'{"id": 2}'
    found = list(read_lines(io.BytesIO(data)))
    assert [(line.number, line.data is None) for line in found] == [(1, False), (4, True), (5, False)]
    assert found[1].size_bytes == 101
    assert json.loads(found[2].data or b"") == {"id": 2}
