"""The ids of responses and of their items: an item's id names its response, so that a reference to it can be found.  Pure."""

from __future__ import annotations

import re
from typing import Final

ID_BYTES: Final = 16
_RESPONSE: Final = "resp_"
_RESPONSE_ID: Final = re.compile(r"resp_[0-9a-f]{32}")
_ITEM: Final = re.compile(r"(?:msg|rs|fc|fco|mcp|mcpr|mcpa|itm)_([0-9a-f]{32})[0-9a-f]{4,}")


def response_id(randomness: str) -> str:
    """Name a response by 32 random hex characters."""
    return _RESPONSE + randomness


def response_of(item_id: str) -> str | None:
    """Name the response that an item's id was given in, or None where it is not one of ours."""
    found = _ITEM.fullmatch(item_id)
    return None if found is None else _RESPONSE + found[1]


class ItemIds:
    """Gives the items of one response their ids, in the order in which they come."""

    def __init__(self, response: str) -> None:
        self._response = response.removeprefix(_RESPONSE)
        self._given = 0

    def next(self, kind: str) -> str:
        """Give the next one: `msg` for messages, `fc` for calls, `rs` for thoughts."""
        self._given += 1
        return f"{kind}_{self._response}{self._given:04x}"


def is_response_id(text: str) -> bool:
    """Tell whether this may be the id of a response."""
    return _RESPONSE_ID.fullmatch(text) is not None
