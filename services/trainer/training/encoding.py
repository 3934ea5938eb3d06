"""Rows to tokens, as inference will see them: prompts through the chat template, loss on the assistant's tokens alone."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kala.errors import FailedPreconditionError
from services.trainer.training.rows import Dialogue, Labelled, Messages, Preference, Row

PLAIN_TEMPLATE: Final = (
    "{%- for message in messages -%}{{- '' if loop.first else '\\n' -}}{{- message['role'] | capitalize -}}:"
    "{{- ' ' + (message['content'] | trim | replace('<|', '< |')) -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '\\nAssistant:' if messages else 'Assistant:' -}}{%- endif -%}"
)
"""For bases without a chat template; travels with the adapter.  The end of an answer is a token, which can be learned."""

# Unknown to every stub: transformers' tokenizers are used through a handful of calls.
Untyped = Any


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence; `learned[i]` says whether token i, predicted from those before it, bears loss."""

    ids: array[int]
    learned: bytes
    label: int = -1
    """Number of a classifier's label."""

    @property
    def weight(self) -> int:
        """Tokens that bear loss."""
        return sum(self.learned)


@dataclass(frozen=True, slots=True)
class Pair:
    """Chosen and rejected of one preference, each with its prompt."""

    chosen: Encoded
    rejected: Encoded


Item = Encoded | Pair


@dataclass(slots=True)
class Counts:
    """What encoding met."""

    rows: int = 0
    cut: int = 0
    """Rows longer than a sequence; their end was cut off."""
    empty: int = 0
    """Rows of which nothing bears loss, left out."""
    tokens: int = 0
    """Tokens that bear loss, in one pass over the rows."""


class Encoder:
    """Encodes rows for one tokenizer and one longest sequence."""

    def __init__(self, tokenizer: Untyped, *, max_tokens: int, labels: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._max = max_tokens
        self._labels = {label: number for number, label in enumerate(labels)}
        self._specials = [token for token in tokenizer.all_special_tokens if len(token) > 1]
        self.template = "" if tokenizer.chat_template else PLAIN_TEMPLATE
        """What the adapter must bring along; empty where the base has its own."""

    def encode(self, rows: Iterable[Row], counts: Counts) -> list[Item]:
        """Give the sequences that have something to learn, in order."""
        items: list[Item] = []
        for row in rows:
            counts.rows += 1
            item = self._item(row)
            halves = (item.chosen, item.rejected) if isinstance(item, Pair) else (item,)
            counts.cut += any(len(half.ids) > self._max for half in halves)
            short = [self._cut(half) for half in halves]
            if all(half.weight or half.label >= 0 for half in short):
                counts.tokens += sum(half.weight for half in short)
                items.append(Pair(*short) if isinstance(item, Pair) else short[0])
            else:
                counts.empty += 1
        return items

    def _item(self, row: Row) -> Item:
        if isinstance(row, Dialogue):
            return self._dialogue(row.messages)
        if isinstance(row, Preference):
            return Pair(
                self._dialogue((*row.prompt, ("assistant", row.chosen)), last_only=True),
                self._dialogue((*row.prompt, ("assistant", row.rejected)), last_only=True),
            )
        return self._labelled(row)

    def _dialogue(self, messages: Messages, *, last_only: bool = False) -> Encoded:
        """Each answer is tokenised apart from what stands before it, as it will be generated."""
        turns = [{"role": role, "content": self._harmless(content)} for role, content in messages]
        ids, learned = array("i"), bytearray()
        done = ""
        for number, turn in enumerate(turns):
            is_learned = turn["role"] == "assistant" and (not last_only or number == len(turns) - 1)
            if not is_learned:
                continue
            before = self._written(turns[:number], opened=True)
            after = self._written(turns[: number + 1], opened=False)
            if not before.startswith(done) or not after.startswith(before):
                raise FailedPreconditionError(
                    "the base's chat template writes a turn differently once another follows; "
                    "train it with a template that only ever appends",
                    reason="TEMPLATE_NOT_APPENDING",
                )
            for text, bears in ((before[len(done) :], 0), (after[len(before) :], 1)):
                tokens = self._tokens(text)
                ids.extend(tokens)
                learned.extend(bytes([bears]) * len(tokens))
            done = after
        if learned:
            # Nothing stands before the first token that could predict it.
            learned[0] = 0
        return Encoded(ids, bytes(learned))

    def _labelled(self, row: Labelled) -> Encoded:
        if row.label not in self._labels:
            raise FailedPreconditionError(
                f"a row has the label {row.label[:80]!r}, which is none of the job's; name it in `labels`",
                reason="UNKNOWN_LABEL",
            )
        ids = self._tokens(self._harmless(row.text)) or [self._tokenizer.eos_token_id]
        return Encoded(array("i", ids), bytes(len(ids)), self._labels[row.label])

    def _harmless(self, text: str) -> str:
        """Break control tokens in a text up, so that it cannot pose as the conversation's own structure."""
        for token in self._specials:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _cut(self, item: Encoded) -> Encoded:
        if len(item.ids) <= self._max:
            return item
        return Encoded(item.ids[: self._max], item.learned[: self._max], item.label)

    def _written(self, turns: list[dict[str, str]], *, opened: bool) -> str:
        if not turns and not opened:
            return ""
        text: str = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=opened, chat_template=self.template or None
        )
        return text

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens
