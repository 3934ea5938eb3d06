"""What the gateway answers, as values: the text, the decision behind it and the receipt that proves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

ALLOW: Final = "ALLOW"

# `Any` below: the values of parsed JSON from another process.
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DecisionView:
    """How the Five Laws judged a request or its answer."""

    outcome: str
    """ALLOW, REFUSE, REDIRECT or ASK_CLARIFICATION."""
    id: str = ""
    law: int | None = None
    """0 to 4; None when no law applied."""
    category: str = ""
    stage: str = ""
    """`request` or `output`."""
    path: tuple[str, ...] = ()

    @classmethod
    def of(cls, raw: Json | None) -> DecisionView | None:
        """Read the gateway's form; None when the answer carries none."""
        if not raw:
            return None
        return cls(
            outcome=str(raw.get("outcome", "")),
            id=str(raw.get("id", "")),
            law=raw.get("law"),
            category=str(raw.get("category") or ""),
            stage=str(raw.get("stage") or ""),
            path=tuple(map(str, raw.get("path") or ())),
        )


@dataclass(frozen=True, slots=True)
class ReceiptView:
    """The receipt of an answer: its id, and whether the log has it already."""

    id: str
    status: str
    """LOGGED, or SPOOLED while it waits on the gateway's disk for the audit service."""
    index: int | None = None
    openings: Mapping[str, str] | None = None
    """Payload kind to 32-byte salt in hex: shows later that a text is the committed one."""

    @classmethod
    def of(cls, raw: Json | None) -> ReceiptView | None:
        """Read the gateway's form; None when the answer carries none."""
        if not raw or not raw.get("id"):
            return None
        return cls(
            str(raw["id"]), str(raw.get("status", "")), raw.get("index"), dict(raw.get("openings") or {})
        )


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One finished answer."""

    text: str
    finish_reason: str
    model: str
    decision: DecisionView | None
    receipt: ReceiptView | None
    input_tokens: int
    output_tokens: int
    attempts: tuple[str, ...] = ()
    """Backends in the order tried, each `name: outcome`."""
    overhead_ms: float | None = None
    """Time that judging and logging added."""
    tool_calls: tuple[Json, ...] = ()
    fitted: Json | None = None
    """What was left out of the conversation, where the request asked for that; see `x-kala-truncation`."""
    tools: Json | None = None
    """What KALA's own tools did on the way, where the request asked for them: steps, messages, requires_action."""

    @property
    def allowed(self) -> bool:
        """Whether a model answered; False when the Five Laws answered in its place."""
        return self.decision is None or self.decision.outcome == ALLOW

    @classmethod
    def of(cls, body: Json) -> ChatReply:
        """Read a `chat.completion` object."""
        choice = body["choices"][0]
        return cls.assemble(
            text=choice["message"].get("content") or "",
            finish_reason=choice.get("finish_reason") or "",
            body=body,
            tool_calls=tuple(choice["message"].get("tool_calls") or ()),
        )

    @classmethod
    def assemble(
        cls, *, text: str, finish_reason: str, body: Json, tool_calls: tuple[Json, ...] = ()
    ) -> ChatReply:
        """Put a reply together from its text and the object that carries `model`, `usage` and `kala`."""
        usage, kala = body.get("usage") or {}, body.get("kala") or {}
        return cls(
            text=text,
            finish_reason=finish_reason,
            model=str(body.get("model", "")),
            decision=DecisionView.of(kala.get("decision")),
            receipt=ReceiptView.of(kala.get("receipt")),
            input_tokens=int(usage.get("prompt_tokens") or 0),
            output_tokens=int(usage.get("completion_tokens") or 0),
            attempts=tuple(map(_attempt, kala.get("attempts") or ())),
            overhead_ms=kala.get("overhead_ms"),
            tool_calls=tool_calls,
            fitted=kala.get("fitted"),
            tools=kala.get("tools"),
        )


def _attempt(raw: Json | str) -> str:
    if isinstance(raw, str):
        return raw
    reason = f" ({raw['reason']})" if raw.get("reason") else ""
    return f"{str(raw.get('backend', '')).removeprefix('backends/')}: {raw.get('outcome', '')}{reason}"
