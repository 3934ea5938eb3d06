"""llama-server's tokenizer: a whole chat request by one call, or by its template and its tokenizer where it is older."""

from __future__ import annotations

from typing import Final

import orjson

from services.inference.backend import BackendFailure
from services.inference.backends.http import ModelServerClient, Reply
from services.inference.backends.model_server import OK
from services.inference.failures import failure_of_body

INPUT_TOKENS_PATH: Final = "/v1/chat/completions/input_tokens"
TEMPLATE_PATH: Final = "/apply-template"
TOKENIZE_PATH: Final = "/tokenize"

COUNT_SECONDS: Final = 5.0
"""Longest wait for one count; megabytes take about a second."""

NOT_FOUND: Final = 404

MAX_BELIEVED: Final = 2**31 - 1


async def count_request(http: ModelServerClient, body: bytes, model: str) -> int:
    """Count a chat request as it would be sent, functions and template included; raises BackendFailure."""
    request = orjson.Fragment(body)
    reply = await http.tell(INPUT_TOKENS_PATH, request, within_seconds=COUNT_SECONDS)
    if reply.status != NOT_FOUND:
        return _number(_of(reply, "input_tokens"))
    prompt = _of(await http.tell(TEMPLATE_PATH, request, within_seconds=COUNT_SECONDS), "prompt")
    if not isinstance(prompt, str):
        raise BackendFailure("MALFORMED_ANSWER", "wrote no prompt with its template")
    return await _tokenized(http, prompt, model, is_prompt=True)


async def count_text(http: ModelServerClient, text: str, model: str) -> int:
    """Count a text by itself; raises BackendFailure."""
    return await _tokenized(http, text, model, is_prompt=False)


async def _tokenized(http: ModelServerClient, text: str, model: str, *, is_prompt: bool) -> int:
    asked = {"model": model, "content": text, "add_special": is_prompt, "parse_special": is_prompt}
    tokens = _of(await http.tell(TOKENIZE_PATH, asked, within_seconds=COUNT_SECONDS), "tokens")
    if not isinstance(tokens, list):
        raise BackendFailure("MALFORMED_ANSWER", "counted no tokens")
    return len(tokens)


def _of(reply: Reply, key: str) -> object:
    if reply.status != OK:
        raise failure_of_body(reply.status, reply.body)
    parsed = reply.json()
    return parsed.get(key) if isinstance(parsed, dict) else None


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_BELIEVED:
        raise BackendFailure("MALFORMED_ANSWER", "counted no tokens")
    return value
