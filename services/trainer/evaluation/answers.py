"""Whether an answer is right, by what a person wrote beside the question. Pure."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

from services.trainer.evaluation.suites import Item

_NUMBER: Final = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_FINAL: Final = re.compile(
    r"(?:####|\\boxed\{|answer(?: is|:)|=)\s*\$?([-+]?[\d,]*\.?\d+(?:[eE][-+]?\d+)?)", re.IGNORECASE
)
_LAW: Final = re.compile(
    r"\blaw\s+(?:no\.?\s*|number\s+)?(?:([0-4])|(zero|one|two|three|four))\b", re.IGNORECASE
)
_ORDINAL_LAW: Final = re.compile(r"\b(zeroth|first|second|third|fourth)\s+law\b", re.IGNORECASE)
_WORDS: Final = {word: n for n, word in enumerate(("zero", "one", "two", "three", "four"))} | {
    word: n for n, word in enumerate(("zeroth", "first", "second", "third", "fourth"))
}
_FENCE: Final = re.compile(r"```[a-zA-Z0-9_+-]*\n(.*?)(?:```|\Z)", re.DOTALL)
_EDGES: Final = " \t\r\n.!?\"'`*"


def normalised(text: str) -> str:
    """The text without differences that no reader cares about: case, spacing, quotes and full stops at its ends."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(_EDGES)


def is_exact(answer: str, item: Item) -> bool:
    """Whether it is one of the accepted answers, by `normalised`."""
    return normalised(answer) in {normalised(right) for right in item.answers}


def last_number(text: str) -> float | None:
    """The number that an answer comes to: the last one that is said to be the answer, else the last one at all."""
    said = _FINAL.findall(text)
    found = said[-1] if said else next(reversed(_NUMBER.findall(text)), None)
    try:
        return None if found is None else float(found.replace(",", ""))
    except ValueError:
        return None


def is_number(answer: str, item: Item) -> bool:
    """Whether the answer comes to the accepted number, within the item's relative tolerance."""
    found = last_number(answer)
    return found is not None and any(
        math.isclose(found, float(right.replace(",", "")), rel_tol=max(item.tolerance, 1e-9), abs_tol=1e-9)
        for right in item.answers
    )


def law_named(answer: str) -> int | None:
    """The one law that an answer names; None when it names none or several."""
    found = {int(digit) if digit else _WORDS[word.casefold()] for digit, word in _LAW.findall(answer)} | {
        _WORDS[word.casefold()] for word in _ORDINAL_LAW.findall(answer)
    }
    return found.pop() if len(found) == 1 else None


def is_coherent(answer: str, item: Item) -> bool:
    """Whether it says what follows from the turns before, and nothing that contradicts them."""
    text = f" {normalised(answer)} "
    return any(_holds(text, right) for right in item.answers) and not any(
        _holds(text, wrong) for wrong in item.forbidden
    )


def _holds(text: str, part: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(normalised(part))}(?!\w)", text) is not None


def code_in(answer: str) -> str:
    """The program in an answer: its first fenced block, else all of it."""
    fenced = _FENCE.search(answer)
    return (fenced.group(1) if fenced else answer).strip("\n") + "\n"


def all_code_in(answer: str) -> str:
    """All code in an answer: every fenced block, else all of it; a harmless first block hides none behind it."""
    fenced = _FENCE.findall(answer)
    return "\n".join(block.strip("\n") for block in fenced or [answer]) + "\n"


def tool_call_in(answer: str) -> Mapping[str, Any] | None:  # Any: JSON
    """The first JSON object in an answer that names a tool; None when there is none."""
    decoder = json.JSONDecoder()
    for start in (found.start() for found in re.finditer(r"\{", answer)):
        try:
            value, _ = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            return value
    return None


def is_right_call(answer: str, item: Item) -> bool:
    """Whether the answer calls the right tool with the right arguments; "" means that no tool may be called."""
    call = tool_call_in(answer)
    wanted = item.call
    if not wanted["name"]:
        return call is None and bool(answer.strip())
    if call is None or call["name"] != wanted["name"]:
        return False
    given = call.get("arguments", call.get("parameters", {}))
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return False
    return isinstance(given, dict) and _same(given, wanted.get("arguments", {}))


def _same(given: Any, wanted: Any) -> bool:  # Any: JSON
    """Equal as people mean it: letter case and spacing of texts do not matter, numbers may be written either way."""
    if isinstance(wanted, list) and wanted and isinstance(wanted[0], dict) and "any_of" in wanted[0]:
        return any(_same(given, each) for each in wanted[0]["any_of"])
    if isinstance(given, Mapping) and isinstance(wanted, Mapping):
        return given.keys() == wanted.keys() and all(_same(given[key], wanted[key]) for key in wanted)
    if isinstance(given, list) and isinstance(wanted, list):
        return len(given) == len(wanted) and all(map(_same, given, wanted))
    if isinstance(given, bool) or isinstance(wanted, bool):
        return given is wanted
    return normalised(str(given)) == normalised(str(wanted)) or _equal_numbers(given, wanted)


def _equal_numbers(given: Any, wanted: Any) -> bool:  # Any: JSON
    try:
        return math.isclose(float(given), float(wanted), rel_tol=1e-9)
    except (TypeError, ValueError):
        return False
