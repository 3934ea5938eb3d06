"""How far a pull is, whoever makes it.  Pure."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kala.common.v1.reference_pb2 import ContentReference


@dataclass(frozen=True, slots=True)
class Pulled:
    """The bytes so far; `files` is set at the end only, and only where digests are known."""

    file: str
    received_bytes: int
    total_bytes: int | None
    files: tuple[ContentReference, ...] = ()


@runtime_checkable
class Puller(Protocol):
    """A backend that gets models itself."""

    def pull(self, source: str) -> AsyncGenerator[Pulled]:
        """Tell the progress of getting a model; ends when it is there, raises BackendFailure when it will not be."""
        ...
