"""Ollama's native completions and embeddings as bytes.  Pure; the answers of a completion are read by `ollama_wire`."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from services.inference.backend import BackendFailure
from services.inference.backends.ollama_wire import options_of
from services.inference.backends.task_wire import answer_object, vector
from services.inference.backends.wire_json import Json, count, string
from services.inference.chat import Usage
from services.inference.tasks import CompleteCall, Vectors


def generate_body(
    call: CompleteCall, *, model: str, max_output_tokens: int, context_tokens: int | None, keep: bool
) -> bytes:
    """Write the request of a completion, always for a stream; `context_tokens` and `keep` as of a chat's."""
    body: Json = {
        "model": model,
        "prompt": call.prompt,
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": options_of(
            call.sampling, max_output_tokens=max_output_tokens, context_tokens=context_tokens
        ),
    }
    if call.suffix:
        # Filling a gap goes by the model's own template, which knows its marks for the gap.
        body["suffix"] = call.suffix
    else:
        # Without this the prompt would be wrapped as a chat.
        body["raw"] = True
    if keep:
        body["keep_alive"] = -1
    return orjson.dumps(body)


def embed_body(texts: Sequence[str], *, model: str, dimensions: int | None, keep: bool) -> bytes:
    """Write the request of one batch; a text over the context is an error and is not cut."""
    body: Json = {"model": model, "input": list(texts), "truncate": False}
    if dimensions is not None:
        body["dimensions"] = dimensions
    if keep:
        body["keep_alive"] = -1
    return orjson.dumps(body)


def read_embed(body: bytes, *, texts: int) -> tuple[str, Vectors]:
    """Read one batch's answer: the model that it names, and one vector per text, in order."""
    parsed = answer_object(body)
    listed = parsed.get("embeddings")
    if not isinstance(listed, list) or len(listed) != texts:
        raise BackendFailure(
            "MALFORMED_ANSWER", f"answered without exactly one vector for each of {texts} texts"
        )
    usage = Usage(input_tokens=count(parsed, "prompt_eval_count"))
    return string(parsed.get("model")), Vectors(tuple(vector(value) for value in listed), usage)
