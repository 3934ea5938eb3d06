"""Turns an action into bytes once and back strictly, so that what was judged is what is executed (design section 4)."""

from __future__ import annotations

import hashlib
from typing import Final, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
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


def unpack_strictly(action: AnyMessage, message_class: type[M], *, field: str = "action") -> M:
    """Parses an action or raises InvalidArgumentError: wrong type_url, broken bytes, unknown fields at any depth.

    Unknown fields are refused because an older judge would pass what a newer actor would execute.
    """
    expected = type_url_of(message_class.DESCRIPTOR.full_name)
    if action.type_url != expected:
        raise InvalidArgumentError(f"{field}.type_url", f"must be {expected!r}, not {action.type_url!r}")
    message = message_class()
    try:
        message.ParseFromString(action.value)
    except DecodeError as error:
        raise InvalidArgumentError(f"{field}.value", f"is not a {message_class.DESCRIPTOR.full_name}") from error
    if has_unknown_fields(message):
        raise InvalidArgumentError(
            f"{field}.value",
            "has fields that this version does not know; upgrade every part before using them",
            reason="UNKNOWN_FIELDS",
        )
    return message
