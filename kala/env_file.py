"""Changing one setting of a `.env` file and nothing else in it.  Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kala.errors import InvalidArgumentError

_PLAIN = re.compile(r"[!-~]*")
_SPECIAL = frozenset("\"'#\\$`")


def with_setting(text: str, names: Sequence[str], value: str) -> str:
    """Give the file's text with the setting at `value`: the line that sets it by any of its names, else a new one by the first.

    Further lines that set it go, for two values of one setting stop every process. InvalidArgumentError for a value that
    readers of `.env` would understand differently.
    """
    if not _PLAIN.fullmatch(value) or _SPECIAL & set(value):
        raise InvalidArgumentError(names[0], f"must be without spaces, quotes, # and $, not {value!r}")
    sets = re.compile(rf"\s*(?:export\s+)?({'|'.join(map(re.escape, names))})\s*=")
    lines: list[str] = []
    is_set = False
    for line in text.splitlines():
        match = sets.match(line)
        if match is None:
            lines.append(line)
        elif not is_set:
            lines.append(f"{match[1]}={value}")
            is_set = True
    if not is_set:
        lines.append(f"{names[0]}={value}")
    return "\n".join(lines) + "\n"
