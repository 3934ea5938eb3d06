"""How `/v1/files` stands in the OpenAPI document.  Pure."""

from __future__ import annotations

from typing import Any, Final

from gateway.files.model import BATCH_OUTPUT, SCOPES, UPLOADED
from gateway.openapi_parts import Json, content, operation, query, reference

_ID: Final = "file-00112233445566778899aabbccddeeff"

_FILE: Final[Json] = {
    "id": _ID,
    "object": "file",
    "bytes": 129,
    "created_at": 1767322500,
    "expires_at": 1769914500,
    "filename": "requests.jsonl",
    "purpose": "batch",
    "status": "processed",
    "status_details": None,
    "kala": {"sha256": "00" * 32},
}

_TIME: Final[Json] = {"type": ["integer", "null"], "description": "Seconds since 1970."}

SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "File": {
        "type": "object",
        "required": list(_FILE),
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "file"},
            "bytes": {"type": "integer"},
            "created_at": {"type": "integer"},
            "expires_at": _TIME,
            "filename": {"type": "string"},
            "purpose": {"enum": sorted(SCOPES)},
            "status": {"const": "processed"},
            "status_details": {"type": "null"},
            "kala": {
                "type": "object",
                "required": ["sha256"],
                "properties": {"sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
            },
        },
    },
    "FileUpload": {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "safety_identifier": {
                "type": "string",
                "maxLength": 256,
                "description": "Whom the file is about: their key seals it. Comes before the file.",
            },
            "file": {"type": "string", "contentMediaType": "application/octet-stream"},
            "purpose": {"enum": list(UPLOADED)},
            "expires_after[anchor]": {"const": "created_at"},
            "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
        },
    },
    "FileDeleted": {
        "type": "object",
        "required": ["id", "object", "deleted"],
        "properties": {"id": {"type": "string"}, "object": {"const": "file"}, "deleted": {"const": True}},
    },
}


def list_schema(item: str) -> Json:
    """Describe a page of a list."""
    return {
        "type": "object",
        "required": ["object", "data", "first_id", "last_id", "has_more"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": reference(item)},
            "first_id": {"type": ["string", "null"]},
            "last_id": {"type": ["string", "null"]},
            "has_more": {"type": "boolean"},
        },
    }


def list_example(item: Json) -> Json:
    """Give a page with one item."""
    return {
        "object": "list",
        "data": [item],
        "first_id": item["id"],
        "last_id": item["id"],
        "has_more": False,
    }


def paging(example: str) -> tuple[Json, Json]:
    """Describe `after` and `limit`."""
    return (
        query("after", {"type": "string", "maxLength": 256}, "Continue behind this one.", example=example),
        query("limit", {"type": "integer", "minimum": 1, "maximum": 10000}, "At most 1000 come.", example=20),
    )


_ONE: Final = "/v1/files/{id}"
_SCOPE: Final = "chat"

PATHS: Final[dict[str, dict[str, Any]]] = {
    "/v1/files": {
        "post": operation(
            "createFile",
            "Upload a file for a batch or a fine-tuning job (scope train), sealed and bounded",
            path="/v1/files",
            scope=_SCOPE,
            request=content(
                reference("FileUpload"),
                {"purpose": "batch", "file": '{"custom_id":"1"}\n'},
                "multipart/form-data",
            ),
            answer=content(reference("File"), _FILE),
        ),
        "get": operation(
            "listFiles",
            "List the files of the key's tenant and scopes",
            path="/v1/files",
            scope=_SCOPE,
            queries=(
                *paging(_ID),
                query("order", {"enum": ["asc", "desc"]}, "By the time of creation.", example="desc"),
                query("purpose", {"type": "string"}, "Only those for this.", example=BATCH_OUTPUT),
            ),
            answer=content(list_schema("File"), list_example(_FILE)),
        ),
    },
    _ONE: {
        "get": operation(
            "getFile",
            "Describe a file",
            path=_ONE,
            scope=_SCOPE,
            path_examples={"id": _ID},
            answer=content(reference("File"), _FILE),
        ),
        "delete": operation(
            "deleteFile",
            "Delete a file that nothing works on",
            path=_ONE,
            scope=_SCOPE,
            path_examples={"id": _ID},
            answer=content(reference("FileDeleted"), {"id": _ID, "object": "file", "deleted": True}),
        ),
    },
    "/v1/files/{id}/content": {
        "get": operation(
            "getFileContent",
            "Give a file's bytes",
            path="/v1/files/{id}/content",
            scope=_SCOPE,
            path_examples={"id": _ID},
            answer=content({"type": "string"}, '{"custom_id":"1"}\n', "application/octet-stream"),
        )
    },
}
