"""One client waiting for one generation, whole or as a stream: what it gets, and when.  For chats and completions alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gateway.acts import Act, Conclusion, Logged
from gateway.answer import Release
from gateway.chat_answer import EVENT_STREAM
from gateway.edge import Exchange
from gateway.pipeline import OnChatRelease, Progress
from kala.errors import KalaError
from kala.inference.v1 import inference_pb2

Write = Callable[[Conclusion, Sequence[inference_pb2.TokenLogprob]], dict[str, Any]]  # Any: JSON
"""Writes a whole answer; its log probabilities come beside it."""


class Chats(Protocol):
    """Carries out a chat: the pipeline once, or a loop over it that runs tools on the way."""

    async def chat(
        self, act: Act, *, declared_tools: frozenset[str], is_stream: bool, on_release: OnChatRelease
    ) -> Conclusion:
        """Carry out one chat."""
        ...


class Chunks(Protocol):
    """Writes the pieces of one stream."""

    def released(self, release: Release) -> bytes:
        """Write what may leave now."""
        ...

    def served_by(self, model: str) -> None:
        """Name the model that answers from now on."""
        ...

    def concluded(self, conclusion: Conclusion) -> bytes:
        """Write the end."""
        ...

    def failed(self, error: KalaError, conclusion: Conclusion) -> bytes:
        """Write the error event that ends a stream."""
        ...


class _Reader:
    def __init__(self, exchange: Exchange, chats: Chats, *, declared_tools: frozenset[str]) -> None:
        self._exchange = exchange
        self._chats = chats
        self._declared_tools = declared_tools

    async def _carry_out(self, act: Act, on_release: OnChatRelease, *, is_stream: bool) -> Conclusion:
        conclusion = await self._chats.chat(
            act, declared_tools=self._declared_tools, is_stream=is_stream, on_release=on_release
        )
        if self._exchange.reservation is not None:
            self._exchange.reservation.conclude(conclusion)
        return conclusion

    def _note(self, conclusion: Conclusion) -> None:
        self._exchange.receipt = conclusion.receipt
        self._exchange.served = conclusion.served
        self._exchange.overhead_ms = conclusion.overhead_ms
        self._exchange.has_acted = conclusion.has_acted


class Whole(_Reader):
    """Waits for everything."""

    def __init__(
        self,
        exchange: Exchange,
        chats: Chats,
        write: Write,
        *,
        declared_tools: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(exchange, chats, declared_tools=declared_tools)
        self._write = write

    async def run(self, act: Act) -> None:
        """Answer with one JSON object."""
        logprobs: list[inference_pb2.TokenLogprob] = []

        async def collect(release: Release, _progress: Progress) -> None:
            logprobs.extend(release.logprobs)

        conclusion = await self._carry_out(act, collect, is_stream=False)
        self._note(conclusion)
        if conclusion.error is not None:
            raise conclusion.error
        await self._exchange.send_json(
            200, self._write(conclusion, logprobs if conclusion.is_allowed else ())
        )


class Stream(_Reader):
    """Reads chunks as they are released."""

    def __init__(
        self,
        exchange: Exchange,
        chats: Chats,
        chunks: Chunks,
        *,
        declared_tools: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(exchange, chats, declared_tools=declared_tools)
        self._chunks = chunks

    async def run(self, act: Act) -> None:
        """Answer with server-sent events; the headers wait for the first words, so that a failure before keeps its status."""
        conclusion = await self._carry_out(act, self._pass_on, is_stream=True)
        if not self._exchange.has_begun:
            self._note(conclusion)
            if conclusion.error is not None:
                raise conclusion.error
            if conclusion.intent_id is not None:
                self._exchange.receipt = Logged(conclusion.intent_id, is_logged=True)
            await self._begin(conclusion)
        if conclusion.error is not None:
            await self._exchange.send_part(self._chunks.failed(conclusion.error, conclusion))
        else:
            await self._exchange.send_part(self._chunks.concluded(conclusion))
        await self._exchange.end_stream()

    async def _begin(self, conclusion: Conclusion) -> None:
        await self._exchange.begin_stream(EVENT_STREAM)
        if conclusion.stage == "request" and conclusion.answer.text:
            await self._exchange.send_part(self._chunks.released(Release(text=conclusion.answer.text)))

    async def _pass_on(self, release: Release, progress: Progress) -> None:
        if not self._exchange.has_begun:
            self._exchange.receipt = Logged(progress.intent_id, is_logged=True)
            self._exchange.served = progress.served
            self._exchange.overhead_ms = progress.overhead_ms
            self._chunks.served_by(progress.served.model)
            await self._exchange.begin_stream(EVENT_STREAM)
        if self._exchange.reservation is not None:
            self._exchange.reservation.given_bytes += release.size
        await self._exchange.send_part(self._chunks.released(release))
