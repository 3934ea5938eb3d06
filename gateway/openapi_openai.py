"""What `/openapi.json` says of OpenAI's endpoints, of models and of health.  Pure."""

from __future__ import annotations

from typing import Any, Final

from gateway.openapi_parts import content, operation, reference, stream
from gateway.openapi_schemas import CATEGORY_NAMES

Json = dict[str, Any]  # Any: JSON

_HEX: Final = "0f3a5c7e9b1d2f4a6c8e0b2d4f6a8c0e"
_ASKED: Final[Json] = {
    "model": "auto",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}

_DECISION: Final[Json] = {
    "id": _HEX, "outcome": "ALLOW", "stage": "output", "law": None, "category": None, "message": None, "path": [],
    "constitution": _HEX * 2,
}  # fmt: skip
_RECEIPT: Final[Json] = {
    "id": f"rcpt_{_HEX}", "status": "LOGGED", "index": 5, "leaf_hash": _HEX * 2, "openings": {"released": _HEX},
}  # fmt: skip
_KALA: Final[Json] = {
    "decision": _DECISION,
    "receipt": _RECEIPT,
    "intent": f"rcpt_{_HEX}",
    "attempts": [{"backend": "lmstudio", "reason": "ok"}],
    "backend": "lmstudio",
    "overhead_ms": 6.2,
}
_COUNTED: Final[Json] = {"prompt_tokens": 14, "completion_tokens": 7, "total_tokens": 21}
_MODEL: Final[Json] = {"id": "auto", "object": "model", "created": 1795340000, "owned_by": "kala"}


def _completed(kind: str, choice: Json) -> Json:
    return {
        "id": f"{'chatcmpl' if kind == 'chat.completion' else 'cmpl'}-{_HEX}",
        "object": kind,
        "created": 1795340000,
        "model": "qwen3-8b",
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, **choice}],
        "usage": _COUNTED,
        "kala": _KALA,
    }


def _events(kind: str, choice: str) -> str:
    return (
        f'data: {{"id": "cmpl-1", "object": "{kind}", "created": 1795340000, "model": "qwen3-8b", '
        f'"choices": [{{"index": 0, {choice}, "logprobs": null, "finish_reason": null}}]}}\n\ndata: [DONE]\n\n'
    )


def _chunk(kind: str) -> Json:
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices"],
        "properties": {"object": {"const": kind}},
    }


def _post(
    name: str, summary: str, path: str, request: str, example: Json, answer: Json, answered: str
) -> Json:
    return {
        path: {
            "post": operation(
                name,
                summary,
                path=path,
                scope="chat",
                request=content(reference(request), example),
                answer=answer,
                answered=answered,
            )
        }
    }


def openai_paths() -> Json:
    """Describe the endpoints that the core itself serves."""
    moderated: Json = {
        "flagged": False,
        "categories": dict.fromkeys(CATEGORY_NAMES, False),
        "category_scores": dict.fromkeys(CATEGORY_NAMES, 0.01),
        "category_applied_input_types": {name: ["text"] for name in CATEGORY_NAMES},
        "kala": {"decision": _DECISION, "unjudged": []},
    }
    vectors: Json = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.12, -0.4]}],
        "model": "nomic-embed",
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
        "kala": _KALA,
    }
    ranked: Json = {
        "object": "list",
        "results": [{"index": 0, "relevance_score": 0.97}],
        "model": "bge-reranker",
        "kala": {**_KALA, "degraded": False},
    }
    chat_answer = {
        **content(
            reference("ChatCompletion"),
            _completed(
                "chat.completion",
                {"message": {"role": "assistant", "content": "Paris.", "refusal": None}},
            ),
        ),
        **stream(
            _chunk("chat.completion.chunk"),
            _events("chat.completion.chunk", '"delta": {"role": "assistant", "content": "Paris."}'),
        ),
    }
    text_answer = {
        **content(reference("Completion"), _completed("text_completion", {"text": " Paris."})),
        **stream(_chunk("text_completion"), _events("text_completion", '"text": " Paris."')),
    }
    return {
        **_post(
            "createChatCompletion", "Answer a conversation, judged before and after, with a receipt",
            "/v1/chat/completions", "ChatRequest", _ASKED, chat_answer,
            "OpenAI's chat.completion, or its chunks, with a `kala` object.",
        ),
        **_post(
            "createCompletion", "Continue a text, judged before and after, with a receipt",
            "/v1/completions", "CompletionRequest", {"model": "auto", "prompt": "The capital of France is"}, text_answer,
            "OpenAI's text_completion, or its chunks, with a `kala` object.",
        ),
        **_post(
            "createEmbedding", "Turn texts into vectors, judged before, with a receipt",
            "/v1/embeddings", "EmbeddingRequest", {"model": "auto", "input": ["Paris", "Berlin"]},
            content(reference("Embeddings"), vectors), "One vector per text, in their order.",
        ),
        **_post(
            "createRerank", "Order documents by their bearing on a query, judged before, with a receipt",
            "/v1/rerank", "RerankRequest", {"query": "capital of France", "documents": ["Paris", "Berlin"]},
            content(reference("Ranking"), ranked), "The documents' places and scores.",
        ),
        **_post(
            "createModeration", "Judge texts by the Five Laws, with a receipt; nothing is generated",
            "/v1/moderations", "ModerationRequest", {"input": ["What is the capital of France?"]},
            content(reference("Moderation"), {
                "id": "modr-1", "model": "kala-five-laws", "results": [moderated],
                "kala": {"receipt": _RECEIPT, "overhead_ms": 3.1},
            }),
            "One result per text, in their order; one for all parts of an input in parts.",
        ),
        **_plain_paths(),
    }  # fmt: skip


def _plain_paths() -> Json:
    ready: Json = {"status": "ready", "parts": {"ethics": "ok", "audit": "ok"}}
    tested: Json = {"success": True, "steps": []}
    metrics = content({"type": "string"}, "kala_rpc_running 0\n", "text/plain")
    return {
        "/v1/models": {"get": operation(
            "listModels", "List what can be asked for", path="/v1/models", scope="chat",
            answer=content(reference("Models"), {"object": "list", "data": [_MODEL]}),
        )},
        "/v1/models/{id}": {"get": operation(
            "getModel", "Describe one model", path="/v1/models/{id}", scope="chat",
            answer=content(reference("Model"), _MODEL), path_examples={"id": "auto"},
        )},
        "/api/test-lmstudio": {"post": operation(
            "testLmStudio", "Test LM Studio step by step", path="/api/test-lmstudio", scope="admin",
            answer=content({"type": "object"}, tested),
        )},
        "/healthz": {"get": operation(
            "live", "Tell whether the process lives", path="/healthz", scope=None, tag="health",
            answer=content(reference("Health"), {"status": "ok"}),
        )},
        "/readyz": {"get": _with_not_ready(operation(
            "ready", "Tell whether requests would be answered", path="/readyz", scope=None, tag="health",
            answer=content(reference("Health"), ready),
        ))},
        "/metrics": {"get": operation(
            "metrics", "Give the process's metrics in Prometheus' format", path="/metrics", scope=None, tag="health",
            answer=metrics,
        )},
        "/openapi.json": {"get": operation(
            "openapi", "Describe this API", path="/openapi.json", scope=None, tag="health",
            answer=content({"type": "object"}, {"openapi": "3.1.0"}),
        )},
        "/kala/v1/audit/log/{path}": {"get": operation(
            "mirrorLog", "Give a part of the log as tlog-tiles names it", path="/kala/v1/audit/log/{path}",
            scope="audit_read", tag="audit", error="Error", path_examples={"path": "checkpoint"},
            answer={
                **content({"type": "string"}, "kala.dev/log\n1\n", "text/plain; charset=utf-8"),
                **content({"type": "string", "format": "binary"}, "", "application/octet-stream"),
            },
        )},
    }  # fmt: skip


def _with_not_ready(described: Json) -> Json:
    example: Json = {"status": "not ready", "parts": {"ethics": "unavailable", "audit": "ok"}}
    described["responses"]["503"] = {
        "description": "Requests would not be answered now.",
        "content": content(reference("Health"), example),
    }
    return described
