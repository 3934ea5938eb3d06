"""What `/openapi.json` says of OpenAI's endpoints, of models and of health.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.chat_schema import ChatRequest
from gateway.moderation_categories import LAWS, OPENAI_CATEGORIES, OPENAI_OF
from gateway.moderation_schema import ModerationRequest
from gateway.openapi_parts import content, operation, reference, stream
from gateway.text_tasks_schema import CompletionRequest, EmbeddingRequest, RerankRequest

Json = dict[str, Any]  # Any: JSON

_HEX: Final = "0f3a5c7e9b1d2f4a6c8e0b2d4f6a8c0e"
_ASKED: Final[Json] = {
    "model": "auto",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}
_FINISH: Final = ["stop", "length", "tool_calls", "content_filter"]

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


def _list_of(item: Json, **further: Json) -> Json:
    return {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": item},
            **further,
        },
    }


def _kala(*further: str) -> Json:
    """Describe the extension object; `kala` in an answer holds at least these."""
    return {"type": "object", "required": ["receipt", "overhead_ms", *further]}


def _usage(*fields: str) -> Json:
    return {
        "type": ["object", "null"],
        "description": "Absent where the backend did not count.",
        "required": list(fields),
        "properties": {name: {"type": "integer", "minimum": 0} for name in fields},
    }


def _generated(kind: str, choice: Json) -> Json:
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "kala"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": {"type": "string", "description": "The model that answered."},
            "choices": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["index", "finish_reason", "logprobs"],
                    "properties": {
                        "index": {"type": "integer"},
                        "finish_reason": {"enum": _FINISH},
                        "logprobs": {"type": ["object", "null"]},
                        **choice,
                    },
                },
            },
            "usage": _usage("prompt_tokens", "completion_tokens", "total_tokens"),
            "kala": _kala("decision"),
        },
    }


_MESSAGE: Final[Json] = {
    "type": "object",
    "required": ["role", "content", "refusal"],
    "properties": {
        "role": {"const": "assistant"},
        "content": {"type": ["string", "null"]},
        "refusal": {"type": ["string", "null"]},
        "reasoning_content": {"type": "string"},
        "tool_calls": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "type", "function"],
                "properties": {
                    "id": {"type": "string"},
                    "type": {"const": "function"},
                    "function": {
                        "type": "object",
                        "required": ["name", "arguments"],
                        "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
                    },
                },
            },
        },
    },
}

_EMBEDDING: Final[Json] = {
    "type": "object",
    "required": ["object", "index", "embedding"],
    "properties": {
        "object": {"const": "embedding"},
        "index": {"type": "integer"},
        "embedding": {
            "description": "Numbers, or base64 of little-endian IEEE 754 singles.",
            "anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}],
        },
    },
}

_RANKING: Final[Json] = {
    "type": "object",
    "required": ["object", "results", "model", "kala"],
    "properties": {
        "object": {"const": "list"},
        "model": {"type": "string"},
        "results": {
            "type": "array",
            "description": "Best first.",
            "items": {
                "type": "object",
                "required": ["index", "relevance_score"],
                "properties": {
                    "index": {"type": "integer", "description": "Position among the given documents."},
                    "relevance_score": {
                        "type": "number",
                        "description": "Comparable within one answer only.",
                    },
                    "document": {"type": "object", "properties": {"text": {"type": "string"}}},
                },
            },
        },
        "usage": _usage("prompt_tokens", "total_tokens"),
        "kala": {
            **_kala("decision", "attempts", "degraded"),
            "properties": {
                "degraded": {
                    "type": "boolean",
                    "description": "Whether embeddings stood in for a model made for ranking.",
                }
            },
        },
    },
}

_MODEL_SCHEMA: Final[Json] = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "kala": {"type": "object"},
    },
}

_STATUS: Final[Json] = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"type": "string"}, "parts": {"type": "object"}},
}

_CATEGORY_NAMES: Final = [
    *OPENAI_CATEGORIES,
    *(f"law_{law}" for law in LAWS),
    *(f"kala/{name}" for name in OPENAI_OF),
]


def _per_category(value: Json) -> Json:
    return {
        "type": "object",
        "required": _CATEGORY_NAMES,
        "properties": dict.fromkeys(_CATEGORY_NAMES, value),
        "additionalProperties": value,
    }


_MODERATION: Final[Json] = {
    "type": "object",
    "required": ["id", "model", "results", "kala"],
    "properties": {
        "id": {"type": "string"},
        "model": {"type": "string", "description": "The constitution that judged."},
        "results": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    "flagged",
                    "categories",
                    "category_scores",
                    "category_applied_input_types",
                    "kala",
                ],
                "properties": {
                    "flagged": {
                        "type": "boolean",
                        "description": "Whether ethics came to anything but ALLOW.",
                    },
                    "categories": _per_category({"type": "boolean"}),
                    "category_scores": _per_category({"type": "number", "minimum": 0, "maximum": 1}),
                    "category_applied_input_types": _per_category(
                        {"type": "array", "items": {"type": "string", "const": "text"}}
                    ),
                    "kala": {
                        "type": "object",
                        "required": ["decision", "unjudged"],
                        "properties": {
                            "decision": {"type": "object"},
                            "unjudged": {"type": "array", "items": {"type": "string"}},
                        },
                    },
                },
            },
        },
        "kala": _kala(),
    },
}


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
        "categories": dict.fromkeys(_CATEGORY_NAMES, False),
        "category_scores": dict.fromkeys(_CATEGORY_NAMES, 0.01),
        "category_applied_input_types": {name: ["text"] for name in _CATEGORY_NAMES},
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


def openai_schemas(ref_template: str) -> Mapping[str, Json]:
    """Give the schemas of these endpoints; `ref_template` is how one names another."""
    schemas: Json = {
        "ChatCompletion": _generated("chat.completion", {"message": _MESSAGE}),
        "Completion": _generated("text_completion", {"text": {"type": "string"}}),
        "Embeddings": _list_of(
            _EMBEDDING,
            model={"type": "string", "description": "The model that embedded all of them."},
            usage=_usage("prompt_tokens", "total_tokens"),
            kala=_kala("decision", "attempts"),
        ),
        "Ranking": _RANKING,
        "Moderation": _MODERATION,
        "Model": _MODEL_SCHEMA,
        "Models": _list_of(reference("Model")),
        "Health": _STATUS,
    }
    for model in (ChatRequest, ModerationRequest, CompletionRequest, EmbeddingRequest, RerankRequest):
        schema = model.model_json_schema(by_alias=True, ref_template=ref_template)
        schemas |= {**schema.pop("$defs", {}), model.__name__: schema}
    return schemas
