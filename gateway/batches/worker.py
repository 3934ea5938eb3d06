"""Carries out batches: a bounded number of lines at a time, one replica per batch, resumed wherever a dead one stopped.

What a line came to is kept in one write that names the holder of the batch's lease, once; so that after a kill no line
is missing from the output and none is there twice. The request itself may have run twice, and the log says so.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from gateway.batches import model
from gateway.batches.input import InputFile
from gateway.batches.lines import answered_line, read_line, scan, unanswered_line
from gateway.batches.model import Batch, LinePlace, LineProblem
from gateway.batches.output import write_files
from gateway.errands import Reply, run_errand
from gateway.files.model import BATCH_LIFE
from gateway.files.store import FILE_QUOTA_EXCEEDED
from gateway.lease_keeping import while_held
from gateway.leases import LeaseLostError
from kala.errors import DataLossError, FailedPreconditionError, KalaError, NotFoundError

if TYPE_CHECKING:
    from gateway.batches.store import BatchStore
    from gateway.edge import Handler
    from gateway.files.store import FileStore

POLL_SECONDS: Final = 2.0
"""Between two looks for work that another replica took in, or left."""

SLICE_SECONDS: Final = 20.0
"""For one batch before the next has its turn."""

PAGE: Final = 64
MAX_ATTEMPTS: Final = 8
"""Of a line that a part's absence stopped, with pauses that double up to a minute: about four minutes."""

MAX_PAUSE_SECONDS: Final = 60.0

TRANSIENT: Final = frozenset({503, 504})
OVER_RATE: Final = "rate_limit_exceeded"
KEY_CODES: Final = frozenset({"invalid_api_key"})
"""The batch's own key is no longer good: no line of it can be carried out. A scope that is missing is one line's matter."""

EXPIRED_CODE: Final = "batch_expired"
CANCELLED_CODE: Final = "batch_cancelled"
UNREADABLE_CODE: Final = "input_file_unreadable"

SubjectOf = Callable[[str, str], str]
"""Gives the pseudonym of a person that a request of a tenant names."""


@dataclass(slots=True)
class _Slice:
    """What the hands of one batch tell each other."""

    until: float
    is_over: bool = False
    pause_seconds: float = 0.0
    problem: LineProblem | None = None
    places: deque[LinePlace] = field(default_factory=deque)

    def stop(self, *, pause_seconds: float = 0.0, problem: LineProblem | None = None) -> None:
        self.is_over = True
        self.pause_seconds = max(self.pause_seconds, min(pause_seconds, MAX_PAUSE_SECONDS))
        self.problem = self.problem or problem


class BatchWorker:
    """Works on batches until it is stopped; one per process."""

    def __init__(
        self,
        store: BatchStore,
        files: FileStore,
        *,
        handlers: Mapping[str, Handler],
        subject_of: SubjectOf,
        holder: str,
        concurrency: int,
        lease: timedelta,
        max_line_bytes: int,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
        poll_seconds: float = POLL_SECONDS,
        slice_seconds: float = SLICE_SECONDS,
    ) -> None:
        """`files` must take output of any size; `handlers` are the endpoints by path."""
        self._store = store
        self._files = files
        self._handlers = handlers
        self._subject_of = subject_of
        self._holder = holder
        self._concurrency = concurrency
        self._lease = lease
        self._max_line_bytes = max_line_bytes
        self._now = now
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._slice_seconds = slice_seconds
        self._wake = asyncio.Event()
        self._due_at = 0.0

    def wake(self) -> None:
        """Say that there is work, so that it does not wait for the next look."""
        self._wake.set()

    async def run(self) -> None:
        """Work for ever; a database that is away is waited for."""
        while True:
            try:
                has_worked = await self.step()
            except KalaError as error:
                structlog.get_logger().warning("batches stand still", reason=error.reason)
                has_worked = False
            if not has_worked:
                await self._rest()

    async def _rest(self) -> None:
        """Wait for a call, for the end of a batch's own pause, or for the time of the next look."""
        seconds = min(self._poll_seconds, max(0.0, self._due_at - self._clock()))
        self._due_at = self._clock() + self._poll_seconds
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)
        self._wake.clear()

    async def step(self) -> bool:
        """Work on one batch for a while; False when there is none."""
        batch = await asyncio.to_thread(self._store.claim, self._holder)
        if batch is None:
            return False
        pause_seconds = 0.0
        try:
            pause_seconds = await while_held(
                self._advance(batch),
                partial(self._store.renew, batch.id, self._holder),
                every_seconds=self._lease.total_seconds() / 3,
            )
        except LeaseLostError:
            structlog.get_logger().warning("another replica took over a batch", batch=batch.id)
        except KalaError as error:
            structlog.get_logger().warning("a batch stands still", batch=batch.id, reason=error.reason)
            pause_seconds = self._poll_seconds
        except Exception as error:  # noqa: BLE001 - the edge of this work: a bug in one batch must not end the others
            structlog.get_logger().exception("a batch met a bug", batch=batch.id, exc_info=error)
            pause_seconds = MAX_PAUSE_SECONDS
        finally:
            self._due_at = min(self._due_at, self._clock() + pause_seconds) if pause_seconds else self._due_at
            # Also when this process stops: another one need not wait for the lease's end.
            release = asyncio.to_thread(
                self._store.release, batch.id, self._holder, pause=timedelta(seconds=pause_seconds)
            )
            await asyncio.shield(release)
        return True

    async def _advance(self, batch: Batch) -> float:
        """Do what is next for a batch, and give how long it should rest."""
        if batch.status == model.VALIDATING:
            accepted = await asyncio.to_thread(self._validate, batch)
            if accepted is None:
                return 0.0
            batch = accepted
        if batch.status == model.IN_PROGRESS and not batch.errors:
            ran = await self._run(batch)
            if ran.problem is not None:
                await asyncio.to_thread(self._store.note, batch, self._holder, ran.problem)
            elif await asyncio.to_thread(self._store.pending, batch.id, limit=1):
                status = await asyncio.to_thread(self._store.renew, batch.id, self._holder)
                if status == model.IN_PROGRESS:
                    return ran.pause_seconds
            batch = await asyncio.to_thread(self._store.get, batch.tenant, batch.id)
        return await asyncio.to_thread(self._finish, batch)

    def _validate(self, batch: Batch) -> Batch | None:
        try:
            file = self._files.get(batch.tenant, batch.input_file_id)
            found = scan(self._files.read(file), endpoint=batch.endpoint, max_line_bytes=self._max_line_bytes)
        except (NotFoundError, DataLossError) as error:
            self._store.reject(batch, self._holder, [_unreadable(error)])
            return None
        if found.problems:
            self._store.reject(batch, self._holder, found.problems)
            return None
        persons = [self._subject_of(batch.tenant, person) for person in found.persons]
        return self._store.accept(batch, self._holder, found.places, persons)

    async def _run(self, batch: Batch) -> _Slice:
        """Carry out lines until none is left, the time is over, or something stops them all."""
        ran = _Slice(until=self._clock() + self._slice_seconds)
        try:
            file = await asyncio.to_thread(self._files.get, batch.tenant, batch.input_file_id)
        except NotFoundError as error:
            ran.stop(problem=_unreadable(error))
            return ran
        source, after = InputFile(self._files, file), 0
        while not ran.is_over:
            ran.places.extend(await asyncio.to_thread(self._store.pending, batch.id, limit=PAGE, after=after))
            if not ran.places:
                break
            after = ran.places[-1].number
            hands = [self._carry(batch, source, ran) for _ in range(self._concurrency)]
            await _all_or_none(hands)
        return ran

    async def _carry(self, batch: Batch, source: InputFile, ran: _Slice) -> None:
        while ran.places and not ran.is_over:
            if self._now() >= batch.expires_at:
                ran.stop(problem=LineProblem(EXPIRED_CODE, "the batch was not done within its window"))
            elif self._clock() >= ran.until:
                ran.stop()
            else:
                await self._carry_line(batch, source, ran, ran.places.popleft())

    async def _carry_line(self, batch: Batch, source: InputFile, ran: _Slice, place: LinePlace) -> None:
        try:
            line = await asyncio.to_thread(source.line, place)
        except (NotFoundError, DataLossError) as error:
            ran.stop(problem=_unreadable(error))
            return
        request = read_line(line, endpoint=batch.endpoint)
        reply = await run_errand(
            self._handlers[batch.endpoint],
            path=batch.endpoint,
            body=request.body,
            acting_key=batch.owner,
            request_id=f"{batch.id}-{place.number}",
        )
        if reply.code in KEY_CODES:
            ran.stop(problem=LineProblem(reply.code, str(reply.body["error"]["message"])))
            return
        if reply.status == 429 and reply.code == OVER_RATE:  # noqa: PLR2004 - Too Many Requests
            ran.stop(pause_seconds=reply.retry_after_seconds or 1.0)
            return
        if await self._is_to_wait(batch, place, reply):
            ran.stop(pause_seconds=reply.retry_after_seconds or 2.0**place.attempts)
            return
        result = answered_line(
            place,
            batch_id=batch.id,
            custom_id=request.custom_id,
            request_id=reply.request_id,
            status=reply.status,
            body=reply.body,
        )
        status = await asyncio.to_thread(self._store.record, batch, self._holder, result)
        if status != model.IN_PROGRESS:
            ran.stop()

    async def _is_to_wait(self, batch: Batch, place: LinePlace, reply: Reply) -> bool:
        """Tell whether a part is away whose return is worth waiting for."""
        if reply.status not in TRANSIENT or reply.has_acted:
            return False
        attempts = await asyncio.to_thread(self._store.attempted, batch.id, self._holder, place.number)
        return attempts < MAX_ATTEMPTS

    def _finish(self, batch: Batch) -> float:
        """Say of every line that is left why it was not carried out, and write the files."""
        status, problem = _ending_of(batch)
        if problem is not None:
            self._answer_rest(batch, problem)
        self._store.finalizing(batch, self._holder)
        try:
            write_files(batch, self._holder, status, store=self._store, files=self._files)
        except FailedPreconditionError as error:
            if error.reason != FILE_QUOTA_EXCEEDED:
                raise
            if self._now() >= batch.expires_at + BATCH_LIFE:
                return self._give_up(batch, error)
            # The answers are kept; they become files as soon as there is room.
            if not any(each["code"] == FILE_QUOTA_EXCEEDED.lower() for each in batch.errors):
                noted = LineProblem(FILE_QUOTA_EXCEEDED.lower(), error.message)
                self._store.note(batch, self._holder, noted)
            return MAX_PAUSE_SECONDS
        return 0.0

    def _give_up(self, batch: Batch, error: KalaError) -> float:
        """End a batch whose answers found no room for as long as their files would have been kept; they go with it."""
        message = f"the answers found no room for {BATCH_LIFE.days} days and were let go: {error.message}"
        self._store.reject(batch, self._holder, [LineProblem(FILE_QUOTA_EXCEEDED.lower(), message)])
        return 0.0

    def _answer_rest(self, batch: Batch, problem: LineProblem) -> None:
        source: InputFile | None = None
        if problem.code != UNREADABLE_CODE:
            with suppress(NotFoundError):  # a batch ends without its file too
                source = InputFile(self._files, self._files.get(batch.tenant, batch.input_file_id))
        while places := self._store.pending(batch.id, limit=PAGE):
            for place in places:
                result = unanswered_line(
                    place,
                    batch_id=batch.id,
                    custom_id=_custom_id(batch, source, place),
                    code=problem.code,
                    message=problem.message,
                )
                self._store.record(batch, self._holder, result)


def _custom_id(batch: Batch, source: InputFile | None, place: LinePlace) -> str | None:
    """Give a line's own name; None where its file cannot be read any more."""
    if source is None:
        return None
    try:
        return read_line(source.line(place), endpoint=batch.endpoint).custom_id
    except (NotFoundError, DataLossError):
        return None


def _unreadable(error: KalaError) -> LineProblem:
    return LineProblem(UNREADABLE_CODE, f"the input file cannot be read: {error.message}", "input_file_id")


def _ending_of(batch: Batch) -> tuple[str, LineProblem | None]:
    """Give how a batch ends, and what is said of the lines that were not carried out; known also after a restart."""
    if batch.status == model.CANCELLING:
        return model.CANCELLED, LineProblem(CANCELLED_CODE, "the batch was cancelled before this request")
    for noted in batch.errors:
        problem = LineProblem(noted["code"], noted["message"])
        if problem.code == EXPIRED_CODE:
            return model.EXPIRED, problem
        if problem.code in {*KEY_CODES, UNREADABLE_CODE}:
            return model.FAILED, problem
    return model.COMPLETED, None


async def _all_or_none(hands: Sequence[Coroutine[object, object, None]]) -> None:
    """Wait for all; the first failure ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(hand) for hand in hands]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
