"""Judging processes that die, babble or cannot start: an error for the line, and never an outcome."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from kala.errors import FailedPreconditionError
from kala.ethics.lanes import Line, Verdict
from kala.ethics.workers import MAX_DEATHS, Offline, Worker, cores

ANSWER = """
import json, sys
for line in sys.stdin:
    document = json.loads(line)
    {special}
    print(json.dumps({{"id": document["id"], "outcome": "ALLOW"}}), flush=True)
"""


@contextmanager
def worker(special: str = "", say: Callable[[str], None] = lambda _: None) -> Iterator[Worker]:
    program = ANSWER.format(special=special)
    with closing(Worker(Offline(), say=say, command=(sys.executable, "-c", program))) as made:
        yield made


def line(number: int, data: bytes | None = None) -> Line:
    data = data or json.dumps({"id": number}).encode()
    return Line(number, len(data), data)


def ids(verdicts: list[Verdict]) -> list[object]:
    return [verdict["id"] if "error" not in verdict else None for verdict in verdicts]


def test_one_process_answers_many_lines() -> None:
    with worker() as lane:
        assert ids(lane.ask([line(1), line(2)]) + lane.ask([line(3)])) == [1, 2, 3]


def test_a_process_that_dies_takes_one_line_with_it() -> None:
    with worker("if document['id'] == 2: sys.exit(9)") as lane:
        found = lane.ask([line(1), line(2), line(3)])
        assert ids(found) == [1, None, 3]
        assert lane.is_open
    assert found[1] == {
        "id": 2,
        "error": {"field": "", "problem": "the process that judged it ended with status 9"},
    }


def test_its_last_words_are_told() -> None:
    with worker("sys.exit('out of memory') if document['id'] == 1 else None") as lane:
        assert lane.ask([line(1)])[0]["error"]["problem"].endswith("status 1: out of memory")


@pytest.mark.parametrize("babble", ["'ALLOW'", "'[1]'", "'{'"])
def test_an_answer_that_is_none_is_an_error(babble: str) -> None:
    with worker(f"print({babble}, flush=True); continue") as lane:
        assert "error" in lane.ask([line(1)])[0]


def test_an_answer_to_another_line_is_used_for_none() -> None:
    shifted = "print(json.dumps({'id': document['id'] - 1, 'outcome': 'ALLOW'}), flush=True); continue"
    with worker(shifted) as lane:
        assert ids(lane.ask([line(2), line(3)])) == [None, None]


def test_processes_that_die_one_after_the_other_close_the_lane() -> None:
    with worker("sys.exit(9)") as lane:
        found = lane.ask([line(number) for number in range(MAX_DEATHS + 2)])
        assert all("error" in verdict and "outcome" not in verdict for verdict in found)
        assert len(found) == MAX_DEATHS + 2
        assert not lane.is_open


def test_a_process_that_cannot_start_says_why_and_ends_the_run() -> None:
    special = "sys.stderr.write('some banner\\nlaws.yaml: changed\\n'); sys.exit(2)"
    with worker(special) as lane, pytest.raises(FailedPreconditionError, match=r"^laws\.yaml: changed$"):
        lane.ask([line(1)])


def test_what_a_process_says_is_passed_on_once() -> None:
    said: list[str] = []
    with worker("sys.stderr.write('banner\\n') if document['id'] == 1 else None", said.append) as lane:
        lane.ask([line(1)])
        lane.ask([line(2)])
    assert said == ["banner"]


def test_a_line_that_is_too_long_is_not_sent() -> None:
    with worker() as lane:
        found = lane.ask([line(1), Line(2, 10**9, None), line(3)])
    assert ids(found) == [1, None, 3]
    assert found[1]["error"]["field"] == "line"


def test_every_process_judges_by_the_same_constitution() -> None:
    from pathlib import Path

    offline = Offline(Path("laws"), "pinned", (Path("a.pub"), Path("b.pub")), 2)
    assert offline.arguments == [
        "--constitution", "laws", "--trust", "pinned",
        "--trusted-key", "a.pub", "--trusted-key", "b.pub", "--threshold", "2",
    ]  # fmt: skip
    assert Offline().arguments == []
    assert cores() >= 1
