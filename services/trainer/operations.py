"""Long work as operations: accepted once, queued, bounded by its deadline, cancelled, remembered over restarts.

An operation wraps an async function of the service, which may run processes. The record that the work begins is durable
before anything starts; its end is logged before the operation says that it is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import structlog
from google.longrunning import operations_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2

from kala.common.v1.clearance_pb2 import Principal
from kala.errors import (
    AlreadyExistsError,
    CancelledError,
    DeadlineExceededError,
    InternalError,
    KalaError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.deadlines import fresh_deadline
from services.common.service_records import Facts
from services.common.status import to_status
from services.trainer.endings import BUILD, EVALUATE, EXPORT, TRAIN, claim_in, facts_of, restarted
from services.trainer.executors.model import LET_GO, Executor
from services.trainer.names import OPERATIONS, new_number, number_of, numbered, require_request_id
from services.trainer.places import Places
from services.trainer.records import Claim, Cleared, Records
from services.trainer.running import Running
from services.trainer.store.operation_rows import OperationRow
from services.trainer.store.store import Store

KEPT_SECONDS: Final = 30 * 86_400
"""After its end an operation can be read for this long, as the contract says."""

RETRY_SECONDS: Final = 60.0
"""When a queue is full: places become free in minutes, not in seconds."""

END_RETRY_SECONDS: Final = 5.0
"""Between two tries to log an end while the log is away: nothing says that it is done before the log knows."""

Run = Callable[[Running], Awaitable[Message]]
"""The work of one operation; returns the operation's response."""


async def _settled(running: Running, error: KalaError | None) -> Message | None:
    del running, error
    return None


async def _heard(running: Running) -> None:
    del running


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one operation, and who else must hear of its end; both hooks run also when it never had its turn."""

    run: Run
    settle: Callable[[Running, KalaError | None], Awaitable[Message | None]] = _settled
    """Hears how it ended, when the log knows it and before the operation says so; may give the response anew."""
    cancelling: Callable[[Running], Awaitable[None]] = _heard
    """Hears that somebody wants it ended, before anything is."""
    began: Callable[[Running], Awaitable[None]] = _heard
    """Hears that it was accepted, before its caller does."""


log: Final = structlog.get_logger()

__all__ = ["BUILD", "EVALUATE", "EXPORT", "TRAIN", "Asked", "Lanes", "Operations", "Run", "Work"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants done."""

    kind: str
    """TRAIN, BUILD, EVALUATE or EXPORT."""
    request_id: str
    principal: Principal
    digest: bytes
    """Of everything that was asked, so that the same id for something else is refused."""
    seconds: float
    """Longest time to its end, queue included."""
    claims: Sequence[str] = ()
    """Names that no other operation may have meanwhile, e.g. of the adapter to be made."""
    started: str = ""
    """Type of the record that it begins; empty for unguarded work."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Further facts of that record."""
    metadata: Message | None = None
    """The operation's metadata at first."""


@dataclass(frozen=True, slots=True)
class Lanes:
    """How much runs at a time: jobs have a lane of their own, so that a build does not wait for a day of training."""

    max_jobs: int
    max_tasks: int
    max_queued: int


class Observer(Protocol):
    """Counts operations."""

    def began(self, kind: str) -> None:
        """One was accepted."""
        ...

    def ended(self, kind: str, status: str) -> None:
        """One ended."""
        ...


class Operations:
    """The operations of one trainer."""

    def __init__(
        self,
        *,
        store: Store,
        records: Records,
        places: Places,
        executors: Mapping[str, Executor],
        lanes: Lanes,
        observe: Observer | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.executors = executors
        self._store = store
        self._records = records
        self._places = places
        self._clock = clock
        self._sizes = lanes
        self._observe = observe
        self._lanes = {True: asyncio.Semaphore(lanes.max_jobs), False: asyncio.Semaphore(lanes.max_tasks)}
        self._running: dict[str, Running] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._works: dict[str, Work] = {}
        self._starting = asyncio.Lock()
        self._is_closing = False

    async def start(
        self, asked: Asked, work: Work | Run, *, cleared: Cleared | None = None, name: str = ""
    ) -> operations_pb2.Operation:
        """Accept work, or give the operation that the same request has already become.

        Raises AlreadyExistsError for an id that was used for something else and for a claim that another operation has,
        ResourceExhaustedError when the queue is full, ClearanceError when the clearance was used before, and
        UnavailableError when the log is away: then nothing has begun.
        """
        require_request_id(asked.request_id)
        begun = work if isinstance(work, Work) else Work(work)
        # Whoever asked may go away half-way: what has a record by then begins all the same.
        starting = asyncio.ensure_future(self._start(asked, begun, cleared, name))
        return await asyncio.shield(starting)

    async def _start(
        self, asked: Asked, work: Work, cleared: Cleared | None, name: str
    ) -> operations_pb2.Operation:
        async with self._starting:
            known = await self.find(asked)
            if known is not None:
                return known
            self._require_room(asked.kind)
            name = name or numbered(OPERATIONS, new_number())
            row = self._row(asked, cleared, name)
            # Written before the log is asked: what a crash leaves without its record is ended at the next start.
            await self._store.operations.insert(row, asked.claims)
            try:
                claim = None
                if cleared is not None:
                    claim = await self._records.claim(
                        cleared, kind=asked.started, attributes={"operation": name, **asked.attributes}
                    )
                    row = replace(row, intent=claim.key, execution_id=claim.execution_id)
                    await self._store.operations.mark_begun(row)
                running = await self._launch(row, claim, work)
            except Exception:
                # It has not begun, and the same request may be tried again.
                await self._store.operations.remove(row.name)
                raise
            return running.operation

    async def find(self, asked: Asked) -> operations_pb2.Operation | None:
        """The operation that this request has become; None for a new one. AlreadyExistsError for another one's id."""
        row = await self._store.operations.find(asked.principal, asked.kind, asked.request_id)
        if row is None:
            return None
        if row.request_digest != asked.digest:
            raise AlreadyExistsError(
                f"request_id {asked.request_id} was used for something else; choose another one",
                reason="REQUEST_ID_REUSED",
            )
        return self.as_it_stands(row.operation)

    async def get(self, name: str, principal: Principal) -> operations_pb2.Operation:
        """An operation as it stands; NotFoundError when there is none for this tenant."""
        number_of(OPERATIONS, name)
        return self.as_it_stands((await self._store.operations.get(name, principal.tenant)).operation)

    def as_it_stands(self, stored: operations_pb2.Operation) -> operations_pb2.Operation:
        """Give a stored operation with what it has done since, where it still runs."""
        running = self._running.get(stored.name)
        return stored if running is None else running.operation

    async def cancel(self, name: str, principal: Principal) -> None:
        """End an operation; one that has ended stays as it is."""
        number_of(OPERATIONS, name)
        await self._store.operations.get(name, principal.tenant)
        await self.end(name)

    async def end(self, name: str, reason: str = "CANCELLED") -> bool:
        """End an operation's work; False when it has ended. Returns at once."""
        running, task = self._running.get(name), self._tasks.get(name)
        if running is None or task is None or running.is_finishing:
            return False
        if not running.is_cancelled:
            running.cancelled_for = reason
            await self._works[name].cancelling(running)
            # A task that is cancelled before its first step would end without a word.
            await asyncio.sleep(0)
            if not running.is_finishing:
                task.cancel()
        return True

    async def wait(self, name: str) -> None:
        """Return when an operation has ended."""
        task = self._tasks.get(name)
        if task is not None:
            await asyncio.wait([task])

    async def recover(
        self, resume: Mapping[str, Callable[[OperationRow, Claim], Awaitable[Work | None]]]
    ) -> None:
        """Take up what an earlier life of this service left: kinds in `resume` go on, everything else ends as ABORTED.

        `resume` gives the function that goes on with the work, or None when there is nothing to go on with.
        """
        for row in await self._store.operations.unfinished():
            work = None
            claim = claim_in(row)
            if claim is not None and row.kind in resume:
                work = await resume[row.kind](row, claim)
            if work is None:
                await self._abort(row, claim)
            else:
                await self._launch(row, claim, work)

    async def sweep(self) -> Sequence[str]:
        """Forget what ended long ago, and name it."""
        return await self._store.operations.remove_ended(_micros(self._clock() - KEPT_SECONDS))

    async def aclose(self) -> None:
        """End every process; what was running goes on, or ends as ABORTED, at the next start."""
        self._is_closing = True
        tasks = list(self._tasks.values())
        for name, task in list(self._tasks.items()):
            if not self._running[name].is_finishing:
                task.cancel(LET_GO)
        if tasks:
            await asyncio.wait(tasks)

    def _require_room(self, kind: str) -> None:
        if self._is_closing:
            raise UnavailableError("the trainer is being stopped; try again in a moment")
        is_job = kind == TRAIN
        there = sum((running.row.kind == TRAIN) == is_job for running in self._running.values())
        places = self._sizes.max_jobs if is_job else self._sizes.max_tasks
        if there >= places + self._sizes.max_queued:
            raise ResourceExhaustedError(
                f"{there - places} pieces of work wait already; try again later, or cancel one",
                reason="QUEUE_FULL",
                retry_after_seconds=RETRY_SECONDS,
            )

    def _row(self, asked: Asked, cleared: Cleared | None, name: str) -> OperationRow:
        operation = operations_pb2.Operation(name=name)
        if asked.metadata is not None:
            operation.metadata.Pack(asked.metadata)
        now = self._clock()
        return OperationRow(
            name=name,
            kind=asked.kind,
            principal=asked.principal,
            request_id=asked.request_id,
            request_digest=asked.digest,
            created_at=_micros(now),
            deadline_at=_micros(now + asked.seconds),
            operation=operation,
            sealed=None if cleared is None else cleared.sealed,
        )

    async def _launch(self, row: OperationRow, claim: Claim | None, work: Work) -> Running:
        running = Running(row, claim, self._places.work(number_of(OPERATIONS, row.name)), self.executors)
        running.bind(self._store, self._clock)
        await work.began(running)
        self._running[row.name] = running
        self._works[row.name] = work
        if self._observe is not None:
            self._observe.began(row.kind)
        task = asyncio.get_running_loop().create_task(self._live(running, work), name=row.name)
        self._tasks[row.name] = task
        task.add_done_callback(self._gone)
        return running

    def _gone(self, task: asyncio.Task[None]) -> None:
        name = task.get_name()
        self._running.pop(name, None)
        self._tasks.pop(name, None)
        self._works.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("operation_end_not_kept", operation=name, exc_info=error)

    async def _live(self, running: Running, work: Work) -> None:
        """Wait for a place, do the work, say how it ended; the RPC that asked for it has long been answered."""
        with fresh_deadline():
            lane = self._lanes[running.row.kind == TRAIN]
            since = self._clock()
            try:
                seconds = running.row.deadline_at / 1e6 - since
                async with asyncio.timeout(max(0.0, seconds)):
                    async with lane:
                        response: Message | KalaError = await work.run(running)
            except TimeoutError:
                response = DeadlineExceededError(
                    "its deadline is over, and with it its clearance; ask for a longer one"
                )
            except asyncio.CancelledError:
                if not running.is_cancelled:
                    if self._is_closing:
                        return
                    raise
                response = CancelledError("it was cancelled", reason=running.cancelled_for)
            except KalaError as error:
                response = error
            except Exception as error:
                log.exception("operation_broke", operation=running.name)
                response = InternalError(f"a bug in the trainer ({type(error).__name__}); its log says more")
            await self._finish(running, work, response, since)

    async def _finish(
        self, running: Running, work: Work, response: Message | KalaError, since: float
    ) -> None:
        """Log the end, then say that it is done; waits for a log that is away."""
        running.is_finishing = True
        facts = facts_of(running, response, self._clock() - since)
        if running.claim is not None and not await self._log_end(running.claim, facts):
            return
        operation = running.operation
        anew = await work.settle(running, response if isinstance(response, KalaError) else None)
        if anew is not None and not isinstance(response, KalaError):
            response = anew
        if isinstance(response, KalaError):
            operation.error.CopyFrom(to_status(response))
            if isinstance(response, CancelledError):
                operation.error.code = code_pb2.CANCELLED
        else:
            operation.response.Pack(response)
        operation.done = True
        await self._store.operations.update(operation, ended_at=_micros(self._clock()))
        if self._observe is not None:
            self._observe.ended(running.row.kind, facts.status)

    async def _log_end(self, claim: Claim, facts: Facts) -> bool:
        """Log an end however long it takes; False when this service is being stopped, which the next one sees."""
        while True:
            try:
                await self._records.ended(claim, facts)
            except UnavailableError as error:
                log.warning("end_not_recorded", problem=error.message)
                if self._is_closing:
                    return False
                await asyncio.sleep(END_RETRY_SECONDS)
            else:
                return True

    async def _abort(self, row: OperationRow, claim: Claim | None) -> None:
        """End what was cut by a restart and cannot go on."""
        if claim is not None:
            await self._records.ended(claim, Facts("error", "RESTARTED"))
        operation = row.operation
        operation.done = True
        operation.error.CopyFrom(restarted())
        await self._store.operations.update(operation, ended_at=_micros(self._clock()))


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)
