"""Turns an action into bytes once and back strictly, so that what was judged is what is executed (design section 4)."""

from __future__ import annotations

import hashlib
from typing import Any, Final, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from kala.errors import InvalidArgumentError

TYPE_URL_PREFIX: Final = "type.kala.dev/"

M = TypeVar("M", bound=Message)


def type_url_of(full_name: str) -> str:
    """The only type_url under which a message of this name is accepted."""
    return TYPE_URL_PREFIX + full_name


def pack(action: Message) -> AnyMessage:
    """Serialises an action deterministically; done once, by the gateway or the trainer."""
    return AnyMessage(
        type_url=type_url_of(action.DESCRIPTOR.full_name),
        value=action.SerializeToString(deterministic=True),
    )


def action_digest(action: AnyMessage) -> bytes:
    """SHA-256(type_url || 0x00 || value): the digest that a clearance covers. 32 bytes."""
    digest = hashlib.sha256(action.type_url.encode())
    digest.update(b"\0")
    digest.update(action.value)
    return digest.digest()


def has_unknown_fields(message: Message) -> bool:
    """Whether the message, at any depth, carries fields that this version of the contracts does not know."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return known.ByteSize() != message.ByteSize()


def has_unknown_values(message: Message) -> bool:
    """Whether an enum field of the message, at any depth, holds a number that this version of the contracts lacks.

    proto3 keeps such numbers in the field itself, so `has_unknown_fields` does not see them.
    """
    return any(_holds_unknown_value(field, value) for field, value in message.ListFields())


def _holds_unknown_value(field: FieldDescriptor, value: Any) -> bool:  # Any: what ListFields gives
    if field.enum_type is None and field.message_type is None:
        return False
    items = value if field.is_repeated else (value,)
    if field.enum_type is not None:
        return any(item not in field.enum_type.values_by_number for item in items)
    return any(has_unknown_values(item) for item in items)


def unpack_strictly(action: AnyMessage, message_class: type[M], *, field: str = "action") -> M:
    """Parses an action or raises InvalidArgumentError: wrong type_url, broken bytes, unknown parts at any depth.

    Unknown fields and enum values are refused because an older judge would pass what a newer actor would execute.
    """
    expected = type_url_of(message_class.DESCRIPTOR.full_name)
    if action.type_url != expected:
        raise InvalidArgumentError(f"{field}.type_url", f"must be {expected!r}, not {action.type_url!r}")
    message = message_class()
    try:
        message.ParseFromString(action.value)
    except DecodeError as error:
        raise InvalidArgumentError(
            f"{field}.value", f"is not a {message_class.DESCRIPTOR.full_name}"
        ) from error
    if has_unknown_fields(message) or has_unknown_values(message):
        raise InvalidArgumentError(
            f"{field}.value",
            "has fields or values that this version does not know; upgrade every part before using them",
            reason="UNKNOWN_FIELDS",
        )
    return message
