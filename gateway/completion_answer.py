"""Writes completions as OpenAI's clients expect them: one object, or chunks of a stream.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.acts import Conclusion
from gateway.answer import Release
from gateway.chat_answer import DONE, Identity, usage_json
from gateway.errors import openai_body
from kala.errors import KalaError

Json = dict[str, Any]  # Any: JSON


def text_completion(identity: Identity, conclusion: Conclusion) -> Json:
    """Write a whole answer."""
    body = _body(
        identity,
        conclusion.served.model or identity.model,
        [_choice(conclusion.answer.text, conclusion.finish_reason)],
    )
    usage = usage_json(conclusion.usage)
    if usage is not None:
        body["usage"] = usage
    return {**body, "kala": conclusion.to_json()}


class TextChunkWriter:
    """Writes the chunks of one stream."""

    def __init__(self, identity: Identity, *, wants_usage: bool) -> None:
        self._identity = identity
        self._wants_usage = wants_usage
        self._model = identity.model

    def released(self, release: Release) -> bytes:
        """Write what may leave now."""
        return _event(self._chunk(_choice(release.text, None)))

    def served_by(self, model: str) -> None:
        """Name the model that answers from now on."""
        self._model = model or self._model

    def concluded(self, conclusion: Conclusion) -> bytes:
        """Write the end: the reason, usage if asked for, and on the last chunk the `kala` object."""
        self.served_by(conclusion.served.model)
        parts = []
        if conclusion.closing_text:
            parts.append(_event(self._chunk(_choice(conclusion.closing_text, None))))
        last = self._chunk(_choice("", conclusion.finish_reason))
        if self._wants_usage:
            parts.append(_event(last))
            last = self._chunk(None)
            last["usage"] = usage_json(conclusion.usage)
        last["kala"] = conclusion.to_json()
        parts += [_event(last), DONE]
        return b"".join(parts)

    def failed(self, error: KalaError, conclusion: Conclusion) -> bytes:
        """Write the error event that ends a stream; no [DONE] follows, for the answer is not done."""
        return _event({**openai_body(error), "kala": conclusion.to_json()})

    def _chunk(self, choice: Json | None) -> Json:
        chunk = _body(self._identity, self._model, [] if choice is None else [choice])
        if self._wants_usage:
            chunk["usage"] = None
        return chunk


def _body(identity: Identity, model: str, choices: list[Json]) -> Json:
    return {
        "id": identity.id,
        "object": "text_completion",
        "created": identity.created,
        "model": model,
        "choices": choices,
    }


def _choice(text: str, finish_reason: str | None) -> Json:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _event(value: Mapping[str, Any]) -> bytes:  # Any: JSON
    return b"data: " + orjson.dumps(value) + b"\n\n"
