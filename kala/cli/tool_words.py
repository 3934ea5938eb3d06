"""How the tools' values are spelled for people."""

from __future__ import annotations

import re
from typing import Final

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNITS: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def short(value: object, prefix: str) -> str:
    """Spell a value of one of the contracts' enums: RISK_LOW is "low"; unspecified is nothing."""
    text = str(value or "").removeprefix(prefix).lower().replace("_", " ")
    return "" if text == "unspecified" else text


def printable(text: str) -> str:
    """Show control characters instead of sending them to a terminal; line ends and tabs stay."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def size(name: str, value: object) -> str:
    """Spell one limit: bytes in their largest whole unit, everything else as it is."""
    if value is None:
        return ""
    text = str(value)
    if not name.endswith("bytes") or not text.isdigit():
        return text
    number = int(text)
    for unit, word in _UNITS:
        if number and number % unit == 0:
            return f"{number // unit} {word}"
    return f"{number} B"
