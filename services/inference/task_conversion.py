"""Between the contract's messages for completions, embeddings and rankings and this service's values; checks every limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb
from services.inference.backend import Capability
from services.inference.conversion import MAX_MODEL_CHARS, read_sampling, require
from services.inference.router import Wanted
from services.inference.tasks import CompleteCall, EmbedCall, RerankCall

MAX_PROMPT_CHARS: Final = 4 * 1024 * 1024
MAX_INPUTS: Final = 2048
MAX_QUERY_CHARS: Final = 64 * 1024
MAX_DOCUMENTS: Final = 1000
MAX_TEXT_BYTES: Final = 1024 * 1024
MAX_DIMENSIONS: Final = 65_536
"""Longer than any model's vectors; OpenAI's longest have 3,072 numbers."""

Action = pb.CompleteAction | pb.EmbedAction | pb.RerankAction


def complete_call(action: pb.CompleteAction) -> CompleteCall:
    """Read a CompleteAction; raises InvalidArgumentError naming the field."""
    require(
        1 <= len(action.prompt) <= MAX_PROMPT_CHARS, "prompt", f"must have 1 to {MAX_PROMPT_CHARS} characters"
    )
    require(
        len(action.suffix) <= MAX_PROMPT_CHARS, "suffix", f"must have at most {MAX_PROMPT_CHARS} characters"
    )
    sampling = read_sampling(action.sampling)
    require(not sampling.logprobs, "sampling.logprobs", "is not given with completions; ask a chat for it")
    return CompleteCall(action.prompt, action.suffix, sampling, stream=action.stream)


def embed_call(action: pb.EmbedAction) -> EmbedCall:
    """Read an EmbedAction; raises InvalidArgumentError naming the field."""
    _require_texts(action.inputs, "inputs", most=MAX_INPUTS)
    dimensions = action.dimensions if action.HasField("dimensions") else None
    require(
        dimensions is None or 1 <= dimensions <= MAX_DIMENSIONS,
        "dimensions",
        f"must be 1 to {MAX_DIMENSIONS}",
    )
    return EmbedCall(tuple(action.inputs), dimensions)


def rerank_call(action: pb.RerankAction) -> RerankCall:
    """Read a RerankAction; raises InvalidArgumentError naming the field."""
    require(
        1 <= len(action.query) <= MAX_QUERY_CHARS, "query", f"must have 1 to {MAX_QUERY_CHARS} characters"
    )
    _require_texts(action.documents, "documents", most=MAX_DOCUMENTS)
    require(not action.HasField("top_n") or action.top_n >= 1, "top_n", "must be at least 1")
    return RerankCall(action.query, tuple(action.documents))


def wanted_for(action: Action, task: Capability) -> Wanted:
    """Say where an action itself wants to go, and what the model is for."""
    require(len(action.model) <= MAX_MODEL_CHARS, "model", f"must be at most {MAX_MODEL_CHARS} characters")
    return Wanted(action.model, action.provider, task=task, allow_remote=action.allow_remote)


def _require_texts(texts: Sequence[str], field: str, *, most: int) -> None:
    require(1 <= len(texts) <= most, field, f"must be 1 to {most} texts; split the call")
    for index, text in enumerate(texts):
        if not text:
            raise InvalidArgumentError(f"{field}[{index}]", "is empty; leave it out")
        if len(text) * 4 > MAX_TEXT_BYTES and len(text.encode()) > MAX_TEXT_BYTES:
            raise InvalidArgumentError(
                f"{field}[{index}]", f"must have at most {MAX_TEXT_BYTES} bytes; split it"
            )
