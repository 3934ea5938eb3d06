"""Moderation requests are read as OpenAI's clients write them; what is wrong is named with its limit and cure."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.moderation_schema import MAX_CHARS, MAX_INPUTS, Question, parse_moderation_request
from kala.errors import InvalidArgumentError

TEXT = {"type": "text", "text": "one"}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


def parse(given: Any, *, allows_unjudged: bool = False, **fields: Any) -> Question:
    return parse_moderation_request({"input": given, **fields}, allows_unjudged=allows_unjudged)


def test_one_text_is_one_question() -> None:
    question = parse("one", model="omni-moderation-latest")
    assert (question.texts, question.fields, question.stage) == (("one",), ("input",), "request")


def test_every_text_of_a_list_is_a_question() -> None:
    question = parse(["one", "two"])
    assert (question.texts, question.fields) == (("one", "two"), ("input[0]", "input[1]"))


def test_parts_are_one_input() -> None:
    assert parse([TEXT, {"type": "text", "text": "two"}]).texts == ("one\ntwo",)


def test_where_the_policy_allows_it_images_are_left_out_and_named() -> None:
    question = parse([IMAGE, TEXT], allows_unjudged=True)
    assert (question.texts, question.unjudged) == (("one",), ("input[0]",))


def test_the_stage_and_the_person_are_taken() -> None:
    question = parse("one", kala_stage="output", kala_request_text="what?", user="a", safety_identifier="b")
    assert (question.stage, question.request_text, question.person) == ("output", "what?", "b")


def test_the_largest_request_is_taken() -> None:
    assert len(parse(["x" * (MAX_CHARS // MAX_INPUTS)] * MAX_INPUTS).texts) == MAX_INPUTS


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ("", "input", "at least 1 character"),
        ([], "input", "at least 1 entry"),
        (["one", ""], "input[1]", "at least 1 character"),
        (["x"] * (MAX_INPUTS + 1), "input", "at most 32 entries; send fewer"),
        ([TEXT] * (MAX_INPUTS + 1), "input", "at most 32 entries; send fewer"),
        ("x" * (MAX_CHARS + 1), "input", "at most 1048576 characters; shorten it"),
        (["x" * MAX_CHARS, "y"], "input", "1048577 characters in all, at most 1048576"),
        (None, "input", "a string, a list of strings or a list of content parts"),
        ({"type": "text"}, "input", "a string, a list of strings or a list of content parts"),
        ([5], "input[0]", "must be a string, not an integer"),
        (["one", TEXT], "input[0]", "must be an object, not a string"),
        ([{"type": "video"}], "input[0].type", "'text', 'image_url'"),
        ([{"text": "one"}], "input[0].type", "is required"),
        ([{"type": "text"}], "input[0].text", "is required"),
        ([TEXT, {"type": "text", "text": ""}], "input[1].text", "at least 1 character"),
        ([{"type": "image_url", "image_url": "x"}], "input[0].image_url", "must be an object"),
        ([TEXT, IMAGE], "input[1]", "describe in words"),
    ],
)
def test_a_wrong_input_is_named(given: Any, field: str, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(given)
    assert caught.value.field == field
    assert says in caught.value.problem


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"model": 5}, "model", "must be a string"),
        ({"kala_stage": "later"}, "kala_stage", "'output'"),
        ({"kala_request_text": "what?"}, "kala_request_text", "only allowed with"),
        ({"kala_stage": "output", "kala_request_text": "x" * 65_537}, "kala_request_text", "at most 65536"),
        ({"user": ""}, "user", "at least 1"),
        ({"stream": True}, "stream", "not a parameter"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse("one", **fields)
    assert caught.value.field == field
    assert says in caught.value.problem


def test_images_alone_leave_nothing_to_judge() -> None:
    with pytest.raises(InvalidArgumentError, match="holds no text"):
        parse([IMAGE], allows_unjudged=True)


def test_an_absent_input_is_required() -> None:
    with pytest.raises(InvalidArgumentError, match="input: is required"):
        parse_moderation_request({}, allows_unjudged=False)
