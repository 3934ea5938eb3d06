"""Reads what a model server says when it does not answer: status, body and habits of each server.  Pure.

The status alone means little: llama-server answers client mistakes with 500, mlx_lm.server every failure with 404, and
LM Studio unknown paths with 200.  What each server says was recorded (tests/fixtures/backends).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import orjson

from services.inference.backend import BackendFailure, Blame, ContextOverflow

MAX_TOLD_CHARS: Final = 300
"""Enough of a server's own words to act on; some servers quote the whole request."""

MAX_READ_CHARS: Final = 4096
"""What is looked at of a server's words: the patterns below take time with the square of the length, and what a server
quotes may be a client's doing."""

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_OVERFLOWS: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        # llama-server
        r"request \((?P<prompt>\d+) tokens\) exceeds the available context size \((?P<context>\d+) tokens\)",
        # llama_cpp.server and OpenAI
        r"maximum context length is (?P<context>\d+) tokens.*?requested (?:\d+) tokens \((?P<prompt>\d+) in the messages",
        r"maximum context length is (?P<context>\d+) tokens.*?(?:resulted in|requested) (?P<prompt>\d+) tokens",
        r"maximum context length is (?P<context>\d+)",
        # LM Studio, 2026 and 2025
        (
            r"tokens to keep from the initial prompt is greater than the context length"
            r"(?:.*?n_keep:\s*(?P<prompt>\d+)\s*>=\s*n_ctx:\s*(?P<context>\d+))?"
        ),
        r"keep the first (?P<prompt>\d+) tokens.*?context length of only (?P<context>\d+) tokens",
        # Anthropic
        r"prompt is too long: (?P<prompt>\d+) tokens > (?P<context>\d+) maximum",
        r"exceed context limit: (?P<prompt>\d+) \+ \d+ > (?P<context>\d+)",
        # Ollama
        r"prompt is longer than the context length",
        r"input length exceeds the (?:maximum )?context length",
        r"exceeds? the (?:available )?context (?:size|length|window)",
    )
)

_CALLERS_MISTAKES: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"image input is not supported",  # llama-server without mmproj, as 500
        r"only 'text' content type is supported",  # mlx_lm.server, as 404
        r"does not support (?:images?|vision|tools|thinking)",  # Ollama
        r"is too large to process",  # llama-server, embeddings, as 500
        r"failed to (?:decode|load|process) image",
        r"not a chat model|does not support chat",
    )
)

_NO_MODEL: Final = re.compile(
    r"no models? (?:is |are )?loaded|model is not (?:loaded|running)|model has (?:crashed|unloaded)|model unloaded",
    re.IGNORECASE,
)
_UNKNOWN_MODEL: Final = re.compile(
    r"invalid model identifier|model ['\"].*?['\"] not found|model .{1,200} (?:not found|does not exist)"
    r"|model name is missing|cached snapshot folder|repository not found",
    re.IGNORECASE | re.DOTALL,
)


_STATUS_REASONS: Final = {
    0: "BACKEND_ERROR",
    200: "BACKEND_ERROR",
    401: "AUTHENTICATION_FAILED",
    403: "AUTHENTICATION_FAILED",
    404: "NOT_SERVED",
    408: "BACKEND_TIMED_OUT",
    429: "BACKEND_BUSY",
    503: "BACKEND_LOADING",
    504: "BACKEND_TIMED_OUT",
    529: "BACKEND_BUSY",  # Anthropic: overloaded
}


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """An error body of any shape: the server's words, its machine-readable name, and numbers where it gives them."""

    message: str
    code: str = ""
    prompt_tokens: int | None = None
    context_tokens: int | None = None


def read_error(parsed: object) -> ErrorBody | None:
    """Find the error in a JSON value: `{"error": object|string}`, `{"detail": …}`; None where there is none."""
    if not isinstance(parsed, dict):
        return None
    error = parsed.get("error")
    if isinstance(error, dict):
        message = _text(error.get("message")) or _text(error.get("error")) or _text(error.get("type"))
        code = _identifier(error.get("code")) or _identifier(error.get("type"))
        return ErrorBody(message, code, _number(error.get("n_prompt_tokens")), _number(error.get("n_ctx")))
    if isinstance(error, str) and error:
        return ErrorBody(_text(error))
    if "choices" in parsed or "data" in parsed or "models" in parsed:
        return None
    detail = parsed.get("detail")
    if detail:
        return ErrorBody(_text(detail) or _written(detail))
    return None


def failure_of_body(status: int, body: bytes) -> BackendFailure:
    """Explain an HTTP answer that is not the one asked for."""
    try:
        error = read_error(orjson.loads(body)) if body else None
    except orjson.JSONDecodeError:
        text = body[: 4 * MAX_TOLD_CHARS].decode("utf-8", "replace").strip()
        if text[:200].lstrip().lower().startswith(("<!doctype", "<html", "<?xml", "<head", "<body")):
            return BackendFailure(
                "NOT_AN_API", f"answered {status} with a web page; is the URL a model server's?"
            )
        error = ErrorBody(text)
    if error is None:
        return BackendFailure(_reason_of_status(status), f"answered {status} without saying why")
    return failure_of_error(status, error)


def failure_of_error(status: int, error: ErrorBody) -> BackendFailure:
    """Explain an error that the server put into words; `status` 0 means it came inside a stream."""
    told = error.message[:MAX_TOLD_CHARS]
    return _overflow(error) or _failure_of_text(error, told) or _failure_of_status(status, error.code, told)


def _failure_of_text(error: ErrorBody, told: str) -> BackendFailure | None:
    if any(pattern.search(error.message) for pattern in _CALLERS_MISTAKES):
        return BackendFailure(
            "BACKEND_REJECTED", "cannot do what the request asks", blame=Blame.CALLER, told=told
        )
    if _NO_MODEL.search(error.message):
        return BackendFailure("NO_MODEL_LOADED", "has no model loaded any more", told=told)
    if error.code in {"model_not_found", "model_not_loaded"} or _UNKNOWN_MODEL.search(error.message):
        return BackendFailure("MODEL_NOT_FOUND", "does not know the model any more", told=told)
    return None


def _failure_of_status(status: int, code: str, told: str) -> BackendFailure:
    named = f" ({code})" if code else ""
    if status in {400, 413, 422}:
        detail = f"refused the request with {status}{named}"
        return BackendFailure("BACKEND_REJECTED", detail, blame=Blame.CALLER, told=told)
    where = f"answered {status}" if status else "reported an error inside its answer"
    return BackendFailure(_reason_of_status(status), f"{where}{named}", told=told)


def _overflow(error: ErrorBody) -> ContextOverflow | None:
    if error.code == "exceed_context_size_error":
        return ContextOverflow(prompt_tokens=error.prompt_tokens, context_tokens=error.context_tokens)
    for pattern in _OVERFLOWS:
        match = pattern.search(error.message)
        if match:
            numbers = match.groupdict()
            return ContextOverflow(
                prompt_tokens=_number(numbers.get("prompt")), context_tokens=_number(numbers.get("context"))
            )
    if error.code == "context_length_exceeded":
        return ContextOverflow(prompt_tokens=None, context_tokens=None)
    return None


def _reason_of_status(status: int) -> str:
    return _STATUS_REASONS.get(status, f"HTTP_{status}")


def _text(value: object) -> str:
    return value[:MAX_READ_CHARS] if isinstance(value, str) else ""


def _written(value: object) -> str:
    try:
        return _text(orjson.dumps(value).decode())
    except orjson.JSONEncodeError:
        # It reads what is nested deeper than it writes.
        return ""


def _identifier(value: object) -> str:
    # Only what looks like a name: a free text may quote the prompt and must not reach a record.
    return value if isinstance(value, str) and _IDENTIFIER.fullmatch(value) else ""


def _number(value: object) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) < 19:  # noqa: PLR2004 - fits in 63 bits
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
