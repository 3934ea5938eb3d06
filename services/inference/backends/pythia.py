"""The Pythia model in this process: loaded on first use in one worker thread, one generation at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from kala.errors import InvalidArgumentError, ModelNotAvailable, VerificationError
from services.inference.backend import (
    BackendFailure,
    Blame,
    Capability,
    Check,
    ContextOverflow,
    Identity,
    LoadState,
    ModelInfo,
    State,
    Status,
)
from services.inference.chat import ChatCall, Delta, Event, Finish, FinishReason, Form, Opened, Text, Usage
from services.inference.pythia.stops import PieceDecoder, StopScanner
from services.inference.pythia.weights import Weights, check, find

if TYPE_CHECKING:
    from services.inference.pythia.engine import Engine

log: Final = structlog.get_logger()

ABSENT_LIBRARIES: Final = "torch and transformers are not installed; install `kala-suite[inference-pythia]`"


@dataclass(slots=True, eq=False)
class _Job:
    """One generation, shared between the event loop and the worker thread."""

    call: ChatCall
    emit: Callable[[str], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class PythiaBackend:
    """A GPT-NeoX model of a local directory, served in process."""

    def __init__(
        self,
        identity: Identity,
        directory: Path,
        model_id: str,
        *,
        threads: int,
        max_waiting: int,
        max_output_tokens: int,
    ) -> None:
        self._identity = identity
        self._directory = directory
        self._model_id = model_id
        self._threads = threads
        self._max_waiting = max_waiting
        self._max_output_tokens = max_output_tokens
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"kala-{identity.name}")
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._running: set[_Job] = set()
        self._weights: Weights | None = None
        self._engine: Engine | None = None

    @property
    def identity(self) -> Identity:
        """Who it is."""
        return self._identity

    async def look(self) -> Status:
        """Say whether the files are there and whole; does not load them."""
        try:
            weights = self._weights or await asyncio.to_thread(self._check)
        except ModelNotAvailable as error:
            return Status(State.ERROR, error.message, (self._model(None),), reason=error.reason)
        except VerificationError as error:
            return Status(State.ERROR, error.message, (self._model(None),), reason="MODEL_DAMAGED")
        detail = "is loaded" if self._engine else "loads on first use"
        return Status(State.READY, detail, (self._model(weights),))

    async def preload(self) -> None:
        """Load the model now, so that the first request need not wait; a failure shows at the first request."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._loaded)
        except (BackendFailure, ModelNotAvailable, VerificationError) as failure:
            log.warning("preload_failed", backend=self.identity.name, reason=str(failure))

    async def chat(
        self, call: ChatCall, model: ModelInfo, begin: Callable[[], None]
    ) -> AsyncGenerator[Event]:
        """Generate; see Backend.chat."""
        _refuse_what_it_cannot(call)
        if self._waiting >= self._max_waiting:
            raise BackendFailure("BACKEND_BUSY", f"has {self._waiting} requests waiting already")
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            begin()
            async with aclosing(self._generate(call, model)) as events:
                async for event in events:
                    yield event
        finally:
            self._turn.release()

    async def diagnose(self, model: str) -> tuple[Check, ...]:
        """Look at the files and load them."""
        status = await self.look()
        if status.state is not State.READY:
            return (Check("files", passed=False, detail=status.detail, cure="get the files again"),)
        if model and model != self._model_id:
            cure = f"ask for {self._model_id}"
            return (Check("models", passed=False, detail=f"model {model!r} is not there", cure=cure),)
        files = Check("files", passed=True, detail="the files are whole")
        try:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._loaded)
        except BackendFailure as failure:
            return (files, Check("load", passed=False, detail=failure.detail, cure=ABSENT_LIBRARIES))
        return (files, Check("load", passed=True, detail=f"{self._model_id} is loaded"))

    async def aclose(self) -> None:
        """Stop every generation and give the thread back."""
        for job in self._running:
            job.cancelled.set()
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _generate(self, call: ChatCall, model: ModelInfo) -> AsyncGenerator[Event]:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        job = _Job(call, emit=lambda piece: _post(loop, pieces, piece))
        future = loop.run_in_executor(self._worker, self._run, job)
        future.add_done_callback(lambda _: pieces.put_nowait(None))
        self._running.add(job)
        try:
            yield Opened(model.id)
            while (text := await _next_text(pieces)) is not None:
                yield Delta(text=text)
            yield await future
        except (InvalidArgumentError, RuntimeError, ValueError, MemoryError, OSError) as error:
            raise _failure_of(error) from error
        finally:
            job.cancelled.set()
            self._running.discard(job)
            if not future.done():
                future.add_done_callback(_retrieved)

    def _run(self, job: _Job) -> Finish:
        """Generate in the worker thread."""
        engine = self._loaded()
        prompt = engine.encode(_conversation(job.call))
        context = engine.context_tokens
        used = len(prompt.ids)
        if used >= context:
            raise ContextOverflow(prompt_tokens=used, context_tokens=context)
        wanted = min(job.call.sampling.max_output_tokens or self._max_output_tokens, self._max_output_tokens)
        limit = min(wanted, context - used)
        decoder, stops = PieceDecoder(engine.decode), StopScanner(job.call.sampling.stop)
        drawn, is_stopped = 0, False
        for token in engine.draw(prompt, job.call.sampling, limit=limit, is_cancelled=job.cancelled.is_set):
            drawn += 1
            text, is_stopped = stops.feed(decoder.feed(token))
            if text:
                job.emit(text)
            if is_stopped:
                break
        if not is_stopped and (rest := stops.finish()):
            job.emit(rest)
        reason = FinishReason.LENGTH if drawn == limit and not is_stopped else FinishReason.STOP
        return Finish(reason, Usage(input_tokens=used, output_tokens=drawn))

    def _loaded(self) -> Engine:
        if self._engine is None:
            weights = self._check()
            try:
                from services.inference.pythia.engine import Engine

                self._engine = Engine(weights, threads=self._threads)
            except ImportError as error:
                raise BackendFailure("LIBRARIES_MISSING", ABSENT_LIBRARIES) from error
            except (RuntimeError, ValueError, MemoryError, OSError) as error:
                raise BackendFailure(
                    "LOAD_FAILED", f"cannot load {self._model_id}: {type(error).__name__}"
                ) from error
            log.info("model_loaded", backend=self.identity.name, model=self._model_id)
        return self._engine

    def _check(self) -> Weights:
        if self._weights is None:
            self._weights = check(find(self._directory, self._model_id))
        return self._weights

    def _model(self, weights: Weights | None) -> ModelInfo:
        return ModelInfo(
            id=self._model_id,
            state=LoadState.LOADED if self._engine else LoadState.NOT_LOADED,
            context_tokens=weights.context_tokens if weights else None,
            max_context_tokens=weights.context_tokens if weights else None,
            capabilities=frozenset({Capability.CHAT}),
            is_demo=self.identity.is_demo,
            base_digest=weights.base_digest if weights else b"",
        )


def _conversation(call: ChatCall) -> list[dict[str, str]]:
    return [
        {
            "role": message.role.value,
            "content": "\n".join(part.text for part in message.parts if isinstance(part, Text)),
        }
        for message in call.messages
    ]


def _refuse_what_it_cannot(call: ChatCall) -> None:
    if any(not isinstance(part, Text) for message in call.messages for part in message.parts):
        raise _rejection("the model in process reads text only")
    if call.demands_a_tool:
        raise _rejection("the model in process calls no tools; drop tool_choice or choose another backend")
    if call.answer_form.form is not Form.TEXT:
        raise _rejection("the model in process cannot be held to a response_format; choose another backend")
    if call.sampling.logprobs:
        raise _rejection("the model in process gives no logprobs")


def _rejection(problem: str) -> BackendFailure:
    return BackendFailure(
        "BACKEND_REJECTED", "cannot do what the request asks", blame=Blame.CALLER, told=problem
    )


def _failure_of(error: Exception) -> BackendFailure:
    if isinstance(error, InvalidArgumentError):
        return BackendFailure(
            "BACKEND_REJECTED", "cannot read the conversation", blame=Blame.CALLER, told=error.problem
        )
    return BackendFailure("GENERATION_FAILED", f"failed while generating: {type(error).__name__}")


def _post(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[str | None], piece: str) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(pieces.put_nowait, piece)


async def _next_text(pieces: asyncio.Queue[str | None]) -> str | None:
    """Give all text that is there, at least one piece; None at the end."""
    first = await pieces.get()
    if first is None:
        return None
    texts = [first]
    while not pieces.empty():
        piece = pieces.get_nowait()
        if piece is None:
            pieces.put_nowait(None)
            break
        texts.append(piece)
    return "".join(texts)


def _retrieved(future: asyncio.Future[Finish]) -> None:
    if not future.cancelled():
        future.exception()
