"""Calls that wait for a person: bound to exactly one call, decided once, used once, gone in time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from services.tools.files.model import Owner
from services.tools.policy.model import Approver, Risk


class ApprovalState(Enum):
    """Where an approval stands; the names are the contract's."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    USED = "used"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call that needs approval, as its person will see it."""

    owner: Owner
    tool: str
    arguments_json: str
    # "workspaces/<workspace>"; empty for a throw-away one.
    workspace: str
    risk: Risk
    # The rule in words.
    reason: str
    call_digest: bytes


@dataclass(frozen=True, slots=True)
class Approval:
    """A call that waits for a person, or did; moments in Unix seconds."""

    name: str
    state: ApprovalState
    call: Wanted
    approver: Approver
    created_at: float
    expires_at: float
    decided_by: str = ""
    comment: str = ""
    decided_at: float | None = None
