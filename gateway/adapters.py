"""Which adapters a chat asks for: a header with their names.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from kala.errors import InvalidArgumentError

ADAPTERS_HEADER: Final = "x-kala-adapters"

MAX_ADAPTERS: Final = 4
"""The contract's limit."""

_NAME: Final = re.compile(r"adapters/[a-z0-9-]{1,64}@[1-9][0-9]{0,9}")


def adapters_of(headers: Mapping[str, str]) -> list[str]:
    """Read the names, separated by commas; raises InvalidArgumentError for what is no name."""
    named = headers.get(ADAPTERS_HEADER, "").strip()
    names = [name.strip() for name in named.split(",")] if named else []
    if len(names) > MAX_ADAPTERS or len(set(names)) != len(names):
        raise InvalidArgumentError(ADAPTERS_HEADER, f"must name at most {MAX_ADAPTERS}, each once")
    for name in names:
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError(ADAPTERS_HEADER, f"{name[:128]!r} is not adapters/<name>@<version>")
    return names


def refuse_adapters(headers: Mapping[str, str]) -> None:
    """Raise InvalidArgumentError where adapters are named: only chats have them applied."""
    if headers.get(ADAPTERS_HEADER, "").strip():
        raise InvalidArgumentError(ADAPTERS_HEADER, "is for chats only")
