"""How `/v1/batches` stands in the OpenAPI document.  Pure."""

from __future__ import annotations

from typing import Any, Final

from gateway.batches.model import AT_WORK, CANCELLED, COMPLETED, EXPIRED, FAILED, STAMPS
from gateway.batches.schema import BatchRequest
from gateway.files.openapi import list_example, list_schema, paging
from gateway.openapi_parts import Json, content, operation, reference

_ID: Final = "batch_00112233445566778899aabbccddeeff"
_FILE: Final = "file-00112233445566778899aabbccddeeff"

_BATCH: Final[Json] = {
    "id": _ID,
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "errors": None,
    "input_file_id": _FILE,
    "completion_window": "24h",
    "status": "completed",
    "output_file_id": _FILE,
    "error_file_id": None,
    "created_at": 1767322500,
    "expires_at": 1767408900,
    **dict.fromkeys(STAMPS),
    "completed_at": 1767322600,
    "request_counts": {"total": 2, "completed": 2, "failed": 0},
    "usage": {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 30,
    },
    "metadata": {"job": "nightly"},
}

_TEXT: Final[Json] = {"type": ["string", "null"]}
_TIME: Final[Json] = {"type": ["integer", "null"], "description": "Seconds since 1970."}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


_ERRORS: Final = _object(
    object={"const": "list"},
    data={
        "type": "array",
        "items": _object(
            code={"type": "string"},
            message={"type": "string"},
            param=_TEXT,
            line={"type": ["integer", "null"]},
        ),
    },
)

SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "Batch": _object(
        id={"type": "string"},
        object={"const": "batch"},
        endpoint={"type": "string"},
        errors={"anyOf": [_ERRORS, {"type": "null"}]},
        input_file_id={"type": "string"},
        completion_window={"const": "24h"},
        status={"enum": sorted({*AT_WORK, COMPLETED, FAILED, EXPIRED, CANCELLED})},
        output_file_id=_TEXT,
        error_file_id=_TEXT,
        created_at={"type": "integer"},
        expires_at={"type": "integer"},
        **dict.fromkeys(STAMPS, _TIME),
        request_counts=_object(total=_COUNT, completed=_COUNT, failed=_COUNT),
        usage={"type": "object"},
        metadata={"type": ["object", "null"], "additionalProperties": {"type": "string"}},
    ),
}


def _request_schema() -> Json:
    schema = BatchRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    SCHEMAS.update(schema.pop("$defs", {}))
    return schema


SCHEMAS["BatchRequest"] = _request_schema()

_ONE: Final = "/v1/batches/{id}"
_CANCEL: Final = "/v1/batches/{id}/cancel"

PATHS: Final[dict[str, dict[str, Any]]] = {
    "/v1/batches": {
        "post": operation(
            "createBatch",
            "Carry out the requests of a file, each judged and logged as if it had come alone",
            path="/v1/batches",
            scope="chat",
            request=content(
                reference("BatchRequest"),
                {"input_file_id": _FILE, "endpoint": "/v1/chat/completions", "completion_window": "24h"},
            ),
            answer=content(reference("Batch"), _BATCH),
        ),
        "get": operation(
            "listBatches",
            "List batches, the newest first",
            path="/v1/batches",
            scope="chat",
            queries=paging(_ID),
            answer=content(list_schema("Batch"), list_example(_BATCH)),
        ),
    },
    _ONE: {
        "get": operation(
            "getBatch",
            "Describe a batch",
            path=_ONE,
            scope="chat",
            path_examples={"id": _ID},
            answer=content(reference("Batch"), _BATCH),
        )
    },
    _CANCEL: {
        "post": operation(
            "cancelBatch",
            "End a batch; what was done is kept",
            path=_CANCEL,
            scope="chat",
            path_examples={"id": _ID},
            answer=content(reference("Batch"), _BATCH),
        )
    },
}
