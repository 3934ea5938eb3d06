"""Schemas of what OpenAI's endpoints take and answer, for `/openapi.json`.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.chat_schema import ChatRequest
from gateway.moderation_categories import LAWS, OPENAI_CATEGORIES, OPENAI_OF
from gateway.moderation_schema import ModerationRequest
from gateway.openapi_parts import reference
from gateway.text_tasks_schema import CompletionRequest, EmbeddingRequest, RerankRequest

Json = dict[str, Any]  # Any: JSON

_FINISH: Final = ["stop", "length", "tool_calls", "content_filter"]


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

CATEGORY_NAMES: Final = [
    *OPENAI_CATEGORIES,
    *(f"law_{law}" for law in LAWS),
    *(f"kala/{name}" for name in OPENAI_OF),
]


def _per_category(value: Json) -> Json:
    return {
        "type": "object",
        "required": CATEGORY_NAMES,
        "properties": dict.fromkeys(CATEGORY_NAMES, value),
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
