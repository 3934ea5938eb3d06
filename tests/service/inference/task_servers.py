"""What the tests of embeddings, rankings and completions share: how a call is cleared, and servers that embed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.protobuf.message import Message

from tests.fakes.model_server import FakeModelServer, Scripted, Seen, as_json
from tests.service.inference.conftest import Suite

RPC = "/kala.inference.v1.InferenceService/"
EMBED = "/v1/embeddings"


def sealed(suite: Suite, action: Message, rpc: str) -> object:
    return suite.ethics.seal(action, audience=RPC + rpc)


def vector_of(text: str) -> list[float]:
    """A vector that tells texts apart: "a" and "q" point one way, "c" the other."""
    return {"q": [1.0, 0.0], "a": [2.0, 0.0], "b": [1.0, 1.0], "c": [-1.0, 0.0]}.get(
        text, [0.0, float(len(text))]
    )


def embedding(seen: Seen) -> Scripted:
    """Answer as llama-server does with --embeddings; an empty request is 400, as it is with every llama-server that can."""
    if "input" not in seen.json():
        return as_json({"error": {"code": 400, "message": '"input" must be provided'}}, status=400)
    texts = seen.json()["input"]
    data = [{"index": index, "embedding": vector_of(text)} for index, text in enumerate(texts)]
    return as_json({"model": "tiny", "data": data[::-1], "usage": {"prompt_tokens": len(texts)}})


@asynccontextmanager
async def lm_studio() -> AsyncIterator[FakeModelServer]:
    """An LM Studio with an embedding model and a chat model in memory."""
    async with FakeModelServer(like_llama_server=False) as server:
        kinds = {"nomic": "embedding", "qwen": "llm"}
        listed = [
            {"type": kind, "key": key, "loaded_instances": [{"id": key, "config": {"context_length": 2048}}]}
            for key, kind in kinds.items()
        ]
        server.on("GET", "/api/v1/models", as_json({"models": listed}))
        server.on(
            "POST", EMBED, lambda seen: as_json({**json.loads(embedding(seen).steps[0]), "model": "nomic"})
        )
        yield server
