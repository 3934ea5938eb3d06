"""How the tools' values are spelled for people."""

from __future__ import annotations

import json
import re
from typing import Final

_CONTROLS: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"
    # What turns text around, breaks its lines or is not seen at all: what is shown must be what is there.
    r"\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
_BLANKS: Final = re.compile(r"[\n\t]")
_UNITS: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def short(value: object, prefix: str) -> str:
    """Spell a value of one of the contracts' enums: RISK_LOW is "low"; unspecified is nothing."""
    text = str(value or "").removeprefix(prefix).lower().replace("_", " ")
    return "" if text == "unspecified" else text


def printable(text: str) -> str:
    """Show control and invisible characters instead of sending them to a terminal; line ends and tabs stay."""
    return _CONTROLS.sub(_escaped, text)


def on_one_line(text: str) -> str:
    """The same with line ends and tabs shown too, for text that must not look like another line."""
    return _BLANKS.sub(_escaped, printable(text))


def call_words(arguments_json: str) -> str:
    """Write a call's arguments on one line, as the tool reads them: no blanks around and no escapes in them hide a word."""
    try:
        text = json.dumps(json.loads(arguments_json), ensure_ascii=False)
    except (ValueError, RecursionError):
        text = arguments_json
    return _BLANKS.sub(_escaped, printable(text))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


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
