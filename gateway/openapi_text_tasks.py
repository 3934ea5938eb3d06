"""What `/openapi.json` says of completions, embeddings and rankings.  Pure."""

from __future__ import annotations

from typing import Any, Final

from gateway.chat_answer import EVENT_STREAM
from gateway.edge import JSON
from gateway.text_tasks_schema import CompletionRequest, EmbeddingRequest, RerankRequest

Json = dict[str, Any]  # Any: JSON

_USAGE: Final[Json] = {
    "type": "object",
    "description": "Absent where the backend did not count.",
    "required": ["prompt_tokens", "total_tokens"],
    "properties": {"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}},
}

_EMBEDDINGS: Final[Json] = {
    "type": "object",
    "required": ["object", "data", "model", "kala"],
    "properties": {
        "object": {"const": "list"},
        "model": {"type": "string", "description": "The model that embedded all of them."},
        "data": {
            "type": "array",
            "items": {
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
            },
        },
        "usage": _USAGE,
        "kala": {"type": "object", "required": ["decision", "receipt", "attempts", "overhead_ms"]},
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
        "usage": _USAGE,
        "kala": {
            "type": "object",
            "required": ["decision", "receipt", "attempts", "overhead_ms", "degraded"],
            "properties": {
                "degraded": {
                    "type": "boolean",
                    "description": "Whether embeddings stood in for a model made for ranking.",
                }
            },
        },
    },
}


def text_task_paths() -> Json:
    """Describe the three endpoints."""
    return {
        "/v1/completions": _post(
            "createCompletion",
            "Continue a text, judged before and after, with a receipt",
            "CompletionRequest",
            {
                JSON: {"schema": {"type": "object"}},
                EVENT_STREAM.partition(";")[0]: {"schema": {"type": "string"}},
            },
            "OpenAI's text_completion, or its chunks, with a `kala` object.",
        ),
        "/v1/embeddings": _post(
            "createEmbedding",
            "Turn texts into vectors, judged before, with a receipt",
            "EmbeddingRequest",
            {JSON: {"schema": {"$ref": "#/components/schemas/Embeddings"}}},
            "One vector per text, in their order.",
        ),
        "/v1/rerank": _post(
            "createRerank",
            "Order documents by their bearing on a query, judged before, with a receipt",
            "RerankRequest",
            {JSON: {"schema": {"$ref": "#/components/schemas/Ranking"}}},
            "The documents' places and scores.",
        ),
    }


def text_task_schemas(reference: str) -> Json:
    """Give the schemas of the requests and answers; `reference` is how one names another."""
    schemas: Json = {"Embeddings": _EMBEDDINGS, "Ranking": _RANKING}
    for model in (CompletionRequest, EmbeddingRequest, RerankRequest):
        schema = model.model_json_schema(by_alias=True, ref_template=reference)
        schemas |= {**schema.pop("$defs", {}), model.__name__: schema}
    return schemas


def _post(operation: str, summary: str, request: str, content: Json, description: str) -> Json:
    error = {"schema": {"$ref": "#/components/schemas/OpenAIError"}}
    return {
        "post": {
            "operationId": operation,
            "tags": ["openai"],
            "summary": summary,
            "x-kala-scope": "chat",
            "requestBody": {
                "required": True,
                "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{request}"}}},
            },
            "responses": {
                "200": {"description": description, "content": content},
                "default": {"description": "What went wrong.", "content": {JSON: error}},
            },
        }
    }
