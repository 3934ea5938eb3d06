"""JSON values as model servers send them, read so that nothing they hold can do harm.  Pure."""

from __future__ import annotations

from typing import Any, Final

import orjson

from services.inference.backend import BackendFailure, cannot_do
from services.inference.chat import TokenLogprob, ToolCall

Json = dict[str, Any]  # Any: a JSON value

MAX_COUNT: Final = 2**53 - 1
"""Largest count of tokens that is believed: what JSON, and the log, hold exactly."""

MAX_TOP_LOGPROBS: Final = 20
"""The most alternatives of a token that a request can ask for."""

MAX_CALL_INDEX: Final = 127
"""The contract's last position of a tool call."""


def parse_object(payload: bytes) -> Json:
    """Read a JSON object; raises BackendFailure for anything else."""
    try:
        parsed = orjson.loads(payload)
    except orjson.JSONDecodeError:
        if payload.lstrip()[:1] == b"<":
            raise BackendFailure(
                "NOT_AN_API", "answered with a web page; is the URL a model server's?"
            ) from None
        raise BackendFailure("MALFORMED_ANSWER", "answered with something that is not JSON") from None
    if not isinstance(parsed, dict):
        raise BackendFailure("MALFORMED_ANSWER", "answered with JSON that is no object")
    return parsed


def string(value: object) -> str:
    """Give a text as it is, anything else as empty."""
    return value if isinstance(value, str) else ""


def arguments_text(value: object) -> str:
    """Give the arguments of a function call as text, also where a server sends them as an object."""
    if not isinstance(value, dict):
        return string(value)
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        # It reads what is nested deeper than it writes.
        raise BackendFailure("MALFORMED_ANSWER", "called a tool with arguments too deep to be read") from None


def count(value: object, name: str) -> int | None:
    """Give a believable count under a name of a JSON object, else None."""
    number = value.get(name) if isinstance(value, dict) else None
    return (
        number
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= MAX_COUNT
        else None
    )


def past_arguments(where: str, call: ToolCall) -> orjson.Fragment:
    """Give the arguments of a call in the conversation as the JSON object that they must be, byte for byte."""
    text = call.arguments or "{}"
    try:
        is_object = isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        is_object = False
    if not is_object:
        raise cannot_do(f"{where}.tool_calls: the arguments of {call.name!r} must be a JSON object")
    return orjson.Fragment(text)


def read_logprobs(value: object) -> tuple[TokenLogprob, ...]:
    """Read a list of tokens with their log probabilities; anything else is none."""
    if not isinstance(value, list):
        return ()
    return tuple(
        _logprob(item, _alternatives(item.get("top_logprobs"))) for item in value if isinstance(item, dict)
    )


def _alternatives(value: object) -> tuple[TokenLogprob, ...]:
    """Read the alternatives of one token, which have none of their own, however deep a server nests them."""
    if not isinstance(value, list):
        return ()
    return tuple(_logprob(item, ()) for item in value[:MAX_TOP_LOGPROBS] if isinstance(item, dict))


def _logprob(item: Json, top: tuple[TokenLogprob, ...]) -> TokenLogprob:
    token, logprob, raw = string(item.get("token")), item.get("logprob"), item.get("bytes")
    try:
        token_bytes = bytes(raw) if isinstance(raw, list) else token.encode()
    except (TypeError, ValueError):
        token_bytes = token.encode()
    return TokenLogprob(
        token=token,
        logprob=float(logprob) if isinstance(logprob, int | float) else 0.0,
        token_bytes=token_bytes,
        top=top,
    )
