"""What a caller of the REST bridge may say of one call in its headers: how long it waits, and which fields it wants.

Google's names for both: `x-server-timeout` in seconds, and `x-goog-fieldmask` (AIP-157).  Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gateway.bridge_routes import SECRET_TYPES
from kala.errors import InvalidArgumentError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

TIMEOUT: Final = "x-server-timeout"
FIELDS: Final = "x-goog-fieldmask"

MAX_TIMEOUT_SECONDS: Final = 24 * 3600.0
"""As the longest call of any kind."""
MAX_MASK_CHARS: Final = 4096
MIN_SECONDS: Final = 0.001
"""What a call gets whose caller's time is already over: it ends at once, as late."""

_SECONDS: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,9})?")

Json = dict[str, Any]  # Any: JSON
Mask = dict[str, "Mask"]
"""Wanted fields by name; nothing below one means all of it."""


@dataclass(frozen=True, slots=True)
class CallOptions:
    """The options of one call."""

    timeout_seconds: float = math.inf
    """From the request's arrival on."""
    mask: Mask | None = None

    def seconds(self, limit: float, *, elapsed_ms: float) -> float:
        """Give how long a call to a service may take: its own limit, or what is left of the caller's time."""
        return max(MIN_SECONDS, min(limit, self.timeout_seconds - elapsed_ms / 1000))

    def shown(self, value: Json) -> Json:
        """Give what the caller wants to see of an answer."""
        return value if self.mask is None else _picked(value, self.mask)


def read_options(headers: Mapping[str, str], answer: type[Message]) -> CallOptions:
    """Read the headers; raises InvalidArgumentError that names the header and what it may say."""
    return CallOptions(_timeout(headers.get(TIMEOUT)), _mask(headers.get(FIELDS), answer))


def _timeout(text: str | None) -> float:
    if text is None:
        return math.inf
    if not _SECONDS.fullmatch(text) or not MIN_SECONDS <= float(text) <= MAX_TIMEOUT_SECONDS:
        raise InvalidArgumentError(
            TIMEOUT, f"must be {MIN_SECONDS:g} to {MAX_TIMEOUT_SECONDS:g} seconds, as in 2.5"
        )
    return float(text)


def _mask(text: str | None, answer: type[Message]) -> Mask | None:
    if text is None or text.strip() == "*":
        return None
    if len(text) > MAX_MASK_CHARS:
        raise InvalidArgumentError(FIELDS, f"is longer than {MAX_MASK_CHARS} characters")
    mask: Mask = {}
    for path in text.split(","):
        # The stubs know two kinds of descriptors; at run time there is one.
        message: Descriptor | None = answer.DESCRIPTOR  # type: ignore[assignment]
        inner = mask
        for name in path.strip().split("."):
            field = None if message is None else message.fields_by_name.get(name)
            if field is None or _is_secret(field.message_type):
                raise InvalidArgumentError(
                    FIELDS, f"{path.strip()[:128]!r} is no field of the answer; see /openapi.json"
                )
            inner = inner.setdefault(name, {})
            message = field.message_type
    return mask


def _is_secret(message: Descriptor | None) -> bool:
    return message is not None and message.full_name in SECRET_TYPES


def _picked(value: Any, mask: Mask) -> Any:  # Any: JSON
    if isinstance(value, list):
        return [_picked(item, mask) for item in value]
    if not mask or not isinstance(value, dict):
        return value
    return {name: _picked(value[name], inner) for name, inner in mask.items() if name in value}
