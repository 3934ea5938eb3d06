"""The rules in force, in words that the whole service shares; sizes in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from kala.errors import PermissionDeniedError
from services.tools.sandbox.model import Limits, Strength

# As the contract says.
MAX_APPROVAL_SECONDS: Final = 24 * 3600.0


class RefusedByPolicyError(PermissionDeniedError):
    """The policy forbids the call; the message names the rule and, where there is one, another way. Nothing ran."""

    default_reason = "POLICY_REFUSED"


class Risk(IntEnum):
    """How much harm a call could do; the numbers are the contract's."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3


class Approver(Enum):
    """Who may decide an approval; the names are the contract's."""

    OWNER = "owner"
    OTHER = "other"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Zone:
    """Rights to a path of the workspace and all beneath it; "" is the workspace itself."""

    path: str
    read: bool = False
    write: bool = False
    delete: bool = False


@dataclass(frozen=True, slots=True)
class CommandRule:
    """How `shell` may use one program."""

    program: str
    risk: Risk
    # RE2; each matches a whole argument.
    refused_arguments: tuple[str, ...] = ()
    # None for no bound of its own.
    max_arguments: int | None = None
    redirections: bool = False


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """When a person must agree first; None means never."""

    from_risk: Risk | None
    from_risk_after_untrusted: Risk | None
    approver: Approver
    wait_seconds: float

    def reason(self, risk: Risk, *, after_untrusted: bool) -> str:
        """Say why a call of this risk needs a person's approval; "" when it needs none."""
        if self.from_risk is not None and risk >= self.from_risk:
            return f"calls of {risk.name.lower()} risk need approval"
        if after_untrusted and (
            self.from_risk_after_untrusted is not None and risk >= self.from_risk_after_untrusted
        ):
            return f"calls of {risk.name.lower()} risk need approval once untrusted content is in the conversation"
        return ""


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy file, read and checked."""

    version: str
    # SHA-256 of the file's bytes.
    digest: bytes
    tools: frozenset[str]
    commands: tuple[CommandRule, ...]
    zones: tuple[Zone, ...]
    approvals: ApprovalRule
    default_limits: Limits
    max_limits: Limits
    least_strength: Strength
    allow_weak: bool
    default_workspace_bytes: int
    max_workspace_bytes: int
    default_workspace_seconds: float
    max_workspace_seconds: float
    allow_host_directory: bool
