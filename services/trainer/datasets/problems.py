"""What is wrong with a row, told so that its owner finds and mends it; never more of the row than 80 characters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.trainer.datasets.rows import Row

MAX_QUOTED: Final = 80

NOT_UTF8: Final = "NOT_UTF8"
NOT_JSON: Final = "NOT_JSON"
NOT_AN_OBJECT: Final = "NOT_AN_OBJECT"
MISSING_FIELD: Final = "MISSING_FIELD"
WRONG_TYPE: Final = "WRONG_TYPE"
WRONG_VALUE: Final = "WRONG_VALUE"
EMPTY: Final = "EMPTY"
TOO_LONG: Final = "TOO_LONG"
CONTAMINATED: Final = "CONTAMINATED"
FILE_CHANGED: Final = "FILE_CHANGED"
FILE_DAMAGED: Final = "FILE_DAMAGED"
FILE_MISSING: Final = "FILE_MISSING"
FILE_EMPTY: Final = "FILE_EMPTY"


class RowError(Exception):
    """A row that cannot be used: one of the kinds above, and why in words."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class FileError(RowError):
    """The file cannot be read on; the rows before were right."""


@dataclass(frozen=True, slots=True)
class Found:
    """A row of a source with its number from 1, or what is wrong with it; number 0 for the file as a whole."""

    number: int
    row: Row | None = None
    problem: RowError | None = None
    file: str = ""


def quoted(text: object) -> str:
    """Returns the beginning of a value, so that a message never carries a whole row."""
    shown = repr(text)
    return shown if len(shown) <= MAX_QUOTED else shown[: MAX_QUOTED - 1] + "…"
