"""One generation: reads the backend, has every word checked while it comes, and lets out only what is checked."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
import orjson
from google.protobuf.message import DecodeError

from gateway.acts import Act, Served
from gateway.answer import MAX_CHUNK_CHARS, AnswerBuffer, Release
from gateway.completion_call import open_generation
from gateway.errors import BACKENDS_UNAVAILABLE, ETHICS_UNAVAILABLE, MODEL_NOT_FOUND
from gateway.judge import UNAVAILABLE_TEXT, EthicsClient, ethics_failure
from gateway.output_check import CHARS_A_SECOND, in_checked_words
from gateway.release import Piece, Track
from kala.common.v1 import clearance_pb2, decision_pb2
from kala.errors import KalaError, NotFoundError, UnavailableError
from kala.ethics.v1 import ethics_pb2
from kala.inference.v1 import inference_pb2
from services.common.status import from_error

if TYPE_CHECKING:
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub

ATTEMPTS_METADATA_KEY: Final = "kala-attempts-bin"
"""Trailing metadata in which inference lists the attempts of a failed Chat, as a serialised ChatFinish."""

ALL_BACKENDS_FAILED: Final = "ALL_BACKENDS_FAILED"
ANSWER_TOO_LONG: Final = "ANSWER_TOO_LONG"

MAX_WORDS_BYTES: Final = 8 * 1024 * 1024
"""The longest answer, spelled as JSON: what was generated and what was released must fit into one record of the log."""

MAX_TAKEN_BYTES: Final = 64 * 1024 * 1024
"""As much as one answer may hold in memory, its log probabilities included."""

OnRelease = Callable[[Release], Awaitable[None]]
Call: TypeAlias = Any  # grpc.aio types its call objects loosely


@dataclass(frozen=True, slots=True)
class HoldBounds:
    """How much generated text may wait, and how long, before its check starts; only a finished check releases."""

    characters: int
    seconds: float


WHOLE: Final = HoldBounds(characters=4_096, seconds=0.25)
"""For an answer that nobody reads before its end: fewer and larger checks, still beside the generation."""


@dataclass(slots=True)
class GenerationState:
    """What is known so far; whole after `Generation.run` returned."""

    served: Served = field(default_factory=Served)
    finish: inference_pb2.ChatFinish | None = None
    derived_digest: bytes = b""  # of what inference added to the judged request, also where it failed
    decision: decision_pb2.Decision | None = None
    began_at: float = 0.0  # monotonic seconds: when the backend was called
    ended_at: float = 0.0  # when it was last heard


class Generation:
    """Runs once."""

    def __init__(
        self,
        act: Act,
        sealed: clearance_pb2.SealedAction,
        decision_id: str,
        *,
        ethics: EthicsClient,
        inference: InferenceServiceAsyncStub,
        buffer: AnswerBuffer,
        hold: HoldBounds,
        max_act_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._act = act
        self._sealed = sealed
        self._decision_id = decision_id
        self._ethics = ethics
        self._inference = inference
        self._buffer = buffer
        self._bounds = hold
        self._max_act_seconds = max_act_seconds
        self._clock = clock
        self._over = asyncio.Event()
        self._error: BaseException | None = None
        self._writing = asyncio.Lock()  # gRPC takes one write at a time
        self._releasing = asyncio.Lock()  # held while words are on their way to the reader
        self._flush: asyncio.Task[None] | None = None
        self._is_flushing = False  # the check has a flush that it has not answered yet
        self._is_late = False  # text has waited as long as it may, for the answer to that flush
        self._hold: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._check: Call = None
        self._words_bytes = 0
        self._taken_bytes = 0
        self.state = GenerationState()

    def fail(self, error: BaseException) -> None:
        """End the generation: nothing more leaves, and `run` raises the error."""
        if not self._over.is_set():
            self._error = error
            self._over.set()

    async def run(self, on_release: OnRelease) -> None:
        """Generate until ethics has the last word; raises KalaError when the backend or ethics fails.

        On return `state.decision` is set; with ALLOW everything has left, with anything else no more may.
        """
        self.state.began_at = self.state.ended_at = self._clock()
        chat = open_generation(
            self._inference, self._act.rpc, self._sealed, timeout_seconds=self._max_act_seconds
        )
        self._check = self._ethics.open_check()
        readers: list[asyncio.Task[None]] = []
        try:
            await self._send(self._start())
            readers = [
                asyncio.ensure_future(self._read_chat(chat)),
                asyncio.ensure_future(self._read_check(on_release)),
            ]
            for reader in readers:
                reader.add_done_callback(self._note_failure)
            await self._over.wait()
            # What is on its way out gets there, so that the record says exactly what left.
            async with self._releasing:
                pass
        finally:
            self._stop(chat, readers)
        if self._error is not None:
            raise self._error

    def _stop(self, chat: Call, readers: list[asyncio.Task[None]]) -> None:
        """Cancel what still runs; calls that end by themselves are left alone, so that both sides count them as OK."""
        self._over.set()
        self._stop_timers()
        if self.state.finish is None:
            self.state.ended_at = self._clock()
            chat.cancel()
        if self.state.decision is None:
            self._check.cancel()
        for reader, is_done in zip(readers, (self.state.finish, self.state.decision), strict=False):
            if is_done is None:
                reader.cancel()

    def _note_failure(self, reader: asyncio.Task[None]) -> None:
        if not reader.cancelled() and (error := reader.exception()) is not None:
            self.fail(error)

    def _start(self) -> ethics_pb2.CheckOutputRequest:
        return ethics_pb2.CheckOutputRequest(
            start=ethics_pb2.OutputStart(
                decision_id=self._decision_id,
                request_text=self._act.request_text,
                principal=self._act.caller.principal,
            )
        )

    async def _read_chat(self, chat: Call) -> None:
        try:
            async for response in chat:
                if self._releasing.locked():
                    # A slow reader holds the backend back, by gRPC's flow control.
                    async with self._releasing:
                        pass
                await self._take_chat(response)
        except grpc.RpcError as error:
            tried = tried_of(error)
            self.state.derived_digest = tried.derived_digest
            if tried.attempts:
                self.state.served = replace(self.state.served, attempts=tuple(tried.attempts))
            raise await in_checked_words(
                self._ethics, self._act, self._decision_id, backend_failure(error)
            ) from error
        if self.state.finish is None:
            raise UnavailableError("the backend's answer ended in the middle", reason="BACKEND_STREAM_CUT")

    async def _read_check(self, on_release: OnRelease) -> None:
        try:
            async for response in self._check:
                if not response.HasField("decision"):
                    await self._take_checked(response.checked, on_release)
                    continue
                await self._take_decision(response, on_release)
                self._over.set()
                return
        except grpc.RpcError as error:
            raise ethics_failure(error) from error
        raise UnavailableError(UNAVAILABLE_TEXT, reason=ETHICS_UNAVAILABLE)

    async def _take_chat(self, response: inference_pb2.ChatResponse) -> None:
        self.state.ended_at = self._clock()
        if response.HasField("route"):
            self.state.served = served_by(response.route)
        self._require_room(response)
        if response.HasField("delta"):
            self._buffer.take_in(response.delta)
        if response.HasField("finish"):
            await self._take_finish(response.finish)
            return
        if self._hold is None and self._buffer.held:
            self._hold = asyncio.get_running_loop().call_later(self._bounds.seconds, self._check_now)
        if self._buffer.unsent >= self._bounds.characters:
            # The clock runs already: a judge that stopped reading lets no write end.
            await self._send_unsent()

    def _require_room(self, response: inference_pb2.ChatResponse) -> None:
        """End an answer that its record could not hold: a backend that never stops must not leave without one."""
        self._words_bytes += _words_bytes(response.delta)
        self._taken_bytes += response.ByteSize()
        if self._words_bytes > MAX_WORDS_BYTES or self._taken_bytes > MAX_TAKEN_BYTES:
            raise UnavailableError(
                f"the backend's answer is longer than {MAX_WORDS_BYTES} bytes", reason=ANSWER_TOO_LONG
            )

    async def _take_finish(self, finish: inference_pb2.ChatFinish) -> None:
        self.state.finish = finish
        self.state.derived_digest = finish.derived_digest
        if finish.attempts:
            self.state.served = replace(self.state.served, attempts=tuple(finish.attempts))
        self._stop_timers()
        self._await_answer()
        if self._buffer.unsent > MAX_CHUNK_CHARS:
            await self._send_unsent()
        async with self._writing:
            last = ethics_pb2.OutputFinish(chunks=map(_chunk, self._buffer.take_unsent()))
            await self._write(ethics_pb2.CheckOutputRequest(finish=last))

    async def _take_checked(self, checked: Iterable[ethics_pb2.CheckedUpTo], on_release: OnRelease) -> None:
        self._stop_patience()
        self._is_flushing = False
        if self._is_late:
            self._check_now()
        self._note_checked(checked)
        await self._let_out(on_release, is_final=False)
        if self.state.finish is not None:
            self._await_answer()

    def _note_checked(self, checked: Iterable[ethics_pb2.CheckedUpTo]) -> None:
        for further in checked:
            self._buffer.check(Track(further.channel, further.index), further.characters)

    async def _take_decision(self, response: ethics_pb2.CheckOutputResponse, on_release: OnRelease) -> None:
        self._stop_patience()
        decision = response.decision
        if decision.outcome == decision_pb2.OUTCOME_ALLOW:
            self._note_checked(response.checked)
            await self._let_out(on_release, is_final=True)
            if self.state.finish is None or self._buffer.held:
                # An ALLOW that does not cover every word is no ALLOW of this answer.
                raise UnavailableError(UNAVAILABLE_TEXT, reason=ETHICS_UNAVAILABLE)
        elif decision.outcome == decision_pb2.OUTCOME_UNSPECIFIED:
            raise UnavailableError(UNAVAILABLE_TEXT, reason=ETHICS_UNAVAILABLE)
        self.state.decision = decision

    async def _let_out(self, on_release: OnRelease, *, is_final: bool) -> None:
        async with self._releasing:
            if self._over.is_set():
                return
            release = self._buffer.release(is_final=is_final)
            if release:
                await on_release(release)

    def _await_answer(self) -> None:
        """Wait for ethics only so long: a hung judge must not hold an answer for 15 minutes."""
        self._stop_patience()
        late = UnavailableError(UNAVAILABLE_TEXT, reason=ETHICS_UNAVAILABLE)
        seconds = self._ethics.timeout_seconds + self._buffer.held / CHARS_A_SECOND
        self._patience = asyncio.get_running_loop().call_later(seconds, self.fail, late)

    async def _send(self, request: ethics_pb2.CheckOutputRequest) -> None:
        async with self._writing:
            await self._write(request)

    async def _send_unsent(self) -> None:
        """Give the check what waits, so that it reads what it can."""
        async with self._writing:
            for piece in self._buffer.take_unsent():
                await self._write(ethics_pb2.CheckOutputRequest(chunk=_chunk(piece)))

    async def _send_flush(self) -> None:
        """Give the check what waits, and have it read at once."""
        async with self._writing:
            if self.state.finish is None:
                waiting = ethics_pb2.OutputFlush(chunks=map(_chunk, self._buffer.take_unsent()))
                await self._write(ethics_pb2.CheckOutputRequest(flush=waiting))

    async def _write(self, request: ethics_pb2.CheckOutputRequest) -> None:
        """Write one message; only under `_writing`, so that text arrives in the order in which it is taken."""
        try:
            await self._check.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError):
            # The check is over; why, its reader says: a decision before the end, or a failure.
            return

    def _check_now(self) -> None:
        """Have text checked that has waited long enough; while a check runs, all that comes waits for its end."""
        self._hold = None
        self._is_late = self._is_flushing
        if self._is_flushing or not self._buffer.held or self.state.finish is not None:
            return
        self._is_flushing = True
        self._await_answer()
        self._flush = asyncio.ensure_future(self._send_flush())

    def _stop_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _stop_timers(self) -> None:
        self._stop_patience()
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None


def backend_failure(error: grpc.RpcError) -> KalaError:
    """Turn a failed call of inference into the error that its caller may see."""
    return for_clients(from_error(error))


def for_clients(known: KalaError) -> KalaError:
    """Give an error of inference the reason by which OpenAI's clients know it."""
    if isinstance(known, UnavailableError) and known.reason == UnavailableError.default_reason:
        return UnavailableError(
            "the inference service does not answer; try again", reason=BACKENDS_UNAVAILABLE
        )
    if isinstance(known, UnavailableError) and known.reason == ALL_BACKENDS_FAILED:
        return UnavailableError(
            known.message, reason=BACKENDS_UNAVAILABLE, retry_after_seconds=known.retry_after_seconds
        )
    if isinstance(known, NotFoundError) and known.reason == NotFoundError.default_reason:
        # A backend's model, where inference says no more; what it has a reason for, as an adapter, keeps it.
        return NotFoundError(known.message, reason=MODEL_NOT_FOUND)
    return known


def tried_of(error: grpc.RpcError) -> inference_pb2.ChatFinish:
    """Read what a failed call tried, from the trailers that inference sends with its error; empty where it sends none."""
    if isinstance(error, grpc.aio.AioRpcError):
        for key, value in error.trailing_metadata() or ():
            if key == ATTEMPTS_METADATA_KEY and isinstance(value, bytes):
                with contextlib.suppress(DecodeError):
                    return inference_pb2.ChatFinish.FromString(value)
    return inference_pb2.ChatFinish()


def attempts_of(error: grpc.RpcError) -> tuple[inference_pb2.Attempt, ...]:
    """Read which backends a failed call tried."""
    return tuple(tried_of(error).attempts)


def served_by(route: inference_pb2.RouteInfo) -> Served:
    """Give who answers, as records and headers name it."""
    return Served(
        backend=route.backend,
        kind=route.kind,
        model=route.model,
        base_digest=route.base_digest,
        adapter_digest=route.adapters[0].sha256 if route.adapters else b"",
        attempts=tuple(route.attempts),
    )


def _words_bytes(delta: inference_pb2.ChatDelta) -> int:
    words = [delta.text, delta.reasoning, delta.refusal]
    for call in delta.tool_calls:
        words += (call.id, call.name, call.arguments)
    return len(orjson.dumps(words))


def _chunk(piece: Piece) -> ethics_pb2.OutputChunk:
    track, text = piece
    # The track's channel is the contract's enum by construction.
    return ethics_pb2.OutputChunk(channel=track.channel, index=track.position, text=text)  # type: ignore[arg-type]
