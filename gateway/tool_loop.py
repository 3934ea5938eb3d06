"""The server-side tool loop: ask the model, run the tools of KALA's that it calls, tell it the results, ask again.

Every turn of the model is a chat of its own and every call an act of its own, each judged, logged before and after, and
checked; `pipeline.py` and `tool_runs.py` hold those invariants, this module only takes one step after the other.
It keeps nothing: where a person must approve a call, the answer names the approval, and the same conversation with it
goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from gateway.acts import Act, Conclusion
from gateway.answer import TOO_MANY_CALLS, Answer, ToolPiece
from gateway.chat_schema import MAX_ID_CHARS, MAX_TOOLS
from gateway.limits.estimates import estimate_of, tokens_of
from gateway.pipeline import OnChatRelease, Pipeline, Recorded
from gateway.tool_runs import Errand, ToolCall, ToolEnd, ToolRuns, over_budget, unknown_tool
from gateway.tool_story import LoopLimits, LoopRequest, Story
from kala.errors import DeadlineExceededError, KalaError, ResourceExhaustedError, UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from services.common.sealing import pack


class ToolLoop:
    """One chat with tools; made for one request."""

    def __init__(
        self,
        request: LoopRequest,
        *,
        pipeline: Pipeline,
        runs: ToolRuns,
        limits: LoopLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request = request
        self._pipeline = pipeline
        self._runs = runs
        self._limits = limits
        self._clock = clock

    async def chat(
        self, act: Act, *, declared_tools: frozenset[str], is_stream: bool, on_release: OnChatRelease
    ) -> Conclusion:
        """Carry out the chat; once a step was taken, failures stand in the conclusion, as the pipeline's own do."""
        story = Story(self._request, declared_tools, is_stream=is_stream, on_release=on_release)
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await _Loop(self._pipeline, self._runs, self._limits, self._clock, act, story).run()
        except TimeoutError as late:
            error: KalaError = DeadlineExceededError(
                f"the model and its tools took more than {self._limits.seconds:g} s together",
                reason="MAX_ACT_SECONDS",
            )
            if not story.has_begun:
                raise error from late
            return story.failed(error)
        except Recorded as recorded:
            if not story.has_begun:
                raise
            return story.failed(recorded.error, recorded.receipt)
        except KalaError as error:
            if not story.has_begun:
                raise
            return story.failed(error)


class _Loop:
    """Takes the steps."""

    def __init__(
        self,
        pipeline: Pipeline,
        runs: ToolRuns,
        limits: LoopLimits,
        clock: Callable[[], float],
        act: Act,
        story: Story,
    ) -> None:
        self._pipeline = pipeline
        self._runs = runs
        self._limits = limits
        self._clock = clock
        self._act = act
        self._story = story
        self._request = story.request
        self._action = story.request.action
        self._errand = Errand(act, story.request.workspace, dict(story.request.approvals))
        self._calls = 0
        self._used = 0
        self._after_untrusted = act.after_untrusted_content

    async def run(self) -> Conclusion:
        """Go on until the model is done, a person or the client must act, or the budget is used up."""
        left = await self._carry_out(unanswered(self._action, self._request.theirs))
        # A person approved what waited; a call that comes from here on is another one, whatever its id.
        self._errand = replace(self._errand, approvals={})
        if left:
            await self._story.tell_calls(left)
            return self._story.concluded(Conclusion("output", Answer()), left=left)
        while True:
            turn = await self._turn()
            self._story.turns.append(turn)
            calls = self._calls_of(turn)
            if not calls or turn.error is not None or not turn.is_allowed or turn.finish_reason == "length":
                await self._story.last_words()
                return self._story.concluded(turn)
            self._say_assistant(turn, calls)
            self._story.stopped = await self._end(calls)
            left = list(calls) if self._story.stopped else await self._carry_out(calls)
            if left:
                await self._story.last_words()
                await self._story.tell_calls(left)
                return self._story.concluded(turn, left=left)
            self._story.next_turn()

    async def _turn(self) -> Conclusion:
        """Let the model speak once."""
        number = len(self._story.turns) + 1
        if number > 1 or self._story.ends:
            if self._action.tool_choice.mode in {pb.TOOL_CHOICE_MODE_REQUIRED, pb.TOOL_CHOICE_MODE_NAMED}:
                # The demand is met; repeated, it would never let the model answer.
                self._action.tool_choice.CopyFrom(pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_AUTO))
            if self._request.refit is not None:
                await self._request.refit(self._action)
        if number >= self._limits.turns:
            self._action.tool_choice.CopyFrom(pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NONE))
        estimate = estimate_of(self._action)
        act = replace(
            self._act,
            action=pack(self._action),
            started=self._act.started if number == 1 and not self._story.ends else self._clock(),
            after_untrusted_content=self._after_untrusted,
            facts={"loop.turn": str(number)},
        )
        turn = await self._pipeline.chat(
            act,
            declared_tools=self._story.declared,
            is_stream=self._story.is_stream,
            on_release=self._story.release,
            before=self._story.said,
        )
        self._used += sum(tokens_of(turn.usage, estimate))
        return turn

    async def _end(self, calls: Sequence[ToolPiece]) -> str:
        """Tell by what a loop ends whose model wants more, before any of its calls runs; empty where it goes on."""
        if len(self._story.turns) >= self._limits.turns:
            return "turns"
        if self._used >= self._limits.tokens:
            return "tokens"
        is_clients_turn = any(call.name in self._request.theirs for call in calls)
        if self._request.reserve is not None and not is_clients_turn:
            try:
                await self._request.reserve(estimate_of(self._action))
            except ResourceExhaustedError:
                return "budget"
        return ""

    async def _carry_out(self, calls: Sequence[ToolPiece]) -> list[ToolPiece]:
        """Run what is ours, one after the other, and give what is left to others: the client, or a person."""
        left: list[ToolPiece] = []
        for piece in calls:
            if piece.name in self._request.theirs:
                left.append(piece)
                continue
            call = ToolCall(piece.id, piece.name, piece.arguments)
            end = await self._end_of(call)
            self._story.ends.append(end)
            if end.approval:
                left.append(piece)
                await self._story.tell_step(end, "")
                continue
            content = _shortened(end.content, self._limits.result_chars)
            self._say_result(call, content)
            await self._story.tell_step(end, content)
        return left

    async def _end_of(self, call: ToolCall) -> ToolEnd:
        if call.name not in self._request.ours:
            return unknown_tool(call, [*self._request.ours, *sorted(self._request.theirs)])
        self._calls += 1
        if self._calls > self._limits.calls:
            self._story.stopped = "calls"
            return over_budget(call, self._limits.calls)
        self._story.has_acted = True
        return await self._runs.run(
            call,
            self._errand,
            after_untrusted=self._after_untrusted,
            facts={"loop.turn": str(len(self._story.turns))},
        )

    def _calls_of(self, turn: Conclusion) -> list[ToolPiece]:
        """Give a turn's calls, each under an id that no other call of the conversation has; UnavailableError for too many."""
        called = turn.answer.tool_calls
        if len(called) > MAX_TOOLS:
            raise UnavailableError(
                f"the model called {len(called)} tools at once, and a message holds {MAX_TOOLS} calls",
                reason=TOO_MANY_CALLS,
            )
        taken = {call.id for message in self._action.messages for call in message.tool_calls}
        pieces: list[ToolPiece] = []
        for index, call in sorted(called.items()):
            own = _own_id(call.id, f"call_{len(self._story.turns)}_{index}", taken)
            taken.add(own)
            pieces.append(ToolPiece(index, own, call.name, call.arguments))
        return pieces

    def _say_assistant(self, turn: Conclusion, calls: Sequence[ToolPiece]) -> None:
        message = self._action.messages.add(role=pb.ROLE_ASSISTANT)
        if turn.answer.text:
            message.content.add(text=turn.answer.text)
        message.tool_calls.extend(
            pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments, index=call.index)
            for call in calls
        )
        self._story.messages.append(
            {
                "role": "assistant",
                "content": turn.answer.text or None,
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                    for call in calls
                ],
            }
        )

    def _say_result(self, call: ToolCall, content: str) -> None:
        # Also where the result is left out later to fit the conversation: the model has read it.
        self._after_untrusted = True
        message = self._action.messages.add(role=pb.ROLE_TOOL, tool_call_id=call.id)
        message.content.add(text=content)
        self._story.messages.append({"role": "tool", "tool_call_id": call.id, "content": content})


def unanswered(action: pb.ChatAction, theirs: frozenset[str]) -> list[ToolPiece]:
    """Give the calls of KALA's tools with which a conversation ends and that no message answers."""
    answered: set[str] = set()
    for message in reversed(action.messages):
        if message.role == pb.ROLE_TOOL:
            answered.add(message.tool_call_id)
            continue
        return [
            ToolPiece(call.index, call.id, call.name, call.arguments)
            for call in message.tool_calls
            if call.id not in answered and call.name not in theirs
        ]
    return []


def _own_id(given: str, default: str, taken: Collection[str]) -> str:
    """Give a call's id as its backend did, or another where that one is taken or none that a client may send back."""
    if given and len(given) <= MAX_ID_CHARS and given not in taken:
        return given
    return next(
        found
        for found in (f"{default}{f'_{again}' if again else ''}" for again in itertools.count())
        if found not in taken
    )


def _shortened(text: str, most: int) -> str:
    """Leave out the middle of a text that is too long for a model."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"
