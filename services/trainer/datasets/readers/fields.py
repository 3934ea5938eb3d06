"""Fields of a row, taken with the checks that every format shares."""

from __future__ import annotations

from typing import Any, Final

from services.trainer.datasets.problems import (
    CONTAMINATED,
    EMPTY,
    MISSING_FIELD,
    NOT_AN_OBJECT,
    WRONG_TYPE,
    WRONG_VALUE,
    RowError,
    quoted,
)
from services.trainer.datasets.rows import ROLES, Message, Row

Fields = dict[str, Any]  # Any: a row's JSON, checked where it is used
_HUMANEVAL: Final = "HumanEval"
MAX_TURNS: Final = 256
MAX_CATEGORY: Final = 64
SUBJECT_CHARACTERS: Final = 64
_HEX: Final = frozenset("0123456789abcdef")


def object_of(value: object) -> Fields:
    """Returns the row as an object or raises RowError."""
    if not isinstance(value, dict):
        raise RowError(NOT_AN_OBJECT, f"the row is {_kind(value)}, not an object")
    if str(value.get("task_id", "")).startswith(_HUMANEVAL):
        raise RowError(CONTAMINATED, "the row is one of HumanEval's, which is for evaluation only")
    return value


def text_of(row: Fields, name: str, *others: str) -> str:
    """Returns a text that must be there and not be blank, under its name or one of the others."""
    for key in (name, *others):
        if key in row:
            return checked_text(row[key], key)
    raise RowError(MISSING_FIELD, f"{name} is missing")


def optional_text(row: Fields, name: str) -> str:
    """Returns a text, or nothing where it is missing or null."""
    value = row.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return checked_text(value, name)


def checked_text(value: object, name: str) -> str:
    """Returns the text, which must be Unicode without lone surrogates or NUL and not be blank."""
    if not isinstance(value, str):
        raise RowError(WRONG_TYPE, f"{name} is {_kind(value)}, not a text")
    if not value.strip():
        raise RowError(EMPTY, f"{name} is empty")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise RowError(WRONG_VALUE, f"{name} holds a character that is no text")
    return value.strip()


def texts_of(row: Fields, name: str) -> list[str]:
    """Returns a list of texts, at least one."""
    values = row.get(name)
    if values is None:
        raise RowError(MISSING_FIELD, f"{name} is missing")
    if not isinstance(values, list):
        raise RowError(WRONG_TYPE, f"{name} is {_kind(values)}, not a list")
    if not values:
        raise RowError(EMPTY, f"{name} is empty")
    return [checked_text(value, f"{name}[{index}]") for index, value in enumerate(values)]


def messages_of(value: object, name: str) -> tuple[Message, ...]:
    """Returns messages: a system message at most first, no role twice in a row."""
    if not isinstance(value, list):
        raise RowError(WRONG_TYPE, f"{name} is {_kind(value)}, not a list")
    if not value:
        raise RowError(EMPTY, f"{name} is empty")
    if len(value) > MAX_TURNS:
        raise RowError(WRONG_VALUE, f"{name} has {len(value)} messages; at most {MAX_TURNS} are read")
    found: list[Message] = []
    for index, part in enumerate(value):
        at = f"{name}[{index}]"
        fields = part if isinstance(part, dict) else {}
        role = fields.get("role")
        if role not in ROLES:
            raise RowError(WRONG_VALUE, f"{at}.role is {quoted(role)}, not one of {', '.join(ROLES)}")
        if role == "system" and index:
            raise RowError(WRONG_VALUE, f"{at}.role: a system message comes first or not at all")
        if found and found[-1].role == role:
            raise RowError(WRONG_VALUE, f"{at}.role: {role} speaks twice in a row")
        found.append(Message(role, checked_text(fields.get("content"), f"{at}.content")))
    return tuple(found)


def subject_of(row: Fields) -> str:
    """Returns the pseudonym of the person whose row it is; empty for none."""
    value = row.get("subject")
    if not isinstance(value, str) or len(value) != SUBJECT_CHARACTERS or not _HEX.issuperset(value):
        # Other data sets have a field of this name for a school subject; only a pseudonym is one of ours.
        return ""
    return value


def category_of(row: Fields, default: str) -> str:
    """Returns the row's own category where it is a short name, else the format's."""
    value = row.get("category")
    plain = (
        isinstance(value, str)
        and value.replace("_", "").replace("-", "").isalnum()
        and len(value) <= MAX_CATEGORY
    )
    return str(value).lower() if plain else default


def answered(category: str, asked: str, answer: str, facts: dict[str, str] | None = None) -> Row:
    """Returns a question with its answer."""
    return Row(category, messages=(Message("user", asked), Message("assistant", answer)), facts=facts or {})


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
