"""How `/v1/responses` stands in the OpenAPI document.  Pure."""

from __future__ import annotations

from typing import Any, Final

from gateway.openapi_parts import Json, content, operation, query, reference, stream
from gateway.responses.schema import ResponseRequest

_ID: Final = "resp_00112233445566778899aabbccddeeff"
_TEXT: Final = {"type": ["string", "null"]}
_NUMBER: Final = {"type": ["number", "null"]}

_MESSAGE: Final[Json] = {
    "id": "msg_00112233445566778899aabbccddeeff0002",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Paris.", "annotations": [], "logprobs": []}],
}

_INPUT: Final[Json] = {
    "id": "msg_00112233445566778899aabbccddeeff0001",
    "type": "message",
    "role": "user",
    "status": "completed",
    "content": [{"type": "input_text", "text": "What is the capital of France?"}],
}

_RESPONSE: Final[Json] = {
    "id": _ID,
    "object": "response",
    "created_at": 1767322500,
    "completed_at": 1767322501,
    "status": "completed",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "model": "tiny-qwen",
    "output": [_MESSAGE],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "usage": {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 9,
    },
    "user": None,
}

_ITEM: Final[Json] = {
    "type": "object",
    "required": ["id", "type"],
    "properties": {
        "id": {"type": "string"},
        "type": {
            "enum": [
                "message",
                "reasoning",
                "function_call",
                "function_call_output",
                "mcp_call",
                "mcp_approval_request",
                "mcp_approval_response",
            ]
        },
    },
}


def _schemas() -> dict[str, dict[str, Any]]:
    request = ResponseRequest.model_json_schema(ref_template="#/components/schemas/Response{model}")
    parts = {f"Response{name}": schema for name, schema in request.pop("$defs", {}).items()}
    return {
        **parts,
        "ResponseRequest": request,
        "ResponseItem": _ITEM,
        "Response": _response_schema(),
        "ResponseItemList": {
            "type": "object",
            "required": ["object", "data", "first_id", "last_id", "has_more"],
            "properties": {
                "object": {"const": "list"},
                "data": {"type": "array", "items": reference("ResponseItem")},
                "first_id": _TEXT,
                "last_id": _TEXT,
                "has_more": {"type": "boolean"},
            },
        },
        "ResponseDeleted": {
            "type": "object",
            "required": ["id", "object", "deleted"],
            "properties": {
                "id": {"type": "string"},
                "object": {"const": "response"},
                "deleted": {"const": True},
            },
        },
    }


def _response_schema() -> Json:
    kinds: Json = {
        "id": {"type": "string"},
        "object": {"const": "response"},
        "created_at": {"type": "integer"},
        "completed_at": {"type": "integer"},
        "status": {"enum": ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]},
        "background": {"type": "boolean"},
        "error": {"type": ["object", "null"]},
        "incomplete_details": {"type": ["object", "null"]},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        "model": {"type": "string"},
        "output": {"type": "array", "items": reference("ResponseItem")},
        "parallel_tool_calls": {"type": "boolean"},
        "reasoning": {"type": "object"},
        "service_tier": {"type": "string"},
        "store": {"type": "boolean"},
        "temperature": _NUMBER,
        "text": {"type": "object"},
        "tool_choice": {"type": ["string", "object"]},
        "tools": {"type": "array", "items": {"type": "object"}},
        "top_logprobs": {"type": "integer"},
        "top_p": _NUMBER,
        "truncation": {"enum": ["auto", "disabled"]},
        "usage": {"type": ["object", "null"]},
        "kala": {"type": "object", "description": "Decision, receipt and attempts, as in chat completions."},
    }
    for name in ("max_output_tokens", "max_tool_calls"):
        kinds[name] = {"type": ["integer", "null"]}
    required = [name for name in _RESPONSE if name != "completed_at"]
    return {
        "type": "object",
        "required": required,
        "properties": {**dict.fromkeys(required, _TEXT), **kinds},
    }


SCHEMAS: Final[dict[str, dict[str, Any]]] = _schemas()

_BOOLEAN: Final[Json] = {"type": "boolean"}
_ONE: Final = "/v1/responses/{id}"
_CANCEL: Final = f"{_ONE}/cancel"
_ITEMS: Final = f"{_ONE}/input_items"
_STREAMED: Final = stream(
    {"type": "object", "description": "One of OpenAI's events, with its `sequence_number`."},
    'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Paris."}\n\n',
)
_EXAMPLES: Final = {"id": _ID}

PATHS: Final[dict[str, dict[str, Any]]] = {
    "/v1/responses": {
        "post": operation(
            "createResponse",
            "One guarded, audited response, whole, as a stream of events or in the background",
            path="/v1/responses",
            scope="chat",
            request=content(
                reference("ResponseRequest"), {"model": "auto", "input": "What is the capital of France?"}
            ),
            answer=content(reference("Response"), _RESPONSE) | _STREAMED,
        )
    },
    _ONE: {
        "get": operation(
            "getResponse",
            "A stored response, as it is or as the stream that it could have been",
            path=_ONE,
            scope="chat",
            path_examples=_EXAMPLES,
            queries=(
                query("stream", _BOOLEAN, "Tell it as events.", example=False),
                query(
                    "starting_after",
                    {"type": "integer", "minimum": 0, "maximum": 999_999_999},
                    "Leave out the events up to this number; only with `stream=true`.",
                    example=3,
                ),
            ),
            answer=content(reference("Response"), _RESPONSE) | _STREAMED,
        ),
        "delete": operation(
            "deleteResponse",
            "Delete a stored response; work on it ends",
            path=_ONE,
            scope="chat",
            path_examples=_EXAMPLES,
            answer=content(reference("ResponseDeleted"), {"id": _ID, "object": "response", "deleted": True}),
        ),
    },
    _CANCEL: {
        "post": operation(
            "cancelResponse",
            "End a response in the background; one that has ended stays as it ended",
            path=_CANCEL,
            scope="chat",
            path_examples=_EXAMPLES,
            answer=content(reference("Response"), {**_RESPONSE, "status": "cancelled", "background": True}),
        )
    },
    _ITEMS: {
        "get": operation(
            "listResponseInput",
            "The items of a response's own input, the newest first",
            path=_ITEMS,
            scope="chat",
            path_examples=_EXAMPLES,
            queries=(
                query(
                    "limit",
                    {"type": "integer", "minimum": 1, "maximum": 10_000},
                    "At most 100 come.",
                    example=20,
                ),
                query("order", {"enum": ["asc", "desc"]}, "By their place.", example="asc"),
                query(
                    "after", {"type": "string"}, "The id of the item to go on behind.", example=_INPUT["id"]
                ),
            ),
            answer=content(
                reference("ResponseItemList"),
                {
                    "object": "list",
                    "data": [_INPUT],
                    "first_id": _INPUT["id"],
                    "last_id": _INPUT["id"],
                    "has_more": False,
                },
            ),
        )
    },
}
