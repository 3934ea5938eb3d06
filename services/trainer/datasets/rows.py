"""One row of a dataset: messages, a preference or a labelled text, with where it comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Role = Literal["system", "user", "assistant"]
ROLES: Final[tuple[Role, ...]] = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """Exactly one of `messages`, (`prompt`, `chosen`, `rejected`) and (`text`, `label`) is set.

    `category` counts in the card. `facts` are short strings kept beside the row, e.g. its law or an answer's address.
    `subject` is the pseudonym of the person whose data the row is; empty for none.
    """

    category: str
    messages: tuple[Message, ...] = ()
    prompt: tuple[Message, ...] = ()
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    text: str = ""
    label: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    subject: str = ""

    def content(self) -> dict[str, object]:
        """Returns what is learned from the row, in the keys that training reads."""
        if self.messages:
            return {"messages": _plain(self.messages)}
        if self.prompt:
            return {
                "prompt": _plain(self.prompt),
                "chosen": _plain(self.chosen),
                "rejected": _plain(self.rejected),
            }
        return {"text": self.text, "label": self.label}

    def digest(self) -> bytes:
        """SHA-256 of the content as canonical JSON: equal rows of different sources have equal digests."""
        return hashlib.sha256(_json(self.content()).encode()).digest()

    def line(self, source: str) -> str:
        """Returns the row as one line of JSON without its end, with its id, source, category, facts and subject."""
        row = {**self.content(), "id": self.digest().hex()[:32], "source": source, "category": self.category}
        if self.facts:
            row["facts"] = dict(self.facts)
        if self.subject:
            row["subject"] = self.subject
        return _json(row)

    def texts(self) -> list[str]:
        """Returns every text of the row, each on its own, in order."""
        if self.text:
            return [self.text]
        return [
            message.content
            for part in (self.messages, self.prompt, self.chosen, self.rejected)
            for message in part
        ]


def conversation(category: str, *turns: str, facts: Mapping[str, str] | None = None) -> Row:
    """Returns a row whose turns alternate between user and assistant, the user first."""
    messages = tuple(Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns))
    return Row(category, messages=messages, facts=facts or {})


def _plain(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
