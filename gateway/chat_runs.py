"""What becomes of a chat once it is read: where it may go, what it needs of others, and the act that is judged.

For chat completions and for responses alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gateway.acts import CHAT_KIND, CHAT_RPC, Act, Fitting
from gateway.adapters import adapters_of
from gateway.chat_action import build_action, has_untrusted_content, request_text
from gateway.fitting import fit
from gateway.limits.estimates import Estimate, estimate_of
from gateway.mid_stream import MidStream, mid_stream_of
from gateway.truncation import Truncation, strategy_of
from services.common.sealing import pack

if TYPE_CHECKING:
    from gateway.chat_schema import ChatRequest
    from gateway.chat_tools import ChatTools
    from gateway.conversations.sessions import OpenSession
    from gateway.destination import Destinations
    from gateway.edge import Exchange
    from gateway.identity import Caller
    from gateway.limits.reservation import Reservation
    from gateway.pipeline import Pipeline
    from gateway.readers import Chats
    from gateway.tool_story import LoopRequest
    from kala.inference.v1 import inference_pb2
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat that was read."""

    request: ChatRequest
    action: inference_pb2.ChatAction
    strategy: str = ""
    """How it is fitted to the model's context; empty where it is not."""
    fitting: Fitting | None = None
    loop: LoopRequest | None = None
    """Set where KALA's tools may be called."""
    session: OpenSession | None = None
    """The stored session that it goes on in."""
    own: ChatRequest | None = None
    """Set there: the request without the session's messages."""
    after_untrusted_content: bool = False
    """Of the conversation as it came: what fitting leaves out has had its say."""

    @property
    def needs_others(self) -> bool:
        """Tell whether other services are asked before it is judged."""
        return bool(self.strategy) or self.request.wants_kala_tools

    @property
    def tool_names(self) -> frozenset[str]:
        """Name the tools that the model may call."""
        return frozenset(tool.name for tool in self.action.tools)


class ChatRuns:
    """Makes acts of chats; one per process."""

    def __init__(
        self,
        *,
        inference: InferenceServiceAsyncStub,
        pipeline: Pipeline,
        tools: ChatTools,
        destinations: Destinations,
        may_spool: bool,
        mid_stream: MidStream = "error",
        truncation: Truncation = "refuse",
    ) -> None:
        self._inference = inference
        self._pipeline = pipeline
        self._tools = tools
        self._destinations = destinations
        self._may_spool = may_spool
        self._mid_stream: MidStream = mid_stream
        self._truncation: Truncation = truncation

    def ask(
        self, request: ChatRequest, headers: Mapping[str, str], *, truncation: Truncation | None = None
    ) -> Asked:
        """Build the action; `headers` say where it may go, and InvalidArgumentError names a wrong one.

        `truncation` stands in place of the setting where the headers do not name one.
        """
        destination = self._destinations.of(headers, request.model or "")
        strategy = strategy_of(headers, default=truncation or self._truncation)
        action = build_action(request, destination)
        action.adapters.extend(adapters_of(headers))
        if action.stream:
            action.mid_stream = mid_stream_of(headers, default=self._mid_stream)
        return Asked(request, action, strategy, after_untrusted_content=has_untrusted_content(action))

    async def prepare(self, asked: Asked, caller: Caller, reservation: Reservation | None = None) -> Asked:
        """Do what a request needs of other services before it is judged: KALA's tools, and fitting.

        What it grows by is set aside in the `reservation`; ResourceExhaustedError where the key may not use so much.
        """
        before = estimate_of(asked.action).input_tokens
        if asked.request.wants_kala_tools:
            loop = await self._tools.prepare(asked.request, asked.action, caller)
            asked = replace(asked, loop=replace(loop, refit=self._tools.refit(asked.strategy)))
        if asked.strategy:
            asked = replace(asked, fitting=await fit(self._inference, asked.action, asked.strategy))
        more = estimate_of(asked.action).input_tokens - before
        if reservation is not None and more > 0:
            await reservation.extend(Estimate(more, 0, asked.action.model))
        return asked

    def act(self, asked: Asked, exchange: Exchange, caller: Caller) -> Act:
        """Give the act that a prepared chat is."""
        action = asked.action
        return Act(
            rpc=CHAT_RPC,
            kind=CHAT_KIND,
            action=pack(action),
            caller=caller,
            request_id=exchange.request_id,
            trace_id=exchange.trace_id,
            started=exchange.started,
            model=action.model,
            request_text=request_text(action),
            after_untrusted_content=asked.after_untrusted_content,
            # A remote backend must not see what is not yet in the log (design section 2).
            must_log_first=action.allow_remote,
            may_spool=self._may_spool,
        )

    def chats(self, asked: Asked, reservation: Reservation | None = None) -> Chats:
        """Give what carries a prepared chat out; the further turns of a loop are set aside in the `reservation`."""
        if asked.loop is None:
            return self._pipeline
        reserve = None if reservation is None else reservation.extend
        return self._tools.loop(replace(asked.loop, reserve=reserve))
