"""What a session remembers and counts: its messages, its newest answer, and a turn that waits for a person.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kala.errors import FailedPreconditionError
from kala.replies import ChatReply
from kala.tool_replies import ToolResult

REMEMBERED_OUTCOMES: Final = ("ALLOW", "ASK_CLARIFICATION")
"""Turns that stay in the conversation. A refused one would make every later request be refused with it."""

GO_ON: Final = "Go on."
"""Says nothing new to the model."""

# `Any` in this module: a message with a call of a tool is more than text.
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WaitingCall:
    """A call of a tool that a person must approve first."""

    call_id: str
    tool: str
    approval: str
    """`approvals/…`; `kala tools approvals approve` takes it."""
    reason: str = ""
    arguments: str = ""
    """The exact text of the call's arguments, as the model wrote it."""


@dataclass(frozen=True, slots=True)
class WaitingTurn:
    """A turn that goes on once its calls have been decided."""

    messages: tuple[Message, ...]
    """What was said in it so far, the question first."""
    calls: tuple[WaitingCall, ...]

    @property
    def approvals(self) -> dict[str, str]:
        """By the id of a call, its approval: what `kala_approvals` of a request holds."""
        return {call.call_id: call.approval for call in self.calls}


@dataclass(slots=True)
class Conversation:
    """One conversation and its counts."""

    session_id: str
    messages: list[Message] = field(default_factory=list)
    """What was said; the next request carries it before its own message, unless the gateway stores it."""
    stored: str = ""
    """`sessions/…`, where the gateway stores the conversation and tells it before each request."""
    requests: int = 0
    blocks: int = 0
    tokens: int = 0
    last: ChatReply | None = None
    waiting: WaitingTurn | None = None

    @classmethod
    def begun(cls, session_id: str, system_prompt: str | None) -> Conversation:
        """A new one."""
        return cls(
            session_id, [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        )

    def with_turn(self, turn: Sequence[Message]) -> list[Message]:
        """The messages of a request that says this next."""
        return [*(self._instructions() if self.stored else self.messages), *turn]

    def with_waiting(self, waiting: WaitingTurn) -> list[Message]:
        """The messages of a request that goes on with a turn that waited."""
        if self.stored:
            # The gateway has the turn already; a request of no message at all would be none.
            return self._instructions() or [{"role": "system", "content": GO_ON}]
        return self.with_turn(waiting.messages)

    def took(self, turn: Sequence[Message], reply: ChatReply) -> None:
        """Take the answer to a turn: count it, and remember both where they may stay."""
        self.count(reply)
        between = tuple((reply.tools or {}).get("messages") or ())
        calls = _waiting_calls(reply)
        self.waiting = WaitingTurn((*turn, *between), calls) if calls else None
        if calls or reply.tool_calls:
            # A call that nobody has answered: a model server refuses a conversation that goes on after it.
            return
        if reply.decision is None or reply.decision.outcome in REMEMBERED_OUTCOMES:
            self.messages += [*turn, *between, {"role": "assistant", "content": reply.text}]

    def to_resume(self) -> WaitingTurn:
        """The turn that waits; FailedPreconditionError where none does."""
        if self.waiting is None:
            raise FailedPreconditionError(
                "no call of this session waits for a person", reason="NOTHING_WAITS"
            )
        return self.waiting

    def _instructions(self) -> list[Message]:
        return [message for message in self.messages[:1] if message["role"] == "system"]

    def count(self, reply: ChatReply) -> None:
        """Count one answer."""
        self.last = reply
        self.requests += 1
        self.blocks += not reply.allowed
        self.tokens += reply.output_tokens if reply.allowed else 0

    def count_tool(self, result: ToolResult) -> None:
        """Count one call of a tool."""
        self.requests += 1
        self.blocks += not result.ethics_approved

    def stats(self) -> dict[str, Any]:
        """Requests, those that were not allowed, and generated tokens."""
        return {
            "session_id": self.session_id,
            "requests_processed": self.requests,
            "ethics_blocks": self.blocks,
            "tokens_generated": self.tokens,
        }

    def summary(self, *, place: str, log: str | None) -> str:
        """What happened, in a few lines."""
        lines = [
            f"KALA session {self.session_id}",
            f"  suite             {place}",
            f"  requests          {self.requests}",
            f"  ethics blocks     {self.blocks}",
            f"  tokens generated  {self.tokens}",
        ]
        if self.last is not None and self.last.receipt is not None:
            lines.append(f"  last receipt      {self.last.receipt.id} ({self.last.receipt.status})")
        if log is not None:
            lines.append(f"  log               {log}")
        return "\n".join(lines)


def question(message: str) -> list[Message]:
    """The turn that a message begins."""
    return [{"role": "user", "content": message}]


def still_undecided(turn: WaitingTurn, approvals: Sequence[Mapping[str, Any]]) -> None:
    """Raise FailedPreconditionError, naming them, while calls of a turn are not decided."""
    pending = {str(each.get("name")) for each in approvals if each.get("state") == "APPROVAL_STATE_PENDING"}
    if open_ones := [call.approval for call in turn.calls if call.approval in pending]:
        raise FailedPreconditionError(
            f"{', '.join(open_ones)}: not decided yet; run `kala tools approvals approve` or `deny` first",
            reason="APPROVAL_PENDING",
        )


def _waiting_calls(reply: ChatReply) -> tuple[WaitingCall, ...]:
    wanted = (reply.tools or {}).get("requires_action") or {}
    arguments = {
        str(call.get("id")): str((call.get("function") or {}).get("arguments") or "")
        for call in reply.tool_calls
    }
    return tuple(
        WaitingCall(
            str(each.get("call_id") or ""),
            str(each.get("tool") or ""),
            str(each.get("approval") or ""),
            str(each.get("reason") or ""),
            arguments.get(str(each.get("call_id")), ""),
        )
        for each in wanted.get("approvals") or ()
    )
