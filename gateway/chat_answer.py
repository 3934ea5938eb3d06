"""Writes answers as OpenAI's clients expect them: one completion, or chunks of a stream.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.acts import Conclusion, Fitting
from gateway.answer import Answer, Release, ToolPiece
from gateway.errors import openai_body
from kala.common.v1 import usage_pb2
from kala.errors import KalaError
from kala.inference.v1 import inference_pb2

DONE: Final = b"data: [DONE]\n\n"
EVENT_STREAM: Final = "text/event-stream; charset=utf-8"

Json = dict[str, Any]  # Any: JSON


@dataclass(frozen=True, slots=True)
class Identity:
    """What every piece of one answer repeats."""

    id: str  # chatcmpl-…
    created: int  # seconds since 1970
    model: str  # as asked for; the backend's own name replaces it once known
    fitting: Fitting | None = None  # what was left out of the conversation before it was judged

    def kala(self, conclusion: Conclusion) -> Json:
        """Write the `kala` object."""
        said = conclusion.to_json()
        return said if self.fitting is None else {**said, "fitted": self.fitting.to_json()}


def completion(
    identity: Identity, conclusion: Conclusion, logprobs: Sequence[inference_pb2.TokenLogprob]
) -> Json:
    """Write a whole answer."""
    body: Json = {
        "id": identity.id,
        "object": "chat.completion",
        "created": identity.created,
        "model": conclusion.served.model or identity.model,
        "choices": [
            {
                "index": 0,
                "message": message_of(conclusion.answer),
                "logprobs": _logprobs(logprobs),
                "finish_reason": conclusion.finish_reason,
            }
        ],
        "kala": identity.kala(conclusion),
    }
    usage = usage_json(conclusion.usage)
    if usage is not None:
        body["usage"] = usage
    return body


class ChunkWriter:
    """Writes the chunks of one stream, the first with the role."""

    def __init__(self, identity: Identity, *, wants_usage: bool) -> None:
        self._identity = identity
        self._wants_usage = wants_usage
        self._model = identity.model
        self._has_role = False

    def released(self, release: Release) -> bytes:
        """Write what may leave now."""
        delta: Json = {}
        if release.text:
            delta["content"] = release.text
        if release.reasoning:
            delta["reasoning_content"] = release.reasoning
        if release.refusal:
            delta["refusal"] = release.refusal
        if release.tool_calls:
            delta["tool_calls"] = [_tool_delta(piece) for piece in release.tool_calls]
        chunk = self._chunk(delta, logprobs=_logprobs(release.logprobs))
        if release.step is not None:
            chunk["kala"] = {"step": release.step}
        return _event(chunk)

    def served_by(self, model: str) -> None:
        """Name the model that answers from now on."""
        self._model = model or self._model

    def concluded(self, conclusion: Conclusion) -> bytes:
        """Write the end: the reason, usage if asked for, and on the last chunk the `kala` object."""
        self.served_by(conclusion.served.model)
        parts = []
        if conclusion.closing_text:
            parts.append(_event(self._chunk({"content": conclusion.closing_text})))
        last = self._chunk({}, finish_reason=conclusion.finish_reason)
        if self._wants_usage:
            parts.append(_event(last))
            last = self._chunk(None)
            last["usage"] = usage_json(conclusion.usage)
        last["kala"] = self._identity.kala(conclusion)
        parts += [_event(last), DONE]
        return b"".join(parts)

    def failed(self, error: KalaError, conclusion: Conclusion) -> bytes:
        """Write the error event that ends a stream; no [DONE] follows, for the answer is not done."""
        return _event({**openai_body(error), "kala": self._identity.kala(conclusion)})

    def _chunk(
        self, delta: Json | None, *, finish_reason: str | None = None, logprobs: Json | None = None
    ) -> Json:
        if delta is not None and not self._has_role:
            self._has_role = True
            delta = {"role": "assistant", "content": "", **delta}
        choices = []
        if delta is not None:
            choices = [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}]
        chunk: Json = {
            "id": self._identity.id,
            "object": "chat.completion.chunk",
            "created": self._identity.created,
            "model": self._model,
            "choices": choices,
        }
        if self._wants_usage:
            chunk["usage"] = None
        return chunk


def usage_json(usage: usage_pb2.Usage | None) -> Json | None:
    """Write the tokens, or nothing when the backend did not count them."""
    if usage is None or not (usage.HasField("input_tokens") or usage.HasField("output_tokens")):
        return None
    body: Json = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
    if usage.HasField("cached_input_tokens"):
        body["prompt_tokens_details"] = {"cached_tokens": usage.cached_input_tokens}
    if usage.HasField("reasoning_tokens"):
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return body


def message_of(answer: Answer) -> Json:
    """Write an answer as one message."""
    message: Json = {
        "role": "assistant",
        "content": answer.text if answer.text or not (answer.tool_calls or answer.refusal) else None,
        "refusal": answer.refusal or None,
    }
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id or _call_id(index),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in sorted(answer.tool_calls.items())
        ]
    return message


def _tool_delta(piece: ToolPiece) -> Json:
    if not piece.name and not piece.id:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    return {
        "index": piece.index,
        "id": piece.id or _call_id(piece.index),
        "type": "function",
        "function": {"name": piece.name, "arguments": piece.arguments},
    }


def _call_id(index: int) -> str:
    """Name a call whose backend gave it no id; unique in its answer, which is what clients need."""
    return f"call_{index}"


def _logprobs(entries: Iterable[inference_pb2.TokenLogprob]) -> Json | None:
    content = [{**_logprob(entry), "top_logprobs": [_logprob(top) for top in entry.top]} for entry in entries]
    return {"content": content, "refusal": None} if content else None


def _logprob(entry: inference_pb2.TokenLogprob) -> Json:
    return {
        "token": entry.token,
        "logprob": entry.logprob,
        "bytes": list(entry.token_bytes) if entry.token_bytes else None,
    }


def _event(value: Mapping[str, Any]) -> bytes:  # Any: JSON
    return b"data: " + orjson.dumps(value) + b"\n\n"
