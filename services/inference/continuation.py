"""Lets another backend carry on an answer that broke off.  Pure.

After the judgement nothing may be added to a request but fixed texts and what was already released (decisions:
Routing).  A continuation adds just these: the text so far as the assistant's, and where a server would begin a new
answer after it, a fixed text that asks to go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from services.inference.chat import AnswerForm, ChatCall, Delta, Message, Role, Sampling, Text, join_deltas

GO_ON: Final = "Your answer was cut off. Go on exactly where it stopped: repeat nothing, introduce nothing, and do not comment on it."

BYTES_PER_TOKEN: Final = 4
"""What a token holds on average: a broken stream tells no counts, and the rest of the limit must be estimated."""


@dataclass(slots=True)
class SoFar:
    """What was released of an answer."""

    _deltas: list[Delta] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Note a released piece; its reasoning and log probabilities are nothing that could be carried on."""
        if delta.text or delta.tool_calls or delta.refusal:
            self._deltas.append(Delta(text=delta.text, tool_calls=delta.tool_calls, refusal=delta.refusal))

    def whole(self) -> Delta:
        """Give all of it as one answer."""
        return join_deltas(self._deltas) if self._deltas else Delta()

    @property
    def is_only_text(self) -> bool:
        """Whether it can be carried on: half a function call cannot, nor the model's own refusal."""
        return not any(delta.tool_calls or delta.refusal for delta in self._deltas)


class Seam:
    """Where the rest of an answer meets what was released: the white space there comes once.

    Templates cut it off, and models read its tokens badly at an end, so it is not sent; most write it again.
    """

    __slots__ = ("_left",)

    def __init__(self, released: str = "") -> None:
        self._left = released[len(released.rstrip()) :]

    def join(self, delta: Delta) -> Delta:
        """Give a piece of the rest without what is there already."""
        if not self._left or not delta.text:
            return delta
        text = delta.text
        while text and self._left.startswith(text[0]):
            text, self._left = text[1:], self._left[1:]
        if text:
            self._left = ""
        return replace(delta, text=text)


def carried_on(call: ChatCall, text: str, *, in_words: bool) -> tuple[ChatCall, tuple[str, ...]]:
    """Ask for the rest of an answer that begins with `text`; gives the texts that this adds to the request, too.

    `in_words` is for servers that go on only when told to.

    The form is not sent: a grammar would begin its JSON anew.  The whole is held against it at the end.
    """
    text = text.rstrip()
    if not text:
        return call, ()
    messages = (*call.messages, Message(Role.ASSISTANT, (Text(text),)))
    if in_words:
        messages += (Message(Role.USER, (Text(GO_ON),)),)
    rest = replace(
        call, messages=messages, answer_form=AnswerForm(), sampling=_for_the_rest(call.sampling, text)
    )
    return rest, (text, GO_ON) if in_words else (text,)


def digest(added: Iterable[str]) -> bytes:
    """Give the SHA-256 of all texts added to the requests of an act, one after the other; empty when there are none."""
    texts = list(added)
    return hashlib.sha256("".join(texts).encode()).digest() if texts else b""


def _for_the_rest(sampling: Sampling, text: str) -> Sampling:
    if sampling.max_output_tokens is None:
        return sampling
    used = len(text.encode()) // BYTES_PER_TOKEN
    return replace(sampling, max_output_tokens=max(1, sampling.max_output_tokens - used))
