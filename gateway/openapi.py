"""`GET /openapi.json`: OpenAPI 3.1 of the whole API, from the contracts' descriptors and comments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import orjson

from gateway.bridge_routes import Binding
from gateway.chat_schema import ChatRequest
from gateway.edge import JSON, Exchange
from gateway.framing import EVENT_STREAM, NDJSON
from gateway.moderation_categories import LAWS, OPENAI_CATEGORIES, OPENAI_OF
from gateway.moderation_schema import ModerationRequest
from gateway.openapi_text_tasks import text_task_paths, text_task_schemas
from gateway.schemas import Schemas, descriptor_of
from gateway.transcoding import ALL_FIELDS
from kala.common.v1 import options_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor

    from gateway.features import Feature

Json = dict[str, Any]  # Any: JSON

COMMENTS_FILE: Final = "contract_comments.json"

_REFERENCE: Final = "#/components/schemas/{model}"

_VARIABLE: Final = re.compile(r"\{([a-z_.]+)(?:=([^}]+))?\}")

_OPENAI_ERROR: Final[Json] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

_GOOGLE_ERROR: Final[Json] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "status", "details"],
            "properties": {
                "code": {"type": "integer"},
                "message": {"type": "string"},
                "status": {"type": "string"},
                "details": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}


def load_comments() -> dict[str, str]:
    """Read the contracts' comments by full name; generated code carries none."""
    text = (files("gateway") / COMMENTS_FILE).read_text(encoding="utf-8")
    comments: dict[str, str] = json.loads(text)
    return comments


class OpenApi:
    """Describes the API; the document is built on the first request, for a gateway that nobody asks pays nothing."""

    def __init__(
        self, bindings: Iterable[Binding], *, version: str, features: Iterable[Feature] = ()
    ) -> None:
        self._bindings = tuple(bindings)
        self._version = version
        self._features = tuple(features)

    async def serve(self, exchange: Exchange) -> None:
        """Answer with the document; it holds no secret, so no key is asked for."""
        await exchange.send_bytes(200, self._text, JSON)

    @cached_property
    def _text(self) -> bytes:
        return orjson.dumps(self.document)

    @cached_property
    def document(self) -> Json:
        """The document."""
        schemas = Schemas(load_comments())
        paths: Json = _openai_paths()
        for feature in self._features:
            paths.update(feature.paths)
        for binding in self._bindings:
            path, parameters = open_path(binding)
            paths.setdefault(path, {})[binding.verb.lower()] = _operation(binding, parameters, schemas)
        chat = ChatRequest.model_json_schema(by_alias=True, ref_template=_REFERENCE)
        moderation = ModerationRequest.model_json_schema(by_alias=True, ref_template=_REFERENCE)
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "KALA",
                "version": self._version,
                "description": "An OpenAI-compatible API that is judged and audited, and a REST bridge of every RPC.",
            },
            "security": [{"key": []}],
            "paths": paths,
            "components": {
                "securitySchemes": {
                    "key": {"type": "http", "scheme": "bearer", "description": "An API key, kala_…"}
                },
                "responses": {name: _error_response(name) for name in ("OpenAIError", "Error")},
                "schemas": {
                    **chat.pop("$defs"),
                    "ChatRequest": chat,
                    **moderation.pop("$defs"),
                    "ModerationRequest": moderation,
                    **text_task_schemas(_REFERENCE),
                    "Moderation": _moderation(),
                    "OpenAIError": _OPENAI_ERROR,
                    "Error": _GOOGLE_ERROR,
                    **{
                        name: schema for feature in self._features for name, schema in feature.schemas.items()
                    },
                    **schemas.collected,
                },
            },
        }


def open_path(binding: Binding) -> tuple[str, list[str]]:
    """Write a template as OpenAPI can: `{name=entries/*}` becomes `entries/{entries_id}`."""
    parameters: list[str] = []

    def expand(match: re.Match[str]) -> str:
        segments = (match[2] or "*").split("/")
        written = []
        for position, segment in enumerate(segments):
            if not segment.startswith("*"):
                written.append(segment)
                continue
            name = f"{segments[position - 1]}_id" if position else match[1]
            parameters.append(name)
            written.append("{" + name + "}")
        return "/".join(written)

    return _VARIABLE.sub(expand, binding.template), parameters


def _operation(binding: Binding, path_parameters: list[str], schemas: Schemas) -> Json:
    name = binding.rpc.removeprefix("/").replace("/", ".")
    operation: Json = {
        "operationId": name,
        "tags": [binding.part],
        "summary": schemas.comment(name).partition(". ")[0],
        "description": schemas.comment(name),
        "x-kala-scope": options_pb2.Scope.Name(binding.scope).removeprefix("SCOPE_").lower(),  # type: ignore[arg-type]
        "x-kala-guarded": binding.action_class is not None,
        "parameters": [
            {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}
            for parameter in path_parameters
        ],
        "responses": {
            "200": {"description": "The answer.", "content": _content(binding, schemas)},
            "default": _error_response("Error"),
        },
    }
    if binding.has_body:
        operation["requestBody"] = {"content": {JSON: {"schema": _body(binding, schemas)}}}
    if binding.body != ALL_FIELDS:
        in_path = {match[1] for match in _VARIABLE.finditer(binding.template)}
        operation["parameters"] += [
            _query_parameter(path, field, schemas)
            for path, field in schemas.query_fields(descriptor_of(binding.input_class))
            if path not in in_path and path.partition(".")[0] != binding.body
        ]
    return operation


def _body(binding: Binding, schemas: Schemas) -> Json:
    if binding.body == ALL_FIELDS:
        return schemas.of_class(binding.input_class)
    return schemas.field(descriptor_of(binding.input_class).fields_by_name[binding.body])


def _content(binding: Binding, schemas: Schemas) -> Json:
    schema = {"schema": schemas.of_class(binding.response_class)}
    return {NDJSON: schema, EVENT_STREAM: schema} if binding.is_streaming else {JSON: schema}


def _query_parameter(path: str, field: FieldDescriptor, schemas: Schemas) -> Json:
    return {
        "name": path,
        "in": "query",
        "description": schemas.comment(field.full_name),
        "schema": schemas.field(field),
    }


def _error_response(schema: str) -> Json:
    return {
        "description": "What went wrong.",
        "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


def _openai_paths() -> Json:
    return {
        "/v1/chat/completions": {
            "post": {
                "operationId": "createChatCompletion",
                "tags": ["openai"],
                "summary": "Answer a conversation, judged before and after, with a receipt",
                "x-kala-scope": "chat",
                "requestBody": {
                    "required": True,
                    "content": {JSON: {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
                },
                "responses": {
                    "200": {
                        "description": "OpenAI's chat.completion, or its chunks, with a `kala` object.",
                        "content": {
                            JSON: {"schema": {"type": "object"}},
                            EVENT_STREAM: {"schema": {"type": "string"}},
                        },
                    },
                    "default": _error_response("OpenAIError"),
                },
            }
        },
        **text_task_paths(),
        "/v1/moderations": {
            "post": {
                "operationId": "createModeration",
                "tags": ["openai"],
                "summary": "Judge texts by the Five Laws, with a receipt; nothing is generated",
                "x-kala-scope": "chat",
                "requestBody": {
                    "required": True,
                    "content": {JSON: {"schema": {"$ref": "#/components/schemas/ModerationRequest"}}},
                },
                "responses": {
                    "200": {
                        "description": "One result per text, in their order; one for all parts of an input in parts.",
                        "content": {JSON: {"schema": {"$ref": "#/components/schemas/Moderation"}}},
                    },
                    "default": _error_response("OpenAIError"),
                },
            }
        },
        "/api/test-lmstudio": {"post": _simple("testLmStudio", "Test LM Studio step by step", "admin")},
        "/v1/models": {"get": _simple("listModels", "List what can be asked for", "chat")},
        "/v1/models/{id}": {
            "get": {
                **_simple("getModel", "Describe one model", "chat"),
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
            }
        },
        "/healthz": {"get": {**_simple("live", "Tell whether the process lives", None), "security": []}},
        "/readyz": {
            "get": {**_simple("ready", "Tell whether requests would be answered", None), "security": []}
        },
    }


def _moderation() -> Json:
    names = [*OPENAI_CATEGORIES, *(f"law_{law}" for law in LAWS), *(f"kala/{name}" for name in OPENAI_OF)]

    def per_category(value: Json) -> Json:
        return {
            "type": "object",
            "required": names,
            "properties": dict.fromkeys(names, value),
            "additionalProperties": value,
        }

    result: Json = {
        "type": "object",
        "required": ["flagged", "categories", "category_scores", "category_applied_input_types", "kala"],
        "properties": {
            "flagged": {"type": "boolean", "description": "Whether ethics came to anything but ALLOW."},
            "categories": per_category({"type": "boolean"}),
            "category_scores": per_category({"type": "number", "minimum": 0, "maximum": 1}),
            "category_applied_input_types": per_category(
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
    }
    return {
        "type": "object",
        "required": ["id", "model", "results", "kala"],
        "properties": {
            "id": {"type": "string"},
            "model": {"type": "string", "description": "The constitution that judged."},
            "results": {"type": "array", "items": result},
            "kala": {"type": "object", "required": ["receipt", "overhead_ms"]},
        },
    }


def _simple(operation: str, summary: str, scope: str | None) -> Json:
    described: Json = {
        "operationId": operation,
        "tags": ["openai" if scope else "health"],
        "summary": summary,
        "responses": {
            "200": {"description": "The answer.", "content": {JSON: {"schema": {"type": "object"}}}},
            "default": _error_response("OpenAIError"),
        },
    }
    if scope:
        described["x-kala-scope"] = scope
    return described
