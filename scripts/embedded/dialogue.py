"""Whole conversations: single questions, follow-ups that need the history, and unrelated turns in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scripts.embedded.intent import Case, Example, Intent
from scripts.embedded.knowledge import (
    CAPITAL,
    capital_follow_ups,
    capital_intents,
    fixed_intents,
    list_intents,
    pair_intents,
    topic_follow_ups,
    topic_intents,
)
from scripts.embedded.numbers import number_intents
from scripts.embedded.open_ended import name_intents, open_intents, topic_free_intents
from scripts.embedded.surface import dress
from scripts.embedded.wording import Split

if TYPE_CHECKING:
    from random import Random

_TURN_COUNTS: Final = (1,) * 11 + (2,) * 5 + (3,) * 2 + (4, 6)
_FOLLOW_UP_CHANCE: Final = 0.7
_RECALL_CHANCE: Final = 0.3
# The share of scored questions that need the turn before them.
_FOLLOW_UP_QUESTIONS: Final = 0.15
_SYSTEM_CHANCE: Final = 0.2
_SYSTEM_PROMPTS: Final = (
    "You are a helpful assistant.",
    "You are KALA, a helpful assistant.",
    "You are a friendly and concise assistant. Answer in short sentences.",
    "Answer briefly.",
    "You are a helpful AI assistant. If you do not know something, say so.",
    "Be kind and honest.",
    "You are an expert. Think carefully before you answer.",
    "Always answer in English.",
    "You are an assistant that follows the Five Laws.",
    "System: test run.",
)
# Replies that a client may have put into the history in place of ours.
_CUT_REPLY_CHANCE: Final = 0.12


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `learned` assistant messages carry the loss."""

    role: str
    content: str
    learned: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """A scored question: the messages up to it, the intent and every answer that is right."""

    messages: tuple[Message, ...]
    intent: str
    accepted: tuple[str, ...]


class Curriculum:
    """Draws conversations and questions from all intents; it holds no randomness of its own."""

    def __init__(self) -> None:
        self._tell_name, self._ask_name = name_intents()
        self.intents: tuple[Intent, ...] = (
            *topic_intents(), *capital_intents(), *fixed_intents(), *pair_intents(), *list_intents(),
            *number_intents(), *open_intents(), *topic_free_intents(), self._tell_name, self._ask_name,
        )  # fmt: skip
        self._weights = [intent.weight for intent in self.intents]
        self._topics = topic_follow_ups()
        self._capitals = capital_follow_ups()

    def conversation(self, rng: Random) -> list[Message]:
        """Returns one training conversation of one to six exchanges."""
        messages = [Message("system", rng.choice(_SYSTEM_PROMPTS))] if rng.random() < _SYSTEM_CHANCE else []
        subject, name = "", ""
        for _ in range(rng.choice(_TURN_COUNTS)):
            example = self._next(Split.TRAIN, subject, name, rng)
            messages += self._exchange(example, rng)
            if example.intent == self._tell_name.name:
                name = example.subject
            else:
                subject = example.subject
        return messages

    def question(self, split: Split, rng: Random) -> Question:
        """Returns one question of the split; what comes before a follow-up is always of the training split."""
        while True:
            if rng.random() < _FOLLOW_UP_QUESTIONS:
                return self._follow_up_question(split, rng)
            example = rng.choices(self.intents, self._weights)[0].draw(split, rng)
            if example is not None and not example.intent.startswith("follow.none"):
                return _question([], example, rng)

    def _follow_up_question(self, split: Split, rng: Random) -> Question:
        while True:
            opening = self._draw(Split.TRAIN, rng)
            follow = self._follow_up(split, opening.subject, rng)
            if opening.intent == self._tell_name.name:
                follow = _recalled(self._ask_name.draw(split, rng), opening.subject)
            if follow is not None:
                return _question(self._exchange(opening, rng, faithful=True), follow, rng)

    def _draw(self, split: Split, rng: Random) -> Example:
        while True:
            example = rng.choices(self.intents, self._weights)[0].draw(split, rng)
            if example is not None:
                return example

    def _next(self, split: Split, subject: str, name: str, rng: Random) -> Example:
        if name and rng.random() < _RECALL_CHANCE:
            recalled = _recalled(self._ask_name.draw(split, rng), name)
            if recalled is not None:
                return recalled
        if rng.random() < _FOLLOW_UP_CHANCE:
            follow = self._follow_up(split, subject, rng)
            if follow is not None:
                return follow
        while True:
            example = self._draw(split, rng)
            # These need an empty history to be right.
            if not (subject and example.intent == "follow.none") and not (
                name and example.intent == self._ask_name.name
            ):
                return example

    def _follow_up(self, split: Split, subject: str, rng: Random) -> Example | None:
        if subject in self._topics:
            return self._topics[subject][rng.choice(("more", "example"))].draw(split, rng)
        if subject == CAPITAL:
            return rng.choice(self._capitals).draw(split, rng)
        return None

    @staticmethod
    def _exchange(example: Example, rng: Random, *, faithful: bool = False) -> list[Message]:
        asked = Message("user", dress(example, rng))
        if not faithful and example.subject in example.prompt and rng.random() < _CUT_REPLY_CHANCE:
            words = example.answer.split()
            return [asked, Message("assistant", " ".join(words[: rng.randrange(1, 4)]) + "...")]
        return [asked, Message("assistant", example.answer, learned=True)]


def _recalled(asked: Example | None, name: str) -> Example | None:
    if asked is None:
        return None
    case = Case({}, f"Your name is {name}.")
    return Example("name.recall", asked.prompt, case.answer, (), "", verbatim=False)


def _question(history: list[Message], example: Example, rng: Random) -> Question:
    messages = (*history, Message("user", dress(example, rng)))
    return Question(messages, example.intent, (example.answer, *example.accepted))
