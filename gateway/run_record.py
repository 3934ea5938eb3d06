"""What the log says of a run of a tool: how it ended, where it took place, and what it left.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from gateway.acts import Ending
from kala.common.v1 import decision_pb2
from kala.errors import UnavailableError
from kala.tools.v1 import execution_pb2 as pb
from kala.tools.v1 import tools_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

RUN_FORM: Final = "run"
"""How the log names a run's answer: its exit event as JSON, which holds the digests of both streams and all artifacts."""

RUN_STREAM_CUT: Final = "RUN_STREAM_CUT"

_NOT_BEGUN: Final = frozenset({pb.RUN_STATUS_REFUSED, pb.RUN_STATUS_APPROVAL_REQUIRED})
_FAILED: Final = frozenset({pb.RUN_STATUS_SETUP_FAILED, pb.RUN_STATUS_LAUNCHER_LOST})

Status = Literal["ok", "refused", "cancelled", "error"]


def status_name(status: pb.RunStatus.ValueType) -> str:
    """Give a status as answers and records spell it, e.g. OK or APPROVAL_REQUIRED."""
    return pb.RunStatus.Name(status).removeprefix("RUN_STATUS_")


def isolation_text(isolation: pb.Isolation) -> str:
    """Give where a run took place as one text, `bubblewrap/standard`; empty when it never began."""
    if not isolation.tier:
        return ""
    tier = pb.IsolationTier.Name(isolation.tier).removeprefix("ISOLATION_TIER_")
    strength = pb.IsolationStrength.Name(isolation.strength).removeprefix("ISOLATION_STRENGTH_")
    return f"{tier}/{strength}".lower()


def exit_of(responses: Sequence[Message]) -> pb.RunExit | None:
    """Give the exit event that ends a run's events, or None for the answer of another RPC."""
    last = responses[-1] if responses else None
    return last.exit if isinstance(last, tools_pb2.ExecuteResponse) and last.HasField("exit") else None


def require_exit(responses: Sequence[Message]) -> None:
    """Raise UnavailableError for an answer that is empty, or a run whose events end before its exit."""
    if not responses:
        raise UnavailableError("the service gave no answer")
    if isinstance(responses[0], tools_pb2.ExecuteResponse) and exit_of(responses) is None:
        raise UnavailableError("the tools service broke off before the run's end", reason=RUN_STREAM_CUT)


def run_ending(exit_event: pb.RunExit, decision: decision_pb2.Decision) -> Ending:
    """Say how an act ended that ran a tool: a program that failed is an act that was carried out."""
    status = exit_event.status
    said: Status = "refused" if status in _NOT_BEGUN else "error" if status in _FAILED else "ok"
    facts = {
        "run.name": exit_event.run,
        "run.status": status_name(status),
        "run.isolation": isolation_text(exit_event.isolation),
        "run.approval": exit_event.approval,
        "run.exit_code": str(exit_event.exit_code) if exit_event.HasField("exit_code") else "",
        "run.artifacts": str(len(exit_event.artifacts)) if exit_event.artifacts else "",
    }
    return Ending(
        said,
        code="" if status == pb.RUN_STATUS_OK else status_name(status),
        decision=decision,
        facts={name: value for name, value in facts.items() if value},
    )
