"""Makes a conversation fit: by leaving out its oldest part, or by shortening its longest text.  Pure but for counting.

Runs before judgement only; what it gives is what ethics judges and what the model reads.  System messages and the last
user message always stay whole under KEEP_SYSTEM_AND_TAIL, and no tool's result stays without the call that it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from kala.errors import InvalidArgumentError
from services.inference.chat import Message, Role, Text

Messages = tuple[Message, ...]

LEFT_OUT: Final = "\n[The rest was left out to fit the model's context.]"
"""Stands where a text was cut, so that neither the model nor a reader takes the part for the whole."""

LEAST_CONTENT_TOKENS: Final = 32
"""Less of a document than this is none."""

MAX_CUTS: Final = 8
"""Counts spent on finding where to cut; each halves what is left uncertain."""

MAX_REFITS: Final = 4
"""Further cuts where the whole prompt is still over, because a template or a tokenizer joins texts unevenly."""

WORD_CHARS: Final = 80
"""How far back to look for the end of a word."""

CONTEXT_LENGTH_EXCEEDED: Final = "CONTEXT_LENGTH_EXCEEDED"


class Measure(Protocol):
    """Counts tokens for one model, exactly or as an estimate."""

    async def prompt(self, messages: Messages) -> int:
        """Count a whole prompt, with its functions and the head of the answer."""
        ...

    async def text(self, text: str) -> int:
        """Count a text by itself."""
        ...


@dataclass(frozen=True, slots=True)
class Fit:
    """A conversation and its tokens."""

    messages: Messages
    tokens: int


async def keep_system_and_tail(given: Fit, *, limit: int, measure: Measure) -> Fit:
    """Leave out the fewest of the oldest messages; raises InvalidArgumentError where what must stay is too long.

    Whole turns go first, a turn being a user message and all that follows it; then, inside the last turn, the oldest
    tool calls with their results.
    """
    if given.tokens <= limit:
        return given
    units = _droppable(given.messages)
    low, high = 1, len(units)
    best: Fit | None = None
    while low <= high:
        middle = (low + high) // 2
        kept = _without(given.messages, units[:middle])
        tried = Fit(kept, await measure.prompt(kept))
        if tried.tokens <= limit:
            best, high = tried, middle - 1
        else:
            low = middle + 1
    if best is not None:
        return best
    least = _without(given.messages, units)
    raise too_long(await measure.prompt(least), limit, "with only its system messages and its last turn")


async def shorten_content(given: Fit, *, budget: int, limit: int | None, measure: Measure) -> Fit:
    """Cut the longest user text to `budget` tokens, and further where the prompt is over `limit` (None for no limit).

    Raises InvalidArgumentError where nothing of the text would be left.
    """
    place = _longest_user_text(given.messages)
    if place is None:
        return _required(given, limit)
    text = _text_at(given.messages, place)
    tokens = await measure.text(text)
    excess = 0 if limit is None else max(0, given.tokens - limit)
    target = min(budget, tokens - excess)
    if target >= tokens:
        return given
    for _ in range(MAX_REFITS):
        if target < LEAST_CONTENT_TOKENS:
            break
        shortened = await _cut(text, tokens, target, measure)
        messages = _with_text(given.messages, place, shortened)
        fitted = Fit(messages, await measure.prompt(messages))
        if limit is None or fitted.tokens <= limit:
            return fitted
        target -= fitted.tokens - limit
    least = given.tokens - tokens + LEAST_CONTENT_TOKENS
    raise too_long(least, limit or 0, f"with {LEAST_CONTENT_TOKENS} tokens of its longest text")


def too_long(tokens: int, limit: int, how: str) -> InvalidArgumentError:
    """Say that a prompt cannot be made to fit, with both numbers and the cure."""
    return InvalidArgumentError(
        "messages",
        f"even {how} the prompt has {tokens} tokens, and there is room for {limit} beside the answer; shorten the "
        "messages, ask for fewer output tokens, or load the model with a longer context",
        reason=CONTEXT_LENGTH_EXCEEDED,
    )


def _required(given: Fit, limit: int | None) -> Fit:
    if limit is not None and given.tokens > limit:
        raise too_long(given.tokens, limit, "as it is, with no user text to shorten,")
    return given


def _droppable(messages: Messages) -> list[frozenset[int]]:
    """Give what may be left out, in order: the earlier turns, then the earlier exchanges of the last turn."""
    others = [index for index, message in enumerate(messages) if message.role is not Role.SYSTEM]
    turns = _groups(others, lambda index: messages[index].role is Role.USER)
    if not turns:
        return []
    *earlier, last = turns
    if messages[last[0]].role is Role.USER:
        last = last[1:]
    exchanges = _groups(last, lambda index: messages[index].role is not Role.TOOL)
    return [frozenset(turn) for turn in (*earlier, *exchanges[:-1])]


def _groups(indices: Iterable[int], begins: Callable[[int], bool]) -> list[list[int]]:
    groups: list[list[int]] = []
    for index in indices:
        if begins(index) or not groups:
            groups.append([])
        groups[-1].append(index)
    return groups


def _without(messages: Messages, units: Sequence[frozenset[int]]) -> Messages:
    dropped: frozenset[int] = frozenset().union(*units)
    return tuple(message for index, message in enumerate(messages) if index not in dropped)


def _longest_user_text(messages: Messages) -> tuple[int, int] | None:
    """Give the place of the longest text among the user's: message and part; the first of several as long."""
    places = [
        (len(part.text), -index, -number)
        for index, message in enumerate(messages)
        if message.role is Role.USER
        for number, part in enumerate(message.parts)
        if isinstance(part, Text) and part.text
    ]
    if not places:
        return None
    _, index, number = max(places)
    return -index, -number


def _text_at(messages: Messages, place: tuple[int, int]) -> str:
    part = messages[place[0]].parts[place[1]]
    return part.text if isinstance(part, Text) else ""


def _with_text(messages: Messages, place: tuple[int, int], text: str) -> Messages:
    index, number = place
    message = messages[index]
    parts = (*message.parts[:number], Text(text), *message.parts[number + 1 :])
    return (*messages[:index], replace(message, parts=parts), *messages[index + 1 :])


async def _cut(text: str, tokens: int, target: int, measure: Measure) -> str:
    """Give the longest beginning that was found to have at most `target` tokens with its mark; the mark alone at worst."""
    fits, over = 0, len(text)
    guess = int(len(text) * target / max(1, tokens))
    for _ in range(MAX_CUTS):
        counted = await measure.text(text[:guess] + LEFT_OUT)
        if counted <= target:
            fits = guess
        else:
            over = guess
        if over - fits <= max(8, len(text) // 256):
            break
        # In proportion first, because that is nearly right; the middle where it is not.
        nearby = int(guess * target / max(1, counted))
        guess = nearby if fits < nearby < over else (fits + over) // 2
    return text[: _end_of_word(text, fits)] + LEFT_OUT


def _end_of_word(text: str, end: int) -> int:
    for place in range(end, max(0, end - WORD_CHARS), -1):
        if text[place - 1].isspace() or (place < len(text) and text[place].isspace()):
            return place
    return end
