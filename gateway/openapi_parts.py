"""How features describe their endpoints for `/openapi.json`: one operation with its schemas and examples.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

Json = dict[str, Any]  # Any: JSON

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"

REQUEST_ID_HEADER: Final[Json] = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}

_IN_PATH: Final = re.compile(r"\{([a-z_]+)\}")


def reference(name: str) -> Json:
    """Refer to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def content(schema: Json, example: object, media_type: str = JSON) -> Json:
    """Describe a body: its schema and one example, which has to satisfy it."""
    return {media_type: {"schema": schema, "example": example}}


def stream(item: Json, example: str, media_type: str = EVENTS) -> Json:
    """Describe a stream by one item of it, which its lines or the data of its events hold as JSON.

    OpenAPI 3.1 has no words for a sequence, so the schema of the body says nothing and names that of an item.
    """
    said = "Server-sent events" if media_type == EVENTS else "Lines"
    return content({"description": f"{said} of JSON.", "x-kala-items": item}, example, media_type)


def error_responses(error: str, *further: str) -> Json:
    """Refer to what a call may end with beside its answer, 503 among it; `error` is `OpenAIError` or `Error`."""
    return {status: {"$ref": f"#/components/responses/{error}"} for status in ("503", *further, "default")}


def query(name: str, schema: Json, description: str, *, example: object) -> Json:
    """Describe one field of a query."""
    return {"name": name, "in": "query", "description": description, "schema": schema, "example": example}


def operation(
    operation_id: str,
    summary: str,
    *,
    path: str,
    scope: str | None,
    answer: Json,
    request: Json | None = None,
    queries: tuple[Json, ...] = (),
    path_examples: Mapping[str, str] | None = None,
    answered: str = "The answer.",
    tag: str = "openai",
    error: str = "OpenAIError",
) -> Json:
    """Describe one verb of a path; `answer` and `request` come from `content`. Without a scope no key is asked for."""
    examples = path_examples or {}
    described: Json = {
        "operationId": operation_id,
        "tags": [tag],
        "summary": summary,
        "parameters": [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string"},
                "example": examples.get(name, name),
            }
            for name in _IN_PATH.findall(path)
        ]
        + list(queries),
        "responses": {
            "200": {"description": answered, "headers": REQUEST_ID_HEADER, "content": answer},
            **error_responses(error),
        },
    }
    if scope is None:
        described["security"] = []
    else:
        described["x-kala-scope"] = scope
    if request is not None:
        described["requestBody"] = {"required": True, "content": request}
    return described
