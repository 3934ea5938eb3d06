"""Formats of training software: messages, prompt and completion, preferences, labelled texts, claims."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

from services.trainer.datasets.problems import MISSING_FIELD, WRONG_TYPE, WRONG_VALUE, RowError, quoted
from services.trainer.datasets.readers.fields import (
    Fields,
    category_of,
    checked_text,
    messages_of,
    subject_of,
    text_of,
    texts_of,
)
from services.trainer.datasets.rows import Message, Role, Row

CLAIM_LABELS: Final = ("supported", "refuted", "unsure")
_MAX_LABEL: Final = 64
# Anthropic's HH layout: one text with both speakers.
_SPEAKER: Final = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def read_messages(row: Fields) -> Row:
    """`messages`, ending with the assistant."""
    if "messages" not in row:
        raise RowError(MISSING_FIELD, "messages is missing")
    messages = messages_of(row["messages"], "messages")
    _ends_with("messages", messages, "assistant")
    return Row(category_of(row, "chat"), messages=messages, subject=subject_of(row))


def read_prompt_completion(row: Fields) -> Row:
    """`prompt` and `completion`, each a text or messages."""
    messages = (*_spoken(row, "prompt", "user"), *_spoken(row, "completion", "assistant"))
    _ends_with("completion", messages, "assistant")
    return Row(category_of(row, "chat"), messages=messages, subject=subject_of(row))


def read_preference(row: Fields) -> Row:
    """`prompt`, `chosen` and `rejected`; without `prompt`, two dialogues that share their beginning (as HH has them)."""
    if "prompt" in row:
        prompt = _spoken(row, "prompt", "user")
        chosen, rejected = _spoken(row, "chosen", "assistant"), _spoken(row, "rejected", "assistant")
    else:
        prompt, chosen, rejected = _split(_dialogue(row, "chosen"), _dialogue(row, "rejected"))
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if len(answer) != 1 or answer[0].role != "assistant":
            raise RowError(WRONG_VALUE, f"{name} must be one answer of the assistant")
    if chosen == rejected:
        raise RowError(WRONG_VALUE, "chosen and rejected are equal")
    return Row(
        category_of(row, "preference"),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        subject=subject_of(row),
    )


def read_labelled(row: Fields) -> Row:
    """`text` and `label`; a whole number is taken as its digits."""
    label = row.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    if "label" not in row:
        raise RowError(MISSING_FIELD, "label is missing")
    label = checked_text(label, "label")
    if len(label) > _MAX_LABEL:
        raise RowError(WRONG_VALUE, f"label has more than {_MAX_LABEL} characters")
    return Row(category_of(row, "labelled"), text=text_of(row, "text"), label=label, subject=subject_of(row))


def read_claim(row: Fields) -> Row:
    """`claim`, `sources` and `label`, one of supported, refuted and unsure."""
    claim, sources = text_of(row, "claim"), texts_of(row, "sources")
    label = text_of(row, "label", "verdict").lower()
    if label not in CLAIM_LABELS:
        raise RowError(WRONG_VALUE, f"label is {quoted(label)}, not one of {', '.join(CLAIM_LABELS)}")
    return Row(
        category_of(row, "claims"), text=claim_text(claim, sources), label=label, subject=subject_of(row)
    )


def claim_text(claim: str, sources: list[str]) -> str:
    """Returns a claim with its sources as a Guardian reads them."""
    numbered = "\n".join(f"[{number}] {source}" for number, source in enumerate(sources, start=1))
    return f"Claim: {claim}\nSources:\n{numbered}"


def _spoken(row: Fields, name: str, role: Role) -> tuple[Message, ...]:
    if name not in row:
        raise RowError(MISSING_FIELD, f"{name} is missing")
    value = row[name]
    if isinstance(value, str):
        return (Message(role, checked_text(value, name)),)
    return messages_of(value, name)


def _dialogue(row: Fields, name: str) -> tuple[Message, ...]:
    if name not in row:
        raise RowError(MISSING_FIELD, f"{name} is missing")
    if isinstance(row[name], list):
        return messages_of(row[name], name)
    parts = _SPEAKER.split(checked_text(row[name], name))
    if len(parts) < 2 or parts[0].strip():  # noqa: PLR2004 - a text and one speaker's
        raise RowError(WRONG_TYPE, f"{name} without prompt must be messages or start with Human:")
    turns = [
        {"role": "user" if speaker == "Human" else "assistant", "content": said}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return messages_of(turns, name)


def _split(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1].role != "user":
        shared -= 1
    if not shared or shared in {len(chosen), len(rejected)}:
        raise RowError(WRONG_VALUE, "chosen and rejected must share their beginning and differ in an answer")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _ends_with(name: str, messages: tuple[Message, ...], role: Role) -> None:
    if messages[-1].role != role:
        raise RowError(WRONG_VALUE, f"{name} must end with a message of the {role}")
    for before, after in pairwise(messages):
        if before.role == after.role:
            raise RowError(WRONG_VALUE, f"{name}: {after.role} speaks twice in a row")
