"""Which of KALA's tools a chat request asks for, and how they get among its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gateway.chat_schema import MAX_TOOLS, ChatRequest, ToolLimits
from gateway.fitting import fit
from gateway.pipeline import Pipeline
from gateway.tool_loop import ToolLoop
from gateway.tool_runs import ToolRuns
from gateway.tool_story import LoopLimits, LoopRequest
from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.identity import Caller
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub
    from kala.tools.v1.policy_pb2 import Tool

AUTO: Final = "auto"


class ChatTools:
    """Adds KALA's tools to chats that want them; one per process."""

    def __init__(
        self, *, runs: ToolRuns, pipeline: Pipeline, inference: InferenceServiceAsyncStub, limits: LoopLimits
    ) -> None:
        self._runs = runs
        self._pipeline = pipeline
        self._inference = inference
        self._limits = limits

    async def prepare(self, request: ChatRequest, action: pb.ChatAction, caller: Caller) -> LoopRequest:
        """Put KALA's tools among the request's; raises InvalidArgumentError where they do not go together."""
        theirs = frozenset(tool.function.name for tool in request.tools or ())
        offered = await self._runs.offered(caller)
        _require_apart(theirs, offered)
        action.tools.extend(
            pb.ToolDefinition(
                name=tool.name, description=tool.description, parameters_json=tool.parameters_schema
            )
            for tool in offered
        )
        _require_known(action)
        return LoopRequest(
            action=action,
            ours=tuple(tool.name for tool in offered),
            theirs=theirs,
            workspace=request.kala_workspace or "",
            approvals=tuple((request.kala_approvals or {}).items()),
            limits=_narrowed(self._limits, request.kala_tool_limits),
        )

    def refit(self, strategy: str) -> Refit | None:
        """Give what fits a conversation that has grown, where the request wants that."""
        return Refit(self._inference, strategy) if strategy else None

    def loop(self, request: LoopRequest) -> ToolLoop:
        """Make the loop of one request."""
        return ToolLoop(request, pipeline=self._pipeline, runs=self._runs, limits=request.limits)


def _narrowed(limits: LoopLimits, wanted: ToolLimits | None) -> LoopLimits:
    """Give the limits of one request, which may only be narrower."""
    if wanted is None:
        return limits
    asked = {name: value for name, value in wanted.model_dump().items() if value is not None}
    return replace(limits, **{name: min(value, getattr(limits, name)) for name, value in asked.items()})


class Refit:
    """Fits the conversation before every further turn, as the request said for the first."""

    def __init__(self, inference: InferenceServiceAsyncStub, strategy: str) -> None:
        self._inference = inference
        self._strategy = strategy

    async def __call__(self, action: pb.ChatAction) -> None:
        """Fit in place."""
        await fit(self._inference, action, self._strategy)


def _require_apart(theirs: frozenset[str], offered: Sequence[Tool]) -> None:
    both = sorted(theirs & {tool.name for tool in offered})
    if both:
        raise InvalidArgumentError("tools", f"{both[0]!r} is a tool of KALA's; give yours another name")
    if len(theirs) + len(offered) > MAX_TOOLS:
        raise InvalidArgumentError("tools", f"must be at most {MAX_TOOLS - len(offered)} beside KALA's own")


def _require_known(action: pb.ChatAction) -> None:
    wanted = action.tool_choice.function_name
    if wanted and wanted not in {tool.name for tool in action.tools}:
        raise InvalidArgumentError("tool_choice.function.name", f"{wanted[:64]!r} is not among the tools")
