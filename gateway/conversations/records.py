"""What a stored response is, and whose.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gateway.identity import Caller

Json = dict[str, Any]  # Any: JSON

QUEUED: Final = "queued"
IN_PROGRESS: Final = "in_progress"
COMPLETED: Final = "completed"
INCOMPLETE: Final = "incomplete"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
UNFINISHED: Final = (QUEUED, IN_PROGRESS)
"""OpenAI's words for what a response is."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose something is: one key of one tenant may use it, and by the subject it is erased."""

    tenant: str
    key: str
    subject: str

    @classmethod
    def of(cls, caller: Caller) -> Owner:
        """Give a caller as an owner."""
        return cls(caller.tenant, caller.principal.id, caller.subject)


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response with its own input."""

    id: str
    owner: Owner
    previous_id: str | None
    status: str
    is_refused: bool
    created_at: int  # microseconds
    expires_at: int
    lease_until: int | None
    items: Sequence[Json]
    """Its own input, as items."""
    body: Json
    """The response as a client gets it."""

    @property
    def output(self) -> Sequence[Json]:
        """Give the items of its answer."""
        output: Sequence[Json] = self.body.get("output", ())
        return output

    @property
    def is_finished(self) -> bool:
        """Tell whether nothing of it will change any more."""
        return self.status not in UNFINISHED
