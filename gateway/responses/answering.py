"""One client waiting for one response, whole or as a stream of events: what it gets, and when."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from gateway.acts import Logged
from gateway.answer import Release
from gateway.responses.events import EventWriter
from gateway.responses.output import Frame, Json, output_of
from kala.errors import KalaError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway.acts import Act, Conclusion
    from gateway.chat_runs import Asked
    from gateway.edge import Exchange
    from gateway.pipeline import Progress
    from gateway.readers import Chats
    from gateway.responses.ids import ItemIds
    from gateway.responses.keeping import Kept
    from kala.inference.v1 import inference_pb2

EVENT_STREAM: Final = "text/event-stream; charset=utf-8"

REFUSED: Final = "content_filter"


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be answered."""

    frame: Frame
    ids: ItemIds
    asked: Asked
    items: Sequence[Json]
    """The request's own input."""
    earlier: Mapping[str, tuple[str, str]]
    """Calls of the conversation before: name and arguments by id."""

    def prepared(self, asked: Asked) -> Order:
        """Give the order of a chat for which others did what it needs."""
        return replace(self, asked=asked)

    def whole(self, conclusion: Conclusion, logprobs: Sequence[inference_pb2.TokenLogprob], now: int) -> Json:
        """Write a whole response."""
        output = output_of(conclusion, self.ids, logprobs if conclusion.is_allowed else (), self.earlier)
        return self.frame.concluded(conclusion, output, self.kala(conclusion), now)

    def kala(self, conclusion: Conclusion) -> Mapping[str, object]:
        """Write the `kala` object; what tools did stands in the output's items."""
        said: dict[str, Any] = dict(conclusion.to_json())  # Any: JSON
        if "tools" in said:
            said["tools"] = {key: value for key, value in said["tools"].items() if key != "messages"}
        return said if self.asked.fitting is None else {**said, "fitted": self.asked.fitting.to_json()}


class Answering:
    """Answers one request."""

    def __init__(
        self, exchange: Exchange, chats: Chats, order: Order, kept: Kept, *, clock: Callable[[], float]
    ) -> None:
        self._exchange = exchange
        self._chats = chats
        self._order = order
        self._kept = kept
        self._clock = clock
        self._writer = EventWriter(order.frame, order.ids, earlier=order.earlier)

    async def run(self, act: Act) -> None:
        """Answer; what is stored is stored before the client hears of the end."""
        order = self._order
        body = order.frame.response("in_progress", ())
        await self._kept.begin(list(order.items), body, order.frame.request.previous_response_id)
        try:
            if order.frame.request.stream:
                await self._stream(act)
            else:
                await self._whole(act)
        except asyncio.CancelledError:
            self._kept.cancelled(order.frame.cancelled(self._writer.items))
            raise
        except Exception:
            if self._exchange.has_begun:
                self._kept.cancelled(order.frame.cancelled(self._writer.items))
            else:
                await self._kept.drop()
            raise

    async def _whole(self, act: Act) -> None:
        logprobs: list[inference_pb2.TokenLogprob] = []

        async def collect(release: Release, _progress: Progress) -> None:
            logprobs.extend(release.logprobs)

        conclusion = await self._carry_out(act, collect, is_stream=False)
        self._note(conclusion)
        if conclusion.error is not None:
            raise conclusion.error
        body = self._order.whole(conclusion, logprobs, int(self._clock()))
        await self._kept.finish(body, is_refused=conclusion.finish_reason == REFUSED)
        await self._exchange.send_json(200, body)

    async def _stream(self, act: Act) -> None:
        conclusion = await self._carry_out(act, self._pass_on, is_stream=True)
        if not self._exchange.has_begun:
            self._note(conclusion)
            if conclusion.error is not None:
                raise conclusion.error
            if conclusion.intent_id is not None:
                self._exchange.receipt = Logged(conclusion.intent_id, is_logged=True)
            self._writer.served_by(conclusion.served.model)
            await self._exchange.begin_stream(EVENT_STREAM)
            if conclusion.stage == "request" and conclusion.answer.text:
                await self._exchange.send_part(self._writer.released(Release(text=conclusion.answer.text)))
        await self._end(conclusion)
        await self._exchange.end_stream()

    async def _end(self, conclusion: Conclusion) -> None:
        kala = self._order.kala(conclusion)
        error = conclusion.error
        if error is None:
            await self._exchange.send_part(self._writer.last_words(conclusion))
            body = self._order.frame.concluded(conclusion, self._writer.items, kala, int(self._clock()))
        else:
            body = self._writer.failed(error, kala=dict(kala))
        try:
            await self._kept.finish(body, is_refused=conclusion.finish_reason == REFUSED)
        except KalaError as unkept:
            # Nobody could ask for it again, so it is not a response that came to be.
            body = self._writer.failed(unkept, kala=dict(kala))
        await self._exchange.send_part(self._writer.end(body))

    async def _pass_on(self, release: Release, progress: Progress) -> None:
        if not self._exchange.has_begun:
            self._exchange.receipt = Logged(progress.intent_id, is_logged=True)
            self._exchange.served = progress.served
            self._exchange.overhead_ms = progress.overhead_ms
            self._writer.served_by(progress.served.model)
            await self._exchange.begin_stream(EVENT_STREAM)
        if self._exchange.reservation is not None:
            self._exchange.reservation.given_bytes += release.size
        await self._exchange.send_part(self._writer.released(release))

    async def _carry_out(
        self, act: Act, on_release: Any, *, is_stream: bool
    ) -> Conclusion:  # Any: OnChatRelease
        conclusion = await self._chats.chat(
            act, declared_tools=self._order.asked.tool_names, is_stream=is_stream, on_release=on_release
        )
        if self._exchange.reservation is not None:
            self._exchange.reservation.conclude(conclusion)
        return conclusion

    def _note(self, conclusion: Conclusion) -> None:
        self._exchange.receipt = conclusion.receipt
        self._exchange.served = conclusion.served
        self._exchange.overhead_ms = conclusion.overhead_ms
        self._exchange.has_acted = conclusion.has_acted
