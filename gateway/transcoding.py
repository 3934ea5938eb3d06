"""JSON and query strings to messages and back, by the descriptors.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from gateway.bridge_routes import SECRET_TYPES
from gateway.schemas import descriptor_of
from gateway.strict_json import MAX_DEPTH, read_object
from kala.errors import InvalidArgumentError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

MAX_QUERY_FIELDS: Final = 256
_BOOLEANS: Final = {"true": True, "false": False}
# Messages that JSON spells as one string.
_TEXT_MESSAGES: Final = frozenset(
    {"google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask"}
)

SHA256_BYTES: Final = 32

_MASK: Final = "update_mask"

_TEXT_TYPES: Final = frozenset({FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES})

Json = dict[str, Any]  # Any: JSON


ALL_FIELDS: Final = "*"


def read_message(
    message_class: type[Message], *, body: bytes, query: str, variables: Mapping[str, str], taken: str
) -> Message:
    """Build a message from a request's body, query and path; raises InvalidArgumentError that names the field.

    `taken` is the field that the body fills, `*` for all and nothing for no body (google.api.http). Where it is one
    field and the message has an `update_mask` that the query leaves out, the body's own fields are the mask (AIP-134).
    """
    message = message_class()
    if taken and query and taken == ALL_FIELDS:
        raise InvalidArgumentError("query", "is not read here; send the fields in the body")
    if body and not taken:
        raise InvalidArgumentError("body", "is not read here; send the fields in the query")
    given = read_object(body) if body else {}
    values = given if taken == ALL_FIELDS else read_query(message_class, query)
    if taken not in {"", ALL_FIELDS}:
        if taken in values:
            raise InvalidArgumentError("query", f"{taken} is the body; send it there alone")
        values[taken] = given
        if _MASK in descriptor_of(message_class).fields_by_name and _MASK not in values:
            values[_MASK] = ",".join(_camel(name) for name in given)
    if isinstance(values.get(_MASK), str):
        values[_MASK] = ",".join(map(_camel, values[_MASK].split(",")))
    for path, value in variables.items():
        _set(values, path, value)
    try:
        ParseDict(values, message, max_recursion_depth=MAX_DEPTH)
    except (ParseError, ValueError, TypeError, RecursionError) as error:
        raise InvalidArgumentError("body" if taken else "query", _in_words(error)) from error
    _refuse_clearances(message, "")
    return message


def _camel(path: str) -> str:
    """Write a path of a field mask as protobuf's JSON demands it; the contracts' own names are taken too."""
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), path.strip())


def read_query(message_class: type[Message], query: str) -> Json:
    """Read `filter.tenant=a&page_size=5` into JSON; a repeated field may come several times, any other once."""
    values: Json = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS, errors="strict")
    except ValueError as error:
        raise InvalidArgumentError("query", "is malformed, has too many fields, or is not UTF-8") from error
    for path, text in pairs:
        field = _find(message_class, path)
        value: Any = text  # Any: JSON
        if field.type == FieldDescriptor.TYPE_BOOL:
            if text not in _BOOLEANS:
                raise InvalidArgumentError(path, "must be true or false")
            value = _BOOLEANS[text]
        if field.is_repeated:
            _set(values, path, [*_get(values, path), value])
        else:
            _set(values, path, value)
    return values


def write_message(message: Message) -> Json:
    """Write a message as JSON with the contract's field names; fields with their default value are written too."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def texts_of(messages: list[Message]) -> dict[str, str]:
    """Collect every text by its field's path; pieces of one field, over all messages, are joined as a reader joins them.

    Bytes may spell words too, so they are read as text as far as they are some.
    """
    texts: dict[str, list[str]] = {}
    for message in messages:
        for path, text in _texts(message, ""):
            texts.setdefault(path, []).append(text)
    return {path: "".join(parts) for path, parts in texts.items()}


def _refuse_clearances(message: Message, prefix: str) -> None:
    """Refuse a clearance from outside: an action may hold one for a further act, which the gateway has to ask for."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        path = f"{prefix}.{field.name}" if prefix else field.name
        if field.message_type.full_name in SECRET_TYPES:
            raise InvalidArgumentError(path, "is not taken from outside; leave it out")
        for item in value if field.is_repeated else (value,):
            _refuse_clearances(item, path)


def _texts(message: Message, prefix: str) -> Iterator[tuple[str, str]]:
    for field, value in message.ListFields():
        if field.message_type is None and field.type not in _TEXT_TYPES:
            # A call's vectors are a million numbers.
            continue
        path = f"{prefix}.{field.name}" if prefix else field.name
        for item in value if field.is_repeated else (value,):
            if field.type == FieldDescriptor.TYPE_STRING:
                yield path, item
            elif field.type == FieldDescriptor.TYPE_BYTES and not _is_digest(field, item):
                yield path, item.decode("utf-8", "replace")
            elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
                yield from _texts(item, path)


def _is_digest(field: FieldDescriptor, value: bytes) -> bool:
    """Tell a digest that a service computed: 32 bytes that spell nothing."""
    return len(value) == SHA256_BYTES and field.name.endswith(("sha256", "_digest"))


def _find(message_class: type[Message], path: str) -> FieldDescriptor:
    current: Descriptor | None = message_class.DESCRIPTOR  # type: ignore[assignment]  # the stubs know two kinds
    field: FieldDescriptor | None = None
    for name in path.split("."):
        if current is None or current.full_name in _TEXT_MESSAGES:
            field = None
            break
        field = current.fields_by_name.get(name) or current.fields_by_camelcase_name.get(name)
        current = None if field is None else field.message_type
    if field is None or (
        field.message_type is not None and field.message_type.full_name not in _TEXT_MESSAGES
    ):
        raise InvalidArgumentError("query", f"{path[:128]!r} is not a field that can be set here")
    return field


def _get(values: Json, path: str) -> list[Any]:  # Any: JSON
    for name in path.split("."):
        values = values.get(name, {})
    return values or []  # type: ignore[return-value]  # the last step gives the list


def _set(values: Json, path: str, value: Any) -> None:  # Any: JSON
    *parents, last = path.split(".")
    for name in parents:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise InvalidArgumentError(path, "is set twice in different ways")
    present = values.get(last)
    if present is not None and not isinstance(value, list) and present != value:
        raise InvalidArgumentError(path, "is set twice with different values")
    values[last] = value


def _in_words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"nests deeper than {MAX_DEPTH} levels"
    return str(error).replace("\n", " ")[:512]
