"""A batch's input file: what its lines must be, wherever parts of the file are cut."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batches import lines
from gateway.batches.lines import MAX_PROBLEMS, answered_line, read_line, scan, unanswered_line
from gateway.batches.model import LinePlace
from kala.errors import InvalidArgumentError

CHAT = "/v1/chat/completions"


def line(number: object = 1, **fields: Any) -> bytes:
    value = {"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": {"model": "auto"}, **fields}
    return json.dumps(value).encode()


def scanned(data: bytes, cuts: list[int] | None = None, limit: int = 1000) -> lines.Scan:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts or ()), len(data)]
    parts = [data[begin:end] for begin, end in itertools.pairwise(edges)]
    return scan(parts, endpoint=CHAT, max_line_bytes=limit)


@settings(max_examples=100, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["line", "blank"]), max_size=8),
    is_ended=st.booleans(),
    cuts=st.lists(st.integers(min_value=0, max_value=10_000), max_size=8),
)
def test_each_line_is_found_where_it_lies_however_the_file_is_cut(
    kinds: list[str], is_ended: bool, cuts: list[int]
) -> None:
    rows = [line(number) if kind == "line" else b" " for number, kind in enumerate(kinds, 1)]
    data = b"\n".join(rows) + (b"\n" if is_ended else b"")
    found = scanned(data, cuts)
    read = [(place.number, data[place.start : place.start + place.length]) for place in found.places]
    assert read == [(number, row) for number, row in enumerate(rows, 1) if row.strip()]


@pytest.mark.parametrize(
    ("row", "param"),
    [
        pytest.param(b"{", "body", id="no json"),
        pytest.param(b"[]", "body", id="no object"),
        pytest.param(b'{"custom_id": "a", "custom_id": "b"}', "custom_id", id="repeated key"),
        pytest.param(line(custom_id=""), "custom_id", id="empty id"),
        pytest.param(line(custom_id="x" * 513), "custom_id", id="long id"),
        pytest.param(line(custom_id=7), "custom_id", id="id is no string"),
        pytest.param(line(method="GET"), "method", id="verb"),
        pytest.param(line(url="/v1/embeddings"), "url", id="another endpoint"),
        pytest.param(line(body=[]), "body", id="no request"),
        pytest.param(line(body={"stream": True}), "body.stream", id="stream"),
        pytest.param(line(body={"background": True}), "body.background", id="background"),
        pytest.param(line(priority=1), "priority", id="unknown field"),
    ],
)
def test_a_line_that_is_no_request_is_named_with_its_field(row: bytes, param: str) -> None:
    found = scanned(line(0) + b"\n" + row)
    (problem,) = found.problems
    assert (problem.line, problem.param) == (2, param)


def test_no_two_lines_share_an_id() -> None:
    (problem,) = scanned(line(1) + b"\n" + line(1)).problems
    assert (problem.code, problem.line) == ("duplicate_custom_id", 2)


def test_an_empty_file_is_no_batch() -> None:
    assert [problem.code for problem in scanned(b"\n \n").problems] == ["empty_file"]


def test_a_line_over_its_bound_ends_the_reading() -> None:
    found = scanned(line(1) + b"\n" + line(2, body={"x": "y" * 2000}) + b"\n{")
    assert [(problem.code, problem.line) for problem in found.problems] == [("line_too_long", 2)]


def test_a_file_has_a_bounded_number_of_lines_and_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINES", 2)
    (problem,) = scanned(b"\n".join(line(number) for number in range(4))).problems
    assert (problem.code, problem.line) == ("too_many_lines", 3)
    assert len(scanned(b"{\n" * (MAX_PROBLEMS + 50)).problems) == MAX_PROBLEMS


def test_persons_are_gathered_from_the_requests() -> None:
    rows = [line(1, body={"user": "ada"}), line(2, body={"safety_identifier": "bob", "user": "x"}), line(3)]
    assert scanned(b"\n".join(rows)).persons == {"ada", "bob"}


def test_whoever_is_named_is_found_in_a_file_that_is_no_batch() -> None:
    rows = [
        line(body={"user": "ada", "safety_identifier": "eve"}),
        b"{",
        line(url="/x", body={"user": "bob"}),
    ]
    data = b"\n".join(
        [*rows, line(body=[]), line(body={"user": 7}), b"x" * 2000, line(body={"user": "late"})]
    )
    assert sorted(lines.persons_in([data], max_line_bytes=1000)) == ["ada", "bob", "eve"]


def test_a_request_is_passed_on_as_it_was_written() -> None:
    body = {"model": "auto", "seed": 10**30, "text": "ü 😀"}
    request = read_line(line(1, body=body), endpoint=CHAT)
    assert json.loads(request.body) == body
    with pytest.raises(InvalidArgumentError):
        read_line(b'{"custom_id": "a", "body": {"x": NaN}}', endpoint=CHAT)


def test_only_an_answer_of_200_is_a_success_and_a_line_keeps_its_name() -> None:
    place = LinePlace(3, 0, 1)
    shared = {"batch_id": "batch_ab", "custom_id": "mine"}
    good = answered_line(
        place,
        **shared,
        request_id="q",
        status=200,
        body={"usage": {"prompt_tokens": 2, "completion_tokens": 3}},
    )
    bad = answered_line(place, **shared, request_id="q", status=400, body={"error": {"code": "x"}})
    never = unanswered_line(place, **shared, code="batch_expired", message="late")
    assert (good.succeeded, good.input_tokens, good.output_tokens) == (True, 2, 3)
    assert (bad.succeeded, never.succeeded) == (False, False)
    names = {json.loads(result.line)["id"] for result in (good, bad, never)}
    assert names == {"batch_req_ab_3"}
    assert json.loads(never.line)["response"] is None
    assert json.loads(bad.line)["response"]["status_code"] == 400
