"""What a request looks like that has another backend carry an answer on."""

from __future__ import annotations

import hashlib

import pytest

from services.inference.chat import (
    AnswerForm,
    ChatCall,
    Delta,
    Form,
    Message,
    Role,
    Sampling,
    Text,
    ToolCall,
)
from services.inference.continuation import GO_ON, Seam, SoFar, carried_on, digest

CALL = ChatCall((Message(Role.USER, (Text("Tell me a story."),)),))


def said(call: ChatCall) -> list[tuple[Role, str]]:
    return [
        (message.role, part.text)
        for message in call.messages
        for part in message.parts
        if isinstance(part, Text)
    ]


def so_far(*released: Delta) -> SoFar:
    noted = SoFar()
    for delta in released:
        noted.add(delta)
    return noted


def test_the_text_so_far_is_the_assistants_last_word() -> None:
    call, added = carried_on(CALL, "Once upon", in_words=False)
    assert said(call) == [(Role.USER, "Tell me a story."), (Role.ASSISTANT, "Once upon")]
    assert added == ("Once upon",)


def test_a_server_that_answers_anew_is_asked_in_words() -> None:
    call, added = carried_on(CALL, "Once upon", in_words=True)
    assert said(call)[1:] == [(Role.ASSISTANT, "Once upon"), (Role.USER, GO_ON)]
    assert added == ("Once upon", GO_ON)


@pytest.mark.parametrize(
    ("released", "rest", "joined"),
    [
        ("Look:\n\n", ["\n", "\n1. This"], "Look:\n\n1. This"),
        ("Look:\n\n", ["1. This"], "Look:\n\n1. This"),
        ("Look: ", ["\nThis"], "Look: \nThis"),
        ("Look", [" there", " now"], "Look there now"),
        ("Look ", [" ", " there"], "Look  there"),
    ],
)
def test_white_space_at_the_seam_comes_once(released: str, rest: list[str], joined: str) -> None:
    call, _ = carried_on(CALL, released, in_words=False)
    assert said(call)[-1] == (Role.ASSISTANT, released.rstrip())
    seam = Seam(released)
    assert released + "".join(seam.join(Delta(text=text)).text for text in rest) == joined


def test_where_no_text_was_released_the_answer_begins_anew() -> None:
    assert carried_on(CALL, "", in_words=True) == (CALL, ())


def test_the_rest_may_be_as_long_as_the_limit_leaves() -> None:
    limited = ChatCall(CALL.messages, Sampling(max_output_tokens=100))
    call, _ = carried_on(limited, "abcd" * 30, in_words=False)
    assert call.sampling.max_output_tokens == 70
    call, _ = carried_on(limited, "abcd" * 300, in_words=False)
    assert call.sampling.max_output_tokens == 1


def test_a_form_is_not_sent_again_because_a_grammar_would_begin_anew() -> None:
    formed = ChatCall(CALL.messages, answer_form=AnswerForm(Form.JSON_OBJECT))
    call, _ = carried_on(formed, '{"a":', in_words=False)
    assert call.answer_form.form is Form.TEXT


def test_half_a_function_call_and_a_refusal_cannot_be_carried_on() -> None:
    text = Delta(text="Let me see", reasoning="hm")
    assert so_far(text).is_only_text
    assert not so_far(text, Delta(tool_calls=(ToolCall("1", "f", '{"a"', 0),))).is_only_text
    assert not so_far(Delta(refusal="I will not")).is_only_text


def test_the_whole_is_what_was_released_in_order() -> None:
    assert so_far().whole() == Delta()
    assert so_far(Delta(text="Once "), Delta(text="upon")).whole().text == "Once upon"


def test_the_digest_commits_to_all_that_was_added() -> None:
    assert digest([]) == b""
    assert digest(["Once", " upon"]) == hashlib.sha256(b"Once upon").digest()
