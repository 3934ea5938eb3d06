"""`LMStudioConfig` and `LMStudioInferenceEngine`: LM Studio behind KALA's judges and log.

Nothing here connects to LM Studio. The engine is a client of the guarded pipeline, whose inference service does.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Self

from kala.replies import ChatReply

DEFAULT_BASE_URL: Final = "http://localhost:1234/v1"
"""Where LM Studio's local server listens unless told otherwise."""

LOCAL_MODEL: Final = "local-model"
"""Stands for whatever model is loaded; never sent upstream."""

# `Any`: OpenAI's messages and the seeds' metadata are open dictionaries.
Metadata = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LMStudioConfig:
    """How to reach LM Studio and how it shall generate; the order of the fields is a promise."""

    base_url: str = DEFAULT_BASE_URL
    api_key: str = field(default="lm-studio", repr=False)
    model: str = LOCAL_MODEL
    temperature: float = 0.7
    max_tokens: int = 256
    top_p: float = 0.9


class LMStudioInferenceEngine:
    """Generates with LM Studio, statelessly; every request is judged, logged and receipted all the same.

    Opens its suite at the first request. Close it, use it as a context manager, or let the interpreter's end do it.
    """

    def __init__(self, config: LMStudioConfig | None = None) -> None:
        self.config = config or LMStudioConfig()
        self._stack = ExitStack()
        self._connection: Any = None  # Any: kala.core.connection.Connection, imported when it is opened
        self._finalizer = weakref.finalize(self, self._stack.close)

    def generate(
        self,
        prompt: str,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> tuple[str, Metadata]:
        """Answer one prompt; the metadata holds model, token counts, decision and receipt."""
        return self.chat([{"role": "user", "content": prompt}], max_new_tokens, temperature, top_p)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> tuple[str, Metadata]:
        """Continue a conversation; a refusal is an answer whose metadata says `blocked: True`."""
        reply = self._opened().ask(
            messages, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p
        )
        return reply.text, metadata_of(reply)

    def close(self) -> None:
        """Stop the private suite, if one was started."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> Any:  # Any: as above
        if self._connection is None:
            from kala.core.connection import connect

            self._connection = self._stack.enter_context(connect(lmstudio_config=self.config))
        return self._connection


def metadata_of(reply: ChatReply) -> Metadata:
    """What the seeds call metadata: plain values about one answer."""
    decision, receipt = reply.decision, reply.receipt
    return {
        "model": reply.model,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.input_tokens,
        "tokens_generated": reply.output_tokens,
        "blocked": not reply.allowed,
        "outcome": None if decision is None else decision.outcome,
        "law": None if decision is None else decision.law,
        "decision_path": [] if decision is None else list(decision.path),
        "receipt": None if receipt is None else receipt.id,
    }
