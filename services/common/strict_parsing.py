"""Reads signed protobuf bytes without leniency: what this version does not understand, it does not pass."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from kala.errors import VerificationError
from services.common.sealing import has_unknown_fields, has_unknown_values

M = TypeVar("M", bound=Message)


def parse_signed(what: str, data: bytes, message_class: type[M], *, max_bytes: int) -> M:
    """Returns the message that `data` holds, or raises VerificationError that begins with `what`.

    Refused: nothing at all, more than `max_bytes`, bytes that are no such message, unknown fields or enum values at any
    depth.
    """
    if not 0 < len(data) <= max_bytes:
        raise VerificationError(f"{what}: has {len(data)} bytes, not 1 to {max_bytes}")
    message = message_class()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise VerificationError(f"{what}: is not a {message_class.DESCRIPTOR.full_name}") from error
    require_known_fields(what, message)
    return message


def require_known_fields(what: str, message: Message) -> None:
    """Raises VerificationError when the message, at any depth, has fields or values that this version does not know."""
    if has_unknown_fields(message):
        raise VerificationError(
            f"{what}: has fields that this version does not know; upgrade before using it"
        )
    if has_unknown_values(message):
        raise VerificationError(
            f"{what}: has values that this version does not know; upgrade before using it"
        )


def require_schema(what: str, schema: int, expected: int = 1) -> None:
    """Raises VerificationError for another schema number."""
    if schema != expected:
        raise VerificationError(f"{what}: has schema {schema}, this version reads {expected}")


def require_digest(what: str, digest: bytes) -> bytes:
    """Returns a SHA-256 digest, or raises VerificationError when it is not 32 bytes long."""
    if len(digest) != 32:  # noqa: PLR2004 - the length of SHA-256
        raise VerificationError(f"{what}: is {len(digest)} bytes long, not 32")
    return digest


def require_same(what: str, actual: bytes, expected: bytes) -> None:
    """Raises VerificationError, showing the beginnings of both, when two digests differ."""
    if actual != expected:
        raise VerificationError(f"{what}: is {actual.hex()[:16] or 'empty'}, not {expected.hex()[:16]}")
