"""Continuous batching: one thread makes passes over every running text at once; texts join and leave between two passes.

    submitted ──prompt read piece by piece──▶ a row of the batch ──one token per pass──▶ ended

Between two passes at most PREFILL_TOKENS of new prompts are read, so that a long prompt does not stop the others.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from services.inference.backend import BackendFailure, ContextOverflow
from services.inference.chat import Finish, FinishReason, Sampling, Usage
from services.inference.pythia.sampler import Sampler, draw_each
from services.inference.pythia.stops import PieceDecoder, StopScanner

if TYPE_CHECKING:
    import torch

    from services.inference.pythia.engine import Engine
    from services.inference.pythia.lora import LoraAdapter
    from services.inference.pythia.memory import RowMemory

PREFILL_TOKENS: Final = 256
"""Prompt tokens read between two passes; also how much of a prompt is read before a client's leaving is seen."""

TELL_SECONDS: Final = 0.005
"""Text that comes faster travels together: every piece is judged, sealed and sent on, which a tiny model would outrun."""

FAULTS: Final = (RuntimeError, ValueError, MemoryError, OSError)
"""What torch and transformers raise for what goes wrong inside them."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a text begins with, and the adapters that it is generated with."""

    ids: list[int]
    adapters: tuple[LoraAdapter, ...] = ()


@dataclass(slots=True, eq=False)
class Generation:
    """One text to generate, shared between the event loop and the worker thread."""

    encode: Callable[[Engine], Prompt]
    """Called in the worker thread with the model that will generate; what it raises ends this generation alone."""
    sampling: Sampling
    max_output_tokens: int
    tell: Callable[[Told], None]
    """Called in the worker thread."""
    cancelled: threading.Event = field(default_factory=threading.Event)


Told = str | Finish | Exception
"""Text, and at the end either how it ended or why it failed."""


@dataclass(slots=True, eq=False)
class _Row:
    """A generation on its way: first its prompt is read, then it is a row of the batch."""

    work: Generation
    prompt: Prompt
    limit: int
    sampler: Sampler
    memory: RowMemory
    pieces: PieceDecoder
    stops: StopScanner
    read: int = 0
    drawn: int = 0
    token: int = 0
    untold: str = ""
    told_at: float = -math.inf

    def say(self, text: str, now: float) -> None:
        """Tell text, together with what follows within moments; the first at once."""
        self.untold += text
        if self.untold and now - self.told_at >= TELL_SECONDS:
            self.tell(now)

    def tell(self, now: float) -> None:
        """Tell all text that there is."""
        if self.untold:
            self.work.tell(self.untold)
            self.untold, self.told_at = "", now


class Worker:
    """The one thread that touches the model; runs while there is work."""

    def __init__(
        self, name: str, engine: Callable[[], Engine], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"kala-{name}")
        self._lock = threading.Lock()
        self._is_running = False
        self._submitted: deque[Generation] = deque()
        self._errands: deque[Callable[[], None]] = deque()
        self._reading: deque[_Row] = deque()
        self._rows: list[_Row] = []
        self._memory: RowMemory | None = None

    @property
    def running(self) -> int:
        """Generations that the thread has in hand."""
        return len(self._rows) + len(self._reading) + len(self._submitted)

    def submit(self, work: Generation) -> None:
        """Let a text be generated beside those that are."""
        with self._lock:
            self._submitted.append(work)
            self._start()

    def errand(self, act: Callable[[], T]) -> Future[T]:
        """Let the thread do something else between two passes."""
        done: Future[T] = Future()
        with self._lock:
            self._errands.append(lambda: _carried_out(act, done))
            self._start()
        return done

    def stop(self) -> None:
        """End every generation and give the thread back."""
        for work in (*self._submitted, *(row.work for row in (*self._rows, *self._reading))):
            work.cancelled.set()
        self._thread.shutdown(wait=False)

    def _start(self) -> None:
        if not self._is_running:
            self._is_running = True
            self._thread.submit(self._run)

    def _run(self) -> None:
        while True:
            with self._lock:
                errands, self._errands = self._errands, deque()
                submitted, self._submitted = self._submitted, deque()
                if not (errands or submitted or self._reading or self._rows):
                    self._is_running, self._memory = False, None
                    return
            for act in errands:
                act()
            if submitted or self._reading or self._rows:
                try:
                    self._advance(submitted)
                except Exception as error:  # noqa: BLE001 - the thread's edge: a bug must not leave anybody waiting
                    self._fail_all(submitted, error)

    def _advance(self, submitted: Sequence[Generation]) -> None:
        """Take new work in, read prompts and make one pass."""
        try:
            engine = self._engine()
        except Exception as error:  # noqa: BLE001 - the thread's edge: every one is told to those who wait
            for work in submitted:
                work.tell(error)
            return
        for work in submitted:
            self._take(engine, work)
        with engine.computing():
            self._read_prompts(engine)
            self._let_go_of_cancelled()
            if self._memory is not None:
                self._step(engine, self._memory)

    def _fail_all(self, submitted: Sequence[Generation], error: Exception) -> None:
        for work in (*submitted, *(row.work for row in (*self._reading, *self._rows))):
            work.tell(error)
        self._reading, self._rows, self._memory = deque(), [], None

    def _take(self, engine: Engine, work: Generation) -> None:
        if work.cancelled.is_set():
            # Its act is over; a template takes time that others wait for.
            work.tell(_gave_up())
            return
        try:
            prompt = work.encode(engine)
            used, context = len(prompt.ids), engine.context_tokens
            if used >= context:
                raise ContextOverflow(prompt_tokens=used, context_tokens=context)  # noqa: TRY301 - told like the others
        except Exception as error:  # noqa: BLE001 - the thread's edge: it is told to the one whose text it is
            work.tell(error)
            return
        self._reading.append(
            _Row(
                work,
                prompt,
                min(work.max_output_tokens, context - used),
                engine.sampler(work.sampling),
                engine.memory(),
                PieceDecoder(engine.decode),
                StopScanner(work.sampling.stop),
            )
        )

    def _read_prompts(self, engine: Engine) -> None:
        if self._reading:
            # Reading may take long, and what is already there should not wait for it.
            for waiting in self._rows:
                waiting.tell(self._clock())
        budget = PREFILL_TOKENS
        while self._reading and budget > 0:
            row = self._reading[0]
            if row.work.cancelled.is_set():
                self._reading.popleft()
                row.work.tell(_gave_up())
                continue
            piece = row.prompt.ids[row.read : row.read + budget]
            try:
                logits = engine.read(row.memory, piece, row.prompt.adapters)
            except FAULTS as error:
                self._reading.popleft()
                row.work.tell(error)
                continue
            row.read += len(piece)
            budget -= len(piece)
            if row.read == len(row.prompt.ids):
                self._reading.popleft()
                self._join(engine, row, logits)

    def _join(self, engine: Engine, row: _Row, logits: torch.Tensor) -> None:
        if self._drew(engine, row, _draw([row], logits)[0]):
            return
        if self._memory is None:
            # The first text's memory becomes the batch's: a text alone is never copied.
            self._memory = row.memory
        else:
            self._memory.adopt(row.memory)
        self._rows.append(row)

    def _step(self, engine: Engine, memory: RowMemory) -> None:
        rows = self._rows
        try:
            logits = engine.step(memory, [row.token for row in rows], [row.prompt.adapters for row in rows])
            tokens = _draw(rows, logits)
        except FAULTS as error:
            # What was half written cannot be trusted: every text of this pass ends.
            for row in rows:
                row.work.tell(error)
            self._rows, self._memory = [], None
            return
        ended = [number for number, row in enumerate(rows) if self._drew(engine, row, tokens[number])]
        self._drop(ended)

    def _drew(self, engine: Engine, row: _Row, token: int) -> bool:
        """Take a row's new token; tell whether that was its end."""
        if token in engine.end_ids:
            self._end(row, FinishReason.STOP)
            return True
        row.token = token
        row.drawn += 1
        text, is_stopped = row.stops.feed(row.pieces.feed(token))
        row.say(text, self._clock())
        if is_stopped:
            self._finish(row, FinishReason.STOP)
        elif row.drawn == row.limit:
            self._end(row, FinishReason.LENGTH)
            return True
        return is_stopped

    def _end(self, row: _Row, reason: FinishReason) -> None:
        row.untold += row.stops.finish()
        self._finish(row, reason)

    def _finish(self, row: _Row, reason: FinishReason) -> None:
        row.tell(self._clock())
        row.work.tell(Finish(reason, Usage(input_tokens=len(row.prompt.ids), output_tokens=row.drawn)))

    def _let_go_of_cancelled(self) -> None:
        cancelled = [number for number, row in enumerate(self._rows) if row.work.cancelled.is_set()]
        for number in cancelled:
            self._rows[number].work.tell(_gave_up())
        self._drop(cancelled)

    def _drop(self, numbers: Sequence[int]) -> None:
        memory = self._memory
        if memory is None:
            return
        # From the end, so that the row that takes a number is never one that is to be dropped.
        for number in reversed(numbers):
            memory.drop(number)
            self._rows[number] = self._rows[-1]
            self._rows.pop()
        if not self._rows:
            self._memory = None


def _draw(rows: Sequence[_Row], logits: torch.Tensor) -> list[int]:
    return draw_each([row.sampler for row in rows], logits)


def _gave_up() -> BackendFailure:
    return BackendFailure("STOPPED", "was told to stop")


def _carried_out(act: Callable[[], T], done: Future[T]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(act())
    except Exception as error:  # noqa: BLE001 - the thread's edge: it is raised where the result is waited for
        done.set_exception(error)
