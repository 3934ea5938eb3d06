"""What an erasure and a hold are, and how far an erasure is.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kala.audit import canonical


@dataclass(frozen=True, slots=True)
class Progress:
    """What an erasure has done so far; times in microseconds since 1970.

    `covers` is the log's size when the last key was destroyed.
    """

    tenant: str
    erased_at: int
    covers: int = 0
    keys: Sequence[str] = ()
    items: Mapping[str, int] = field(default_factory=dict)
    remaining: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As the database keeps it."""
        return canonical.encode(
            {
                "tenant": self.tenant,
                "erased_at": self.erased_at,
                "covers": self.covers,
                "keys": list(self.keys),
                "items": dict(self.items),
                "remaining": {store: list(names) for store, names in self.remaining.items()},
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Progress:
        """Reads what `to_bytes` wrote."""
        value: Any = canonical.decode(data)  # Any: parsed JSON that `to_bytes` spelled
        return cls(**value)

    def plus(self, reports: Sequence[StoreReport]) -> Progress:
        """With what more stores reported added to it."""
        items, remaining = dict(self.items), dict(self.remaining)
        for report in reports:
            items[report.store] = items.get(report.store, 0) + report.items
            names = {*remaining.get(report.store, ()), *report.remaining}
            remaining[report.store] = sorted(names)
        return replace(self, items=items, remaining=remaining)


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What one store erased; `remaining` names what an operator must still decide about."""

    store: str
    items: int
    remaining: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ErasureRow:
    """An erasure as stored. It is sealed once it has a signature; the entry comes last."""

    request_id: bytes
    subject: str
    certificate: bytes
    signature: str | None
    index: int | None

    @property
    def progress(self) -> Progress:
        """What was done so far; only of an erasure that is not sealed."""
        return Progress.from_bytes(self.certificate)


@dataclass(frozen=True, slots=True)
class Hold:
    """A legal hold; it holds while `released_at` is None."""

    hold_id: str
    subject: str
    released_at: int | None
