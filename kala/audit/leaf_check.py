"""What entries say, read one by one: each is a leaf in its one spelling, and recorded times never go back."""

from __future__ import annotations

from typing import Final

from kala.audit import canonical
from kala.audit.leaf import SCHEMA, parse_leaf
from kala.audit.report import TamperedError, UnverifiableError
from kala.audit.times import parse_time
from kala.errors import VerificationError

_FAMILY: Final = "kala.audit.leaf."


class LeafCheck:
    """Takes entries in order of index, with gaps if need be."""

    def __init__(self) -> None:
        self._recorded_at = 0

    def take(self, index: int, entry: bytes) -> None:
        """Raises `TamperedError` for what no log of KALA writes, `UnverifiableError` for what a newer one may write."""
        try:
            leaf = parse_leaf(entry)
        except VerificationError as error:
            _require_known(index, entry)
            raise TamperedError(index, error.message) from error
        recorded_at = parse_time(leaf.value["recorded_at"])
        if recorded_at < self._recorded_at:
            raise TamperedError(index, "it was recorded before an entry that precedes it")
        self._recorded_at = recorded_at


def _require_known(index: int, entry: bytes) -> None:
    try:
        value = canonical.parse(entry)
    except VerificationError:
        return
    schema = value.get("schema") if isinstance(value, dict) else None
    if isinstance(schema, str) and schema.startswith(_FAMILY) and schema != SCHEMA:
        raise UnverifiableError(
            f"entry {index} is spelled by {schema}, which a newer release of `kala` can read"
        )
