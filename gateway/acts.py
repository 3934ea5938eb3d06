"""The values that one guarded act is made of, from the request to its conclusion.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from gateway.answer import Answer
from gateway.identity import Caller
from kala.common.v1 import decision_pb2, usage_pb2
from kala.inference.v1 import inference_pb2

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage

    from kala.errors import KalaError

CHAT_RPC: Final = "/kala.inference.v1.InferenceService/Chat"
CHAT_KIND: Final = "chat"

COMPLETE_RPC: Final = "/kala.inference.v1.InferenceService/Complete"
EMBED_RPC: Final = "/kala.inference.v1.InferenceService/Embed"
RERANK_RPC: Final = "/kala.inference.v1.InferenceService/Rerank"

NO_ATTEMPTS: Final = "none"

FINISH_REASONS: Final = {
    inference_pb2.FINISH_REASON_STOP: "stop",
    inference_pb2.FINISH_REASON_LENGTH: "length",
    inference_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    inference_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
}
"""Only words of OpenAI's own set; clients validate them."""


@dataclass(frozen=True, slots=True)
class Act:
    """One guarded call on behalf of a caller."""

    rpc: str
    kind: str  # begins the types of its records: "chat" gives chat.intent, chat.outcome, chat.refused
    action: AnyMessage
    caller: Caller
    request_id: str
    trace_id: str
    started: float  # monotonic seconds, when the request arrived
    model: str = ""  # as asked for
    request_text: str = ""
    after_untrusted_content: bool = False
    must_log_first: bool = False  # the intent is durable before the act, not beside it
    may_spool: bool = True
    presenter: str = ""  # the part that presents the clearance, where that is not this one
    facts: Mapping[str, str] = field(default_factory=dict)
    """Said in each of its records besides."""


@dataclass(frozen=True, slots=True)
class Logged:
    """A durable record, as its receipt names it."""

    id: str
    is_logged: bool
    index: int | None = None
    leaf_hash: str | None = None
    released_salt: str | None = None

    def to_json(self) -> dict[str, object]:
        """Give the receipt as answers carry it; the proof is fetched by its id."""
        openings = {} if self.released_salt is None else {"released": self.released_salt}
        return {
            "id": self.id,
            "status": "LOGGED" if self.is_logged else "SPOOLED",
            "index": self.index,
            "leaf_hash": self.leaf_hash,
            "openings": openings,
        }


@dataclass(frozen=True, slots=True)
class Served:
    """Who answered, and who was tried."""

    backend: str = ""
    kind: str = ""
    model: str = ""
    base_digest: bytes = b""
    adapter_digest: bytes = b""
    attempts: Sequence[inference_pb2.Attempt] = ()

    @property
    def header(self) -> str:
        """Give `x-kala-attempts`: `lmstudio=CONNECTION_REFUSED, pythia=ok`."""
        if not self.attempts:
            return NO_ATTEMPTS
        return ", ".join(
            f"{attempt.backend.removeprefix('backends/')}={attempt.reason or 'ok'}"
            for attempt in self.attempts
        )

    def attempts_json(self) -> list[dict[str, str | bool]]:
        """Give the attempts as answers carry them; `spliced` where one carried on an earlier one's text."""
        return [
            {
                "backend": attempt.backend,
                "model": attempt.model,
                "outcome": "failed" if attempt.reason else "ok",
                "reason": attempt.reason,
            }
            | ({"spliced": True} if attempt.spliced else {})
            for attempt in self.attempts
        ]


@dataclass(frozen=True, slots=True)
class Fitting:
    """What fitting did to a conversation."""

    strategy: str
    tokens: int
    fitted_tokens: int
    dropped_messages: int
    context_tokens: int | None
    is_estimated: bool

    def to_json(self) -> dict[str, object]:
        """Give it as the `kala` object of an answer carries it."""
        return {
            "strategy": self.strategy,
            "prompt_tokens": self.tokens,
            "fitted_tokens": self.fitted_tokens,
            "dropped_messages": self.dropped_messages,
            "context_tokens": self.context_tokens,
            "estimated": self.is_estimated,
        }


@dataclass(frozen=True, slots=True)
class Ending:
    """How an act ended, for its outcome record."""

    status: Literal["ok", "refused", "cancelled", "error"]
    code: str = ""
    finish_reason: str = ""
    decision: decision_pb2.Decision | None = None
    served: Served = field(default_factory=Served)
    usage: usage_pb2.Usage | None = None
    generated: Answer | None = None
    released: Answer | None = None
    derived_digest: bytes = b""
    rejudged_by: str = ""
    response_chars: int | None = None
    """Characters of what the backend or tool gave; None where it gave no text."""
    elsewhere_seconds: float | None = None
    """Between the call of the actor and its last word; None where it was not called."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Said in its record besides."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What a chat came to, for its reader."""

    stage: Literal["request", "output"]
    answer: Answer
    finish_reason: str = "stop"
    decision: decision_pb2.Decision | None = None
    receipt: Logged | None = None
    intent_id: str | None = None
    served: Served = field(default_factory=Served)
    usage: usage_pb2.Usage | None = None
    closing_text: str = ""  # words that the reader of a stream has not got yet
    error: KalaError | None = None
    overhead_ms: float = 0.0
    tools: Mapping[str, object] | None = None
    """What KALA's own tools did on the way, as the `kala` object carries it."""
    has_acted: bool = False
    """Whether a tool of KALA's has run, or may have: the same request again would run it again."""

    @property
    def is_allowed(self) -> bool:
        """Tell whether the last judgement allowed it."""
        return self.decision is not None and self.decision.outcome == decision_pb2.OUTCOME_ALLOW

    def to_json(self) -> dict[str, object]:
        """Give the `kala` extension object."""
        return {
            **({} if self.tools is None else {"tools": self.tools}),
            "decision": None if self.decision is None else decision_json(self.decision, self.stage),
            "receipt": None if self.receipt is None else self.receipt.to_json(),
            "intent": self.intent_id,
            "attempts": self.served.attempts_json(),
            "backend": self.served.backend or None,
            "overhead_ms": self.overhead_ms,
        }


def decision_json(decision: decision_pb2.Decision, stage: str) -> dict[str, object]:
    """Give a decision as answers carry it."""
    return {
        "id": decision.id,
        "outcome": decision_pb2.Outcome.Name(decision.outcome).removeprefix("OUTCOME_"),
        "stage": stage,
        "law": decision.law if decision.HasField("law") else None,
        "category": decision.category or None,
        "message": decision.message or None,
        "path": list(decision.path),
        "constitution": decision.constitution_digest.hex(),
    }


def refusal_text(decision: decision_pb2.Decision) -> str:
    """Write a judgement for the person: the constitution's own words, then how it was reached."""
    words = decision.message or "This request was not carried out."
    path = "\n".join(f"- {line}" for line in decision.path)
    return f"{words}\n\nHow this was decided:\n{path}" if path else words


def refusal_finish_reason(decision: decision_pb2.Decision) -> str:
    """REFUSE ends with `content_filter`, REDIRECT and ASK with `stop` (decisions: Streams and the API)."""
    return "content_filter" if decision.outcome == decision_pb2.OUTCOME_REFUSE else "stop"
