"""Write what a guard model reads: the conversation up to the judged text, in which nothing can pass for the template.

Pure. The judged text is the last turn; earlier turns come with it as far as they fit, the newest first. What tools and
documents said is left out: it is nobody's request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.ethics.guard.formats import PLACEHOLDER, GuardFormat, PromptKind, Question
from services.ethics.judge import Material, Part, Stage

SYSTEM: Final = "system"
USER: Final = "user"
ASSISTANT: Final = "assistant"
# Turns before the judged text: three exchanges, in which a "how do I make it?" has found its "it".
MAX_CONTEXT_TURNS: Final = 6
# Stands where an answer is judged whose request is not at hand; every published template has a request.
NO_REQUEST: Final = "(not given)"
_MESSAGE: Final = re.compile(r"messages\[(\d+)\]")
_MESSAGE_TEXT: Final = re.compile(r"messages\[(\d+)\]\.content\[\d+\]\.text")
# Every model's control tokens look like one of these: <|eot_id|>, </s>, <start_of_turn>, [INST], [/TOOL_RESULTS].
_ANGLED: Final = re.compile(r"<([^<>\s][^<>\n]*)>")
_BRACKETED: Final = re.compile(r"\[(/?[A-Z][A-Z_]{1,40})\]")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn as the guard is shown it; `role` is "system", "user" or "assistant"."""

    role: str
    text: str


class TooLongError(Exception):
    """The judged text is longer than the guard can read; what it cannot read, it cannot settle."""


def conversation(material: Material, part: Part, text: str, max_chars: int) -> tuple[Turn, ...]:
    """The judged text as the last turn, after what fits of the turns before it; roles alternate, the first is the user's."""
    if len(text) > max_chars:
        raise TooLongError(f"{len(text)} characters are more than the {max_chars} that this guard reads")
    last = Turn(ASSISTANT if part.stage is Stage.OUTPUT else USER, text)
    turns = [*_fitting(_before(material, part), max_chars - len(text)), last]
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            merged[-1] = replace(turn, text=f"{merged[-1].text}\n\n{turn.text}")
        else:
            merged.append(turn)
    return tuple(merged if merged[0].role == USER else [Turn(USER, NO_REQUEST), *merged])


def neutralise(text: str, labels: Iterable[str]) -> str:
    """The text with control tokens and the template's own line labels made harmless: no token of any model is left in it."""
    # Half a surrogate pair, which JSON escapes can hold, is no text that could be sent.
    text = "\n".join(text.encode("utf-8", "replace").decode("utf-8").splitlines())
    text = _ANGLED.sub("‹\\1›", text)
    text = _BRACKETED.sub("‹\\1›", text)
    names = "|".join(re.escape(label) for label in labels)
    if names:
        text = re.sub(rf"^([^\S\n]*)({names})", r"\1‹\2›", text, flags=re.MULTILINE | re.IGNORECASE)
    return text


def render(
    guard: GuardFormat, kind: PromptKind, question: Question, stage: Stage, turns: Sequence[Turn]
) -> tuple[Turn, ...]:
    """The messages to send for one question about the last of these turns."""
    safe = [replace(turn, text=neutralise(turn.text, guard.labels)) for turn in turns]
    values = {
        "question": question.name,
        "definition": question.definitions[stage],
        "role": guard.speakers[safe[-1].role],
        "conversation": "\n\n".join(f"{guard.speakers[turn.role]}: {turn.text}" for turn in safe),
        "request": next((turn.text for turn in reversed(safe) if turn.role == USER), NO_REQUEST),
        "answer": safe[-1].text if safe[-1].role == ASSISTANT else "",
    }
    if kind is PromptKind.WHOLE:
        return (Turn(USER, _filled(guard.wholes[stage], values)),)
    system = _filled(guard.system, values)
    return (*([Turn(SYSTEM, system)] if system else []), *safe)


def _filled(template: str, values: Mapping[str, str]) -> str:
    """One pass over the template, so that nothing in a value is taken for a placeholder."""
    return PLACEHOLDER.sub(lambda match: values[match[1]], template)


def _before(material: Material, part: Part) -> list[Turn]:
    """The turns of the messages before the one that holds this part."""
    here = _MESSAGE.match(part.field)
    if here is None:
        return [Turn(USER, part.context)] if part.context else []
    found = []
    for other in material.parts:
        message = _MESSAGE_TEXT.fullmatch(other.field)
        if message is not None and int(message[1]) < int(here[1]) and other.stage is not Stage.TOOL_RESULT:
            found.append(Turn(ASSISTANT if other.stage is Stage.OUTPUT else USER, other.reading.text))
    return found[-MAX_CONTEXT_TURNS:]


def _fitting(turns: Sequence[Turn], room: int) -> list[Turn]:
    kept: list[Turn] = []
    for turn in reversed(turns):
        room -= len(turn.text)
        if room < 0:
            break
        kept.insert(0, turn)
    return kept
