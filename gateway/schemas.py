"""JSON Schemas of the contracts' messages, as protobuf's JSON mapping spells them.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.descriptor import FieldDescriptor

from gateway.bridge_routes import SECRET_TYPES

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, EnumDescriptor
    from google.protobuf.message import Message

Json = dict[str, Any]  # Any: JSON

# What JSON has no number for travels as a word.
_FLOAT: Final[Json] = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}

_SCALARS: Final[dict[int, Json]] = {
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_DOUBLE: _FLOAT,
    FieldDescriptor.CPPTYPE_FLOAT: _FLOAT,
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "minimum": 0},
    # 64-bit integers are strings in protobuf's JSON: JavaScript would round them.
    FieldDescriptor.CPPTYPE_INT64: {"type": "string", "pattern": "^-?[0-9]+$"},
    FieldDescriptor.CPPTYPE_UINT64: {"type": "string", "pattern": "^[0-9]+$"},
}

_WELL_KNOWN: Final[dict[str, Json]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$"},
    "google.protobuf.FieldMask": {"type": "string"},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Any": {
        "type": "object",
        "required": ["@type"],
        "properties": {"@type": {"type": "string"}},
    },
    "google.protobuf.Empty": {"type": "object"},
}


def descriptor_of(message_class: type[Message]) -> Descriptor:
    """Give a message class's descriptor; the stubs know two kinds of them, at run time there is one."""
    return message_class.DESCRIPTOR  # type: ignore[return-value]


def _is_secret(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name in SECRET_TYPES


class Schemas:
    """Writes schemas and collects those that references name."""

    def __init__(self, comments: Mapping[str, str]) -> None:
        self._comments = comments
        self.collected: Json = {}

    def comment(self, full_name: str) -> str:
        """Give the contract's comment on something."""
        return self._comments.get(full_name, "")

    def of_class(self, message_class: type[Message]) -> Json:
        """Give a schema for a message's class."""
        return self.reference(descriptor_of(message_class))

    def reference(self, message: Descriptor) -> Json:
        """Give a schema for a message; its own is collected once."""
        known = _WELL_KNOWN.get(message.full_name)
        if known is not None:
            return known
        if message.full_name not in self.collected:
            self.collected[message.full_name] = {}  # first, for messages that hold themselves
            self.collected[message.full_name] = {
                "type": "object",
                "description": self.comment(message.full_name),
                "properties": {
                    field.name: self._described(field) for field in message.fields if not _is_secret(field)
                },
                "additionalProperties": False,
            }
        return {"$ref": f"#/components/schemas/{message.full_name}"}

    def field(self, field: FieldDescriptor) -> Json:
        """Give a schema for a field's value."""
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            values = field.message_type.fields_by_name["value"]
            return {"type": "object", "additionalProperties": self._one(values)}
        one = self._one(field)
        return {"type": "array", "items": one} if field.is_repeated else one

    def query_fields(self, message: Descriptor, prefix: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
        """List what can be given in a query: scalars at any depth, by their dotted path."""
        for field in message.fields:
            path = prefix + field.name
            if field.message_type is None or field.message_type.full_name in _WELL_KNOWN:
                yield path, field
            elif not field.is_repeated:
                yield from self.query_fields(field.message_type, path + ".")

    def _described(self, field: FieldDescriptor) -> Json:
        return {**self.field(field), "description": self.comment(field.full_name)}

    def _one(self, field: FieldDescriptor) -> Json:
        if field.message_type is not None:
            return self.reference(field.message_type)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64"}
        return dict(_SCALARS.get(field.cpp_type, {"type": "string"}))

    def _enum(self, enum: EnumDescriptor) -> Json:
        if enum.full_name not in self.collected:
            self.collected[enum.full_name] = {
                "type": "string",
                "description": self.comment(enum.full_name),
                "enum": [value.name for value in enum.values],
            }
        return {"$ref": f"#/components/schemas/{enum.full_name}"}
