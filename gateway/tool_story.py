"""What has happened in one loop of a model and its tools, and what of it the reader is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.acts import Conclusion, Logged, Served
from gateway.answer import MAX_BEFORE_CHARS, Answer, Release, ToolCallText, ToolPiece
from gateway.limits.estimates import Estimate
from gateway.pipeline import OnChatRelease, Progress
from gateway.tool_runs import ToolEnd
from kala.common.v1 import usage_pb2
from kala.errors import KalaError
from kala.inference.v1 import inference_pb2 as pb

Json = dict[str, Any]  # Any: JSON

PARAGRAPH: Final = "\n\n"
"""Parts the messages of one stream, whose readers join all text."""

_SUMMED: Final = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True)
class LoopLimits:
    """How far one request may go."""

    turns: int
    """Of the model; in the last one it may call nothing."""
    calls: int
    result_chars: int
    """Of one result, for the model; the rest is left out in the middle."""
    seconds: float
    tokens: int
    """Of all turns together: once they are used no further turn begins."""


@dataclass(frozen=True, slots=True)
class LoopRequest:
    """What a request says about the tools, beside the act."""

    action: pb.ChatAction
    """With KALA's tools among its own; the loop adds the messages."""
    ours: tuple[str, ...]
    """Names of KALA's tools."""
    theirs: frozenset[str]
    """Names of the client's."""
    limits: LoopLimits
    workspace: str = ""
    approvals: tuple[tuple[str, str], ...] = ()
    """Ids of calls, each with the approval that a person gave."""
    refit: Callable[[pb.ChatAction], Awaitable[object]] | None = None
    """Fits the conversation that has grown."""
    reserve: Callable[[Estimate], Awaitable[None]] | None = None
    """Sets aside what a further turn may use; raises ResourceExhaustedError where the key may not use so much."""


class Story:
    """What has happened in one loop, and what of it the reader is told."""

    def __init__(
        self, request: LoopRequest, declared: frozenset[str], *, is_stream: bool, on_release: OnChatRelease
    ) -> None:
        self.request = request
        self.declared = declared
        self.is_stream = is_stream
        self._on_release = on_release
        self._held: list[tuple[Release, Progress]] = []
        self._progress: Progress | None = None
        self._has_text = False
        self.turns: list[Conclusion] = []
        self.ends: list[ToolEnd] = []
        self.messages: list[Json] = []
        self.stopped = ""
        self.has_acted = False
        self.said = ""
        """The end of the words so far: the next turn's are checked together with it, for readers join them."""

    @property
    def has_begun(self) -> bool:
        """Tell whether a turn is over or a call was begun, or words of one have left."""
        return bool(self.turns or self.ends or self._progress or self.has_acted)

    @property
    def overhead_ms(self) -> float:
        """Sum up what the platform added."""
        added = [turn.overhead_ms for turn in self.turns] + [end.overhead_ms for end in self.ends]
        return round(sum(added), 3)

    async def release(self, release: Release, progress: Progress) -> None:
        """Take what a turn released: words leave a stream at once, calls wait until it is known whose they are."""
        self._progress = progress
        self._note_said(release.text)
        words = replace(release, tool_calls=())
        if not self.is_stream:
            self._held.append((words, progress))
        elif words:
            self._has_text = self._has_text or bool(words.text)
            await self._on_release(words, progress)

    def _note_said(self, text: str) -> None:
        self.said = (self.said + text)[-MAX_BEFORE_CHARS:]

    async def last_words(self) -> None:
        """Let the last turn's own details out to the reader of a whole answer; earlier turns' stand in the messages."""
        for release, progress in self._held:
            await self._on_release(release, progress)

    def next_turn(self) -> None:
        """Forget the details of a turn that was not the last."""
        self._held.clear()

    async def tell_calls(self, calls: Iterable[ToolPiece]) -> None:
        """Give the reader of a stream the calls that are left to it."""
        if self.is_stream:
            await self._on_release(Release(tool_calls=tuple(calls)), self._now())

    async def tell_step(self, end: ToolEnd, content: str) -> None:
        """Tell the reader of a stream what a call came to."""
        if not self.is_stream:
            return
        step = {**end.to_json(), "arguments": end.call.arguments, "result": content}
        # Fixed words: nothing that a check has to cover.
        text, self._has_text = (PARAGRAPH if self._has_text else ""), False
        self._note_said(text)
        await self._on_release(Release(text=text, step=step), self._now())

    def _now(self) -> Progress:
        if self._progress is not None:
            return replace(self._progress, overhead_ms=self.overhead_ms)
        intent = next((end.intent_id for end in self.ends if end.intent_id), "")
        return Progress(intent, Served(), self.overhead_ms)

    def failed(self, error: KalaError, receipt: Logged | None = None) -> Conclusion:
        """Conclude a loop that cannot go on."""
        last = self.turns[-1] if self.turns else Conclusion("output", Answer())
        return self.concluded(
            replace(
                last, stage="output", answer=Answer(), error=error, receipt=receipt or self._last_receipt()
            )
        )

    def concluded(self, last: Conclusion, *, left: Sequence[ToolPiece] = ()) -> Conclusion:
        """Conclude with the last turn, all usage and all steps; `left` are calls that nobody has carried out."""
        if left:
            calls = {piece.index: ToolCallText(piece.id, piece.name, piece.arguments) for piece in left}
            last = replace(last, answer=replace(last.answer, tool_calls=calls), finish_reason="tool_calls")
        if last.stage == "request" and self.is_stream and self.ends:
            # The stream has begun, so its reader has none of these words yet.
            last = replace(last, closing_text=last.answer.text)
        return replace(
            last,
            usage=_total(self.turns),
            overhead_ms=self.overhead_ms,
            tools=self._to_json(),
            has_acted=self.has_acted,
            receipt=last.receipt or self._last_receipt(),
        )

    def _last_receipt(self) -> Logged | None:
        receipts = [end.receipt for end in self.ends if end.receipt is not None]
        return receipts[-1] if receipts else None

    def _to_json(self) -> Json:
        waiting = [
            {
                "call_id": end.call.id,
                "tool": end.call.name,
                "approval": end.approval,
                "reason": "" if end.exit is None else end.exit.reason,
            }
            for end in self.ends
            if end.approval
        ]
        return {
            "steps": [end.to_json() for end in self.ends],
            "turns": [
                {
                    "intent": turn.intent_id,
                    "receipt": None if turn.receipt is None else turn.receipt.to_json(),
                    "backend": turn.served.backend or None,
                }
                for turn in self.turns
            ],
            "messages": self.messages,
            "requires_action": {"type": "approval", "approvals": waiting} if waiting else None,
            "stopped": self.stopped or None,
        }


def _total(turns: Sequence[Conclusion]) -> usage_pb2.Usage | None:
    """Add up what the backends counted, of the turns in which they did."""
    counted = [turn.usage for turn in turns if turn.usage is not None]
    if not counted:
        return None
    total = usage_pb2.Usage()
    for name in _SUMMED:
        if any(usage.HasField(name) for usage in counted):
            setattr(total, name, sum(getattr(usage, name) for usage in counted))
    return total
