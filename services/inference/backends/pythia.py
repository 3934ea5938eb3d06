"""The Pythia model in this process: loaded on first use in one worker thread, many texts at once."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ModelNotAvailable,
    VerificationError,
)
from services.inference.backend import (
    AUTO_MODEL,
    LOCAL_MODEL,
    BackendFailure,
    Capability,
    Check,
    ContextOverflow,
    Identity,
    LoadState,
    ModelInfo,
    State,
    Status,
)
from services.inference.chat import ChatCall, Delta, Event, Finish, Opened, Sampling, Usage
from services.inference.diagnosis import files_cure
from services.inference.pythia.adapters import Adapters
from services.inference.pythia.holding import CannotLoadError, Holding
from services.inference.pythia.prompt_counter import PromptCounter
from services.inference.pythia.requests import (
    ABSENT_LIBRARIES,
    all_of,
    conversation,
    cure_of,
    failure_of,
    post,
    refuse_logprobs,
    refuse_what_it_cannot,
    rejection,
    rendered,
    texts_joined,
)
from services.inference.pythia.weights import Weights, check, find, unlisted_digest
from services.inference.pythia.worker import FAULTS, Generation, Prompt, Told, Worker
from services.inference.tasks import CompleteCall, EmbedCall, Vectors

if TYPE_CHECKING:
    from services.common.adapter_manifest import VerifiedAdapter
    from services.inference.pythia.engine import Engine

log: Final = structlog.get_logger()

DO: Final = frozenset({Capability.CHAT, Capability.COMPLETE, Capability.EMBED})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PythiaLimits:
    """How much the model in process takes on."""

    max_rows: int = 8
    """Texts generated at once."""
    max_waiting: int = 32
    max_output_tokens: int = 16_384


class PythiaBackend:
    """A GPT-NeoX model of a local directory, served in process."""

    carries_on: bool = True

    def __init__(
        self, identity: Identity, directory: Path, model_id: str, *, holding: Holding, limits: PythiaLimits
    ) -> None:
        self._identity = identity
        self._directory = directory
        self._model_id = model_id
        self._holding = holding
        self._limits = limits
        self._worker = Worker(identity.name, self._loaded)
        self._turns = asyncio.Semaphore(limits.max_rows)
        self._waiting = 0
        self._weights: Weights | None = None
        self._counter: PromptCounter | None = None
        self._engine: Engine | None = None
        self._context_tokens: int | None = None
        self._adapters = Adapters()

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
            await self._in_thread(self._loaded)
        except (BackendFailure, ModelNotAvailable, VerificationError) as failure:
            log.warning("preload_failed", backend=self.identity.name, reason=str(failure))

    async def load(self, model: str, context_tokens: int | None) -> ModelInfo:
        """Load the model; see ModelManager.load.  A shorter context only limits what it takes."""
        weights = await asyncio.to_thread(self._check)
        self._require_own(model)
        if context_tokens is not None and not 1 < context_tokens <= weights.context_tokens:
            raise InvalidArgumentError(
                "context_tokens", f"must be 2 to {weights.context_tokens}, the context of {self._model_id}"
            )
        await self._in_thread(lambda: self._limit_context(context_tokens))
        return self._model(weights)

    async def unload(self, model: str) -> ModelInfo:
        """Give the model's memory back; see ModelManager.unload.  Refused while it generates."""
        self._require_own(model)
        await self._in_thread(self._forget)
        return self._model(self._weights)

    async def chat(
        self, call: ChatCall, model: ModelInfo, begin: Callable[[], None]
    ) -> AsyncGenerator[Event]:
        """Generate; see Backend.chat."""
        refuse_what_it_cannot(call)
        messages = conversation(call)
        async with self._turn():
            begin()
            generating = self._generate(
                lambda engine: self._prompt(engine, messages, call.adapters), call.sampling, model
            )
            async with aclosing(generating) as events:
                async for event in events:
                    yield event

    async def complete(
        self, call: CompleteCall, model: ModelInfo, begin: Callable[[], None]
    ) -> AsyncGenerator[Event]:
        """Continue a text; see Completer.complete."""
        if call.suffix:
            raise rejection("the model in process cannot fill a gap; drop the suffix")
        refuse_logprobs(call.sampling)
        async with self._turn():
            begin()
            generating = self._generate(
                lambda engine: Prompt(engine.encode_text(call.prompt)), call.sampling, model
            )
            async with aclosing(generating) as events:
                async for event in events:
                    yield event

    async def embed(self, call: EmbedCall, model: ModelInfo, begin: Callable[[], None]) -> Vectors:  # noqa: ARG002 - it has one model
        """Give the mean of each text's last hidden states, of length 1; see Embedder.embed."""
        async with self._turn():
            begin()
            vectors, used = [], 0
            for text in call.inputs:
                vector, tokens = await self._in_thread(partial(self._embedded, text))
                if call.dimensions not in {None, len(vector)}:
                    raise rejection(f"the vectors of the model in process have {len(vector)} numbers")
                vectors.append(array("f", vector))
                used += tokens
        return Vectors(tuple(vectors), Usage(input_tokens=used))

    async def base_digest(self) -> bytes:
        """Give the digest of the files that are loaded; see AdapterHost.base_digest."""
        weights = await asyncio.to_thread(self._check)
        return weights.base_digest or await asyncio.to_thread(unlisted_digest, weights)

    async def load_adapter(self, adapter: VerifiedAdapter) -> None:
        """Hold an adapter ready; see AdapterHost.load_adapter."""
        await self._in_thread(lambda: self._adapters.hold(adapter, self._loaded()))

    async def unload_adapter(self, name: str) -> bool:
        """Take an adapter out; see AdapterHost.unload_adapter."""
        return await self._in_thread(lambda: self._adapters.drop(name))

    async def count_prompt(self, call: ChatCall, model: ModelInfo) -> int:  # noqa: ARG002 - it has one model
        """Count a whole prompt; see TokenCounter."""
        return await self._prompt_counter().prompt(conversation(call))

    async def count_text(self, text: str, model: ModelInfo) -> int:  # noqa: ARG002 - it has one model
        """Count a text; see TokenCounter."""
        return await self._prompt_counter().text(text)

    async def diagnose(self, model: str) -> tuple[Check, ...]:
        """Look at the files and load them."""
        status = await self.look()
        if status.state is not State.READY:
            cure = files_cure(self._model_id, status.reason)
            return (Check("files", passed=False, detail=status.detail, cure=cure),)
        if model not in {"", AUTO_MODEL, LOCAL_MODEL, self._model_id}:
            cure = f"ask for {self._model_id}"
            return (Check("models", passed=False, detail=f"model {model!r} is not there", cure=cure),)
        files = Check("files", passed=True, detail="the files are whole")
        try:
            await self._in_thread(self._loaded)
        except BackendFailure as failure:
            return (files, Check("load", passed=False, detail=failure.detail, cure=cure_of(failure)))
        return (files, Check("load", passed=True, detail=f"{self._model_id} is loaded"))

    async def aclose(self) -> None:
        """Stop every generation and give the thread back."""
        self._worker.stop()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for one of the places in the batch."""
        if self._turns.locked() and self._waiting >= self._limits.max_waiting:
            raise BackendFailure("BACKEND_BUSY", f"has {self._waiting} requests waiting already")
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()

    async def _generate(
        self,
        encode: Callable[[Engine], Prompt],
        sampling: Sampling,
        model: ModelInfo,
    ) -> AsyncGenerator[Event]:
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Told] = asyncio.Queue()
        most = self._limits.max_output_tokens
        work = Generation(
            encode,
            sampling,
            min(sampling.max_output_tokens or most, most),
            tell=lambda item: post(loop, told, item),
        )
        try:
            self._worker.submit(work)
            yield Opened(model.id)
            while True:
                for item in texts_joined(await all_of(told)):
                    if isinstance(item, Exception):
                        raise item
                    yield Delta(text=item) if isinstance(item, str) else item
                    if isinstance(item, Finish):
                        return
        except (InvalidArgumentError, *FAULTS) as error:
            raise failure_of(error) from error
        finally:
            work.cancelled.set()

    async def _in_thread(self, act: Callable[[], T]) -> T:
        try:
            return await asyncio.wrap_future(self._worker.errand(act))
        except FAULTS as error:
            raise failure_of(error) from error

    def _prompt(self, engine: Engine, messages: list[dict[str, str]], names: tuple[str, ...]) -> Prompt:
        # In the worker thread: an adapter belongs to the model that is loaded now, and no other order comes between.
        adapters = self._adapters.chosen(names)
        template = next((one.chat_template for one in adapters if one.chat_template), "")
        return Prompt(rendered(lambda: engine.encode(messages, template)), adapters)

    def _embedded(self, text: str) -> tuple[list[float], int]:
        engine = self._loaded()
        try:
            ids = engine.encode_text(text)
        except InvalidArgumentError as error:
            raise failure_of(InvalidArgumentError("inputs", error.problem)) from error
        if len(ids) > engine.context_tokens:
            raise ContextOverflow(prompt_tokens=len(ids), context_tokens=engine.context_tokens)
        with engine.computing():
            return engine.embed(ids), len(ids)

    def _limit_context(self, context_tokens: int | None) -> None:
        engine = self._loaded()
        self._context_tokens = context_tokens
        engine.context_tokens = context_tokens or self._check().context_tokens

    def _forget(self) -> None:
        if self._worker.running:
            raise FailedPreconditionError(
                f"{self._model_id} is generating; unload it when its {self._worker.running} answers have ended",
                reason="MODEL_IN_USE",
            )
        # The files are looked at again before they are loaded again.
        self._engine = self._weights = self._context_tokens = None
        self._adapters = Adapters()

    def _loaded(self) -> Engine:
        if self._engine is None:
            weights = self._check()
            try:
                from services.inference.pythia.engine import Engine

                self._engine = Engine(weights, self._holding)
            except ImportError as error:
                raise BackendFailure("LIBRARIES_MISSING", ABSENT_LIBRARIES) from error
            except CannotLoadError as error:
                raise BackendFailure(error.reason, error.detail) from error
            except FAULTS as error:
                raise BackendFailure(
                    "LOAD_FAILED", f"cannot load {self._model_id}: {type(error).__name__}"
                ) from error
            log.info("model_loaded", backend=self.identity.name, model=self._model_id)
        return self._engine

    def _check(self) -> Weights:
        if self._weights is None:
            self._weights = check(find(self._directory, self._model_id))
        return self._weights

    def _prompt_counter(self) -> PromptCounter:
        if self._weights is None:
            raise BackendFailure("NO_TOKENIZER", "its files were not looked at yet")
        if self._counter is None or self._counter.weights is not self._weights:
            self._counter = PromptCounter(self._weights)
        return self._counter

    def _require_own(self, model: str) -> None:
        if model != self._model_id:
            raise InvalidArgumentError("model", f"{self.identity.name} holds {self._model_id} only")

    def _model(self, weights: Weights | None) -> ModelInfo:
        quantization = self._holding.quantization.value
        return ModelInfo(
            id=self._model_id,
            state=LoadState.LOADED if self._engine else LoadState.NOT_LOADED,
            context_tokens=self._context_tokens or (weights.context_tokens if weights else None),
            max_context_tokens=weights.context_tokens if weights else None,
            capabilities=DO,
            quantization="" if quantization == "none" else quantization,
            is_demo=self.identity.is_demo,
            base_digest=weights.base_digest if weights else b"",
            adapters=self._adapters.applied(),
        )
