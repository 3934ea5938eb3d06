"""Examples of the contracts' messages for `/openapi.json`, from their descriptors and comments.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.descriptor import FieldDescriptor

from gateway.bridge_routes import SECRET_TYPES

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

Json = dict[str, Any]  # Any: JSON

MAX_DEPTH: Final = 3
"""Deeper messages are left out: an example is read by a person."""

HEX32: Final = "0f3a5c7e9b1d2f4a6c8e0b2d4f6a8c0e"

IDS: Final[Mapping[str, str]] = {
    "adapters": "careful@1",
    "approvals": f"tools-0.{HEX32}",
    "artifacts": "1",
    "backends": "lmstudio",
    "datasets": "questions@1",
    "entries": "5",
    "evaluations": HEX32,
    "holds": HEX32,
    "keys": "k7Qm2xVb",
    "operations": HEX32,
    "payloads": "request",
    "receipts": f"rcpt_{HEX32}",
    "runs": f"tools-0.{HEX32}",
    "sessions": HEX32,
    "settings": "inference.chain",
    "subjects": HEX32 * 2,
    "trainingJobs": HEX32,
    "workspaces": f"tools-0.{HEX32}",
}
"""What stands behind each collection in a resource's name."""

_WELL_KNOWN: Final[Mapping[str, object]] = {
    "google.protobuf.Timestamp": "2026-11-22T09:30:00Z",
    "google.protobuf.Duration": "30s",
    "google.protobuf.FieldMask": "displayName",
    "google.protobuf.Struct": {"note": "anything"},
    "google.protobuf.Any": {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}},
    "google.protobuf.Empty": {},
}

_TEXTS: Final[Mapping[str, str]] = {
    "adapter": "adapters/careful@1",
    "answer": "Berlin",
    "code": "print(1 + 1)\n",
    "context": "A quiz on capitals.",
    "description": "Adds two numbers",
    "display_name": "a laptop",
    "email": "person@example.org",
    "language": "python",
    "message": "What is the capital of France?",
    "model": "auto",
    "next_page_token": "",
    "page_token": "",
    "path": "notes/today.txt",
    "prompt": "The capital of France is",
    "query": "What is the capital of France?",
    "reason": "asked for by the person",
    "request_id": HEX32,
    "tenant": "default",
    "text": "What is the capital of France?",
    "url": "http://127.0.0.1:1234",
}

_NUMBERS: Final[Mapping[str, int]] = {"page_size": 100, "law": 1}

_SCALARS: Final[Mapping[int, object]] = {
    FieldDescriptor.CPPTYPE_BOOL: False,
    FieldDescriptor.CPPTYPE_DOUBLE: 0.5,
    FieldDescriptor.CPPTYPE_FLOAT: 0.5,
    FieldDescriptor.CPPTYPE_INT32: 1,
    FieldDescriptor.CPPTYPE_UINT32: 1,
    FieldDescriptor.CPPTYPE_INT64: "1",
    FieldDescriptor.CPPTYPE_UINT64: "1",
}

_NAME_IN_COMMENT: Final = re.compile(r'"([a-zA-Z]+/<[^"]*)"')
_PLACEHOLDER: Final = re.compile(r"([a-zA-Z]+)/<[^/]*>")


class Examples:
    """Writes one example per message."""

    def __init__(self, comments: Mapping[str, str]) -> None:
        self._comments = comments

    def of(self, message: Descriptor, depth: int = 0) -> Any:  # Any: JSON
        """Give an example of a message; of a oneof it has the first."""
        if message.full_name in _WELL_KNOWN:
            return _WELL_KNOWN[message.full_name]
        example: Json = {}
        for field in message.fields:
            oneof = field.containing_oneof
            if oneof is not None and oneof.fields[0] is not field:
                continue
            if field.message_type is not None and (
                field.message_type.full_name in SECRET_TYPES
                or (depth + 1 >= MAX_DEPTH and field.message_type.full_name not in _WELL_KNOWN)
            ):
                continue
            example[field.name] = self.field(field, depth + 1)
        return example

    def field(self, field: FieldDescriptor, depth: int = MAX_DEPTH) -> Any:  # Any: JSON
        """Give an example of a field's value."""
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return {"key": self._one(field.message_type.fields_by_name["value"], depth)}
        one = self._one(field, depth)
        return [one] if field.is_repeated else one

    def _one(self, field: FieldDescriptor, depth: int) -> Any:  # Any: JSON
        if field.message_type is not None:
            return self.of(field.message_type, depth)
        if field.enum_type is not None:
            values = field.enum_type.values
            return values[min(1, len(values) - 1)].name
        if field.type == FieldDescriptor.TYPE_BYTES:
            return "AAECAw=="
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._text(field)
        return _NUMBERS.get(field.name, _SCALARS[field.cpp_type])

    def _text(self, field: FieldDescriptor) -> str:
        named = _NAME_IN_COMMENT.search(self._comments.get(field.full_name, ""))
        if named is not None:
            filled = _PLACEHOLDER.sub(lambda each: f"{each[1]}/{IDS.get(each[1], HEX32)}", named[1])
            return filled.partition("@<")[0]
        return _TEXTS.get(field.name, field.name.replace("_", " "))
