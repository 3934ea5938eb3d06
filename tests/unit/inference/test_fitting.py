"""Conversations made to fit: what stays, what goes, and what cannot be done."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kala.errors import InvalidArgumentError
from services.inference.chat import Image, Message, Role, Text, ToolCall
from services.inference.context.fitting import LEFT_OUT, Fit, Messages, keep_system_and_tail, shorten_content
from tests.fakes.images import PIXEL

MESSAGE = 4
HEAD = 3


class Words:
    """Counts words, and some tokens around every message, as a template would."""

    def __init__(self) -> None:
        self.counts = 0

    async def prompt(self, messages: Messages) -> int:
        self.counts += 1
        return HEAD + sum(MESSAGE + len(text_of(message).split()) for message in messages)

    async def text(self, text: str) -> int:
        return len(text.split())


def text_of(message: Message) -> str:
    return " ".join(part.text for part in message.parts if isinstance(part, Text))


def say(role: Role, words: int = 10, *, calls: str = "", answers: str = "") -> Message:
    return Message(
        role,
        (Text(" ".join([role.value] * words)),),
        tool_calls=(ToolCall(calls, "f", "{}", 0),) if calls else (),
        tool_call_id=answers,
    )


SYSTEM, USER, ASSISTANT, TOOL = Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL


async def fit(messages: Messages, limit: int) -> Messages:
    words = Words()
    found = await keep_system_and_tail(
        Fit(messages, await words.prompt(messages)), limit=limit, measure=words
    )
    assert found.tokens <= limit
    assert found.tokens == await words.prompt(found.messages)
    return found.messages


async def test_a_conversation_that_fits_is_left_alone_without_another_count() -> None:
    words, messages = Words(), (say(USER),)
    fitted = await keep_system_and_tail(Fit(messages, 17), limit=17, measure=words)
    assert (fitted.messages, words.counts) == (messages, 0)


async def test_the_oldest_turns_go_and_the_system_stays() -> None:
    messages = (say(SYSTEM), say(USER, 11), say(ASSISTANT), say(USER, 12), say(ASSISTANT), say(USER, 13))
    # Without the first turn: 3 + 5 * 4 … = 3 + 14 + 16 + 14 + 17
    assert await fit(messages, 64) == (messages[0], *messages[3:])
    assert await fit(messages, 63) == (messages[0], messages[5])


async def test_no_more_goes_than_must() -> None:
    messages = tuple(say(USER if index % 2 == 0 else ASSISTANT) for index in range(201))
    kept = await fit(messages, HEAD + 14 * 21)
    assert kept == messages[-21:]


async def test_a_system_message_in_the_middle_stays() -> None:
    messages = (say(USER), say(SYSTEM, 3), say(ASSISTANT), say(USER))
    assert await fit(messages, 30) == (messages[1], messages[3])


async def test_inside_the_last_turn_old_tool_calls_go_with_their_results() -> None:
    task = say(USER, 5)
    first = (say(ASSISTANT, calls="a"), say(TOOL, answers="a"), say(TOOL, answers="a"))
    second = (say(ASSISTANT, calls="b"), say(TOOL, answers="b"))
    third = (say(ASSISTANT, calls="c"), say(TOOL, answers="c"))
    messages = (task, *first, *second, *third)
    assert await fit(messages, 70) == (task, *second, *third)
    assert await fit(messages, 67) == (task, *third)


async def test_what_must_stay_and_is_too_long_is_refused_with_both_numbers_and_the_cure() -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await fit((say(SYSTEM, 50), say(USER), say(ASSISTANT), say(USER, 40)), 60)
    assert refused.value.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert "101 tokens" in refused.value.message
    assert "room for 60" in refused.value.message
    assert "longer context" in refused.value.message


roles = st.sampled_from([SYSTEM, USER, ASSISTANT, TOOL])


@given(st.lists(st.tuples(roles, st.integers(1, 20)), min_size=1, max_size=25), st.integers(10, 300))
async def test_whatever_comes_stays_in_order_keeps_the_rules_or_is_refused(
    drawn: list[tuple[Role, int]], limit: int
) -> None:
    messages = tuple(
        say(role, words, calls="c" if role is ASSISTANT else "", answers="c" if role is TOOL else "")
        for role, words in drawn
    )
    try:
        kept = await fit(messages, limit)
    except InvalidArgumentError:
        return
    stays = [any(message is other for other in kept) for message in messages]
    assert kept == tuple(message for message, stayed in zip(messages, stays, strict=True) if stayed)
    assert all(stayed for message, stayed in zip(messages, stays, strict=True) if message.role is SYSTEM)
    others = [pair for pair in zip(messages, stays, strict=True) if pair[0].role is not SYSTEM]
    users = [stayed for message, stayed in others if message.role is USER]
    assert not users or users[-1]
    for (_, came_before), (message, stayed) in pairwise(others):
        # Never a result without the call, or the result, that it followed.
        assert not (message.role is TOOL and stayed) or came_before


# --- content budgets


async def shorten(messages: Messages, *, budget: int, limit: int | None = None) -> Fit:
    words = Words()
    return await shorten_content(
        Fit(messages, await words.prompt(messages)), budget=budget, limit=limit, measure=words
    )


def document(words: int) -> str:
    return " ".join(f"word{number}" for number in range(words))


async def test_the_longest_user_text_is_cut_to_the_budget_and_says_so() -> None:
    rubric = say(SYSTEM, 2000)
    messages = (rubric, Message(USER, (Text("Score this:"), Image(PIXEL, ""), Text(document(3000)))))
    fitted = await shorten(messages, budget=550)
    assert fitted.messages[0] is rubric
    question, image, content = fitted.messages[1].parts
    assert (question, image) == messages[1].parts[:2]
    assert isinstance(content, Text)
    assert content.text.endswith(LEFT_OUT)
    kept = content.text.removesuffix(LEFT_OUT)
    assert document(3000).startswith(kept)
    assert not kept.endswith("wor")
    assert 500 <= len(content.text.split()) <= 550


async def test_a_content_within_its_budget_is_left_alone() -> None:
    messages = (say(USER, 500),)
    assert (await shorten(messages, budget=550)).messages is messages


async def test_the_context_may_demand_more_than_the_budget() -> None:
    fitted = await shorten((say(SYSTEM, 50), Message(USER, (Text(document(3000)),))), budget=2600, limit=400)
    assert 350 <= fitted.tokens <= 400


async def test_a_text_in_one_piece_is_cut_where_the_tokens_end() -> None:
    class Letters(Words):
        async def text(self, text: str) -> int:
            return len(text) // 4

    messages = (Message(USER, (Text("x" * 40_000),)),)
    fitted = await shorten_content(Fit(messages, 10_003), budget=550, limit=None, measure=Letters())
    (part,) = fitted.messages[0].parts
    assert isinstance(part, Text)
    assert 2000 <= len(part.text) <= 2204


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param((say(SYSTEM, 500), say(USER, 20)), id="the system is too long"),
        pytest.param((say(SYSTEM, 500), say(ASSISTANT, 20)), id="no user text"),
    ],
)
async def test_what_shortening_cannot_mend_is_refused(messages: Messages) -> None:
    with pytest.raises(InvalidArgumentError, match="room for 100") as refused:
        await shorten(messages, budget=550, limit=100)
    assert refused.value.reason == "CONTEXT_LENGTH_EXCEEDED"
