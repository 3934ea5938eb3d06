"""`GET /openapi.json`: OpenAPI 3.1 of the whole API, from the contracts' descriptors and comments, and from the features."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import orjson

from gateway.bridge_routes import Binding
from gateway.edge import REQUEST_ID, Exchange
from gateway.errors import google_body, openai_body
from gateway.openapi_bridge import PARAMETERS, BridgePaths
from gateway.openapi_openai import openai_paths
from gateway.openapi_parts import JSON, REQUEST_ID_HEADER, content, reference
from gateway.openapi_schemas import openai_schemas
from gateway.schemas import Schemas
from kala.errors import UnavailableError

if TYPE_CHECKING:
    from gateway.feature import Feature

Json = dict[str, Any]  # Any: JSON

COMMENTS_FILE: Final = "contract_comments.json"

_REFERENCE: Final = "#/components/schemas/{model}"

_UNAVAILABLE: Final = UnavailableError("ethics does not answer; try again", reason="ETHICS_UNAVAILABLE")

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

_ERRORS: Final[Mapping[str, tuple[Json, Json]]] = {
    "OpenAIError": (_OPENAI_ERROR, openai_body(_UNAVAILABLE)),
    "Error": (_GOOGLE_ERROR, google_body(_UNAVAILABLE)),
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
        comments = load_comments()
        schemas = Schemas(comments)
        paths = openai_paths()
        own = dict(openai_schemas(_REFERENCE))
        for feature in self._features:
            paths.update(feature.paths)
            own.update(feature.schemas)
        for path, item in BridgePaths(schemas, comments).paths(self._bindings).items():
            paths.setdefault(path, {}).update(item)
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
                "headers": {
                    REQUEST_ID: {
                        "description": "Names this request in the process's log and in the records of the audit log.",
                        "required": True,
                        "schema": {"type": "string"},
                        "example": "req_0f3a5c7e9b1d2f4a6c8e0b2d4f6a8c0e",
                    }
                },
                "parameters": PARAMETERS,
                "responses": {name: _error_response(name, example) for name, (_, example) in _ERRORS.items()},
                "schemas": {
                    **own,
                    **{name: schema for name, (schema, _) in _ERRORS.items()},
                    **schemas.collected,
                },
            },
        }


def _error_response(name: str, example: Json) -> Json:
    return {
        "description": "What went wrong.",
        "headers": REQUEST_ID_HEADER,
        "content": content(reference(name), example),
    }
