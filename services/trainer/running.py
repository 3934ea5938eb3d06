"""One operation while it runs: its metadata, its folder, its processes."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
from google.longrunning import operations_pb2
from google.protobuf.message import Message

from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, KalaError
from kala.trainer.v1 import job_pb2
from services.trainer.executors.model import Executor, Task
from services.trainer.records import Claim
from services.trainer.store.operation_rows import OperationRow
from services.trainer.work.ended import Ended
from services.trainer.work.events import Event, EventReader
from services.trainer.work.order import Order, write_order
from services.trainer.work.results import clear_end

if TYPE_CHECKING:
    from services.trainer.store.store import Store

LOCAL: Final = "local"
RAY: Final = "ray"

POLL_SECONDS: Final = 0.2
"""Between two looks at what a process has written: a watcher sees an event within half a second."""

SAVE_SECONDS: Final = 5.0
"""Between two writes of metadata that only says how far it is; the next life of the service does not need it."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)

log: Final = structlog.get_logger()

OnEvent = Callable[[Event], Awaitable[None]]


class Running:
    """What an operation's function works with."""

    def __init__(
        self, row: OperationRow, claim: Claim | None, folder: Path, executors: Mapping[str, Executor]
    ) -> None:
        self.row = row
        self.claim = claim
        self.folder = folder
        """Its own folder, `<state>/work/<number>`; more than one process may use folders below it, one after another."""
        self.cancelled_for = ""
        self.is_finishing = False
        """Whether its work is over and only its end is being written."""
        self.end_attributes: dict[str, str] = {}
        """Facts for the record of its end, e.g. the adapter that was made."""
        self.end_references: list[ContentReference] = []
        """Files for the record of its end."""
        self.on_metadata: Callable[[Message], Awaitable[None]] | None = None
        """Takes what is shown instead of the operation, e.g. the progress of an evaluation inside a job."""
        self._executors = executors
        self._operation = operations_pb2.Operation()
        self._operation.CopyFrom(row.operation)
        self._store: Store | None = None
        self._clock: Callable[[], float] = time.time
        self._next_save = 0.0

    def bind(self, store: Store, clock: Callable[[], float]) -> None:
        """Name where it is kept."""
        self._store, self._clock = store, clock

    @property
    def name(self) -> str:
        """Its name, "operations/<32 hex>"."""
        return self.row.name

    @property
    def principal(self) -> Principal:
        """On whose behalf."""
        return self.row.principal

    @property
    def deadline(self) -> float:
        """Unix time in seconds when it must have ended."""
        return self.row.deadline_at / 1e6

    @property
    def intent_receipt(self) -> str:
        """Receipt id of the record that it began; empty for unguarded work."""
        return "" if self.claim is None else self.claim.receipt_id

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody wants it ended."""
        return bool(self.cancelled_for)

    @property
    def operation(self) -> operations_pb2.Operation:
        """The operation as it stands."""
        return self._operation

    async def show(self, metadata: Message) -> None:
        """Say how far it is: in the metadata of the operation, unless somebody else takes it."""
        if self.on_metadata is not None:
            await self.on_metadata(metadata)
        else:
            await self.show_in_operation(metadata)

    async def show_in_operation(self, metadata: Message) -> None:
        """Put metadata into the operation itself."""
        self._operation.metadata.Pack(metadata)
        now = self._clock()
        if self._store is not None and now >= self._next_save:
            self._next_save = now + SAVE_SECONDS
            await self._store.operations.update(self._operation)

    async def process(
        self,
        order: Order,
        *,
        public_keys: tuple[Path, ...] = (),
        executor: str = LOCAL,
        placement: job_pb2.Placement | None = None,
        on_event: OnEvent | None = None,
        attached: Callable[[str], Awaitable[None]] | None = None,
        elsewhere_id: str = "",
    ) -> dict[str, Any]:  # Any: JSON of the kind's own
        """Run a process on the order and return its result; raises what it told, or WORK_CRASHED."""
        ended = await self.attempt(
            order,
            public_keys=public_keys,
            executor=executor,
            placement=placement,
            on_event=on_event,
            attached=attached,
            elsewhere_id=elsewhere_id,
        )
        return ended.result(order.folder)

    async def attempt(
        self,
        order: Order,
        *,
        public_keys: tuple[Path, ...] = (),
        executor: str = LOCAL,
        placement: job_pb2.Placement | None = None,
        on_event: OnEvent | None = None,
        attached: Callable[[str], Awaitable[None]] | None = None,
        elsewhere_id: str = "",
    ) -> Ended:
        """Run a process on the order once and say how it ended; the events it wrote have been told by then."""
        runner = self._executors.get(executor)
        if runner is None:
            raise FailedPreconditionError(
                f"placement.executor: this trainer has no {executor} executor; "
                "set KALA_TRAINER_RAY_ADDRESS, or use EXECUTOR_LOCAL"
            )
        if not elsewhere_id:
            guarded = order.action is not None and self.claim is not None
            sealed = self.claim.sealed if guarded and self.claim is not None else None
            audience = "" if sealed is None or self.claim is None else self.claim.claims.audience
            try:
                await asyncio.to_thread(
                    write_order, order, sealed=sealed, audience=audience, public_keys=public_keys
                )
                await asyncio.to_thread(clear_end, order.folder)
            except OSError as error:
                raise FailedPreconditionError(
                    f"the work's folder cannot be written: {error.strerror}; make place in KALA_TRAINER_STATE_DIR",
                    reason="DISK_FULL" if error.errno in _FULL else "STATE_NOT_WRITABLE",
                ) from error
        task = Task(order.folder, order.threads, placement or job_pb2.Placement(), elsewhere_id)
        reader = EventReader(order.folder)
        # What an earlier run of the same work wrote has been told already.
        await asyncio.to_thread(reader.skip)
        following = asyncio.create_task(_follow(reader, on_event or _ignore))
        try:
            ended = await runner.run(task, attached or _unattached)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await _tell(reader, on_event or _ignore)
        return ended


async def _follow(reader: EventReader, on_event: OnEvent) -> None:
    while True:
        try:
            await _tell(reader, on_event)
        except (KalaError, OSError) as error:
            # Work goes on although nobody can be told at the moment; what is final is told once more at its end.
            log.warning("event_not_told", problem=str(error))
        await asyncio.sleep(POLL_SECONDS)


async def _tell(reader: EventReader, on_event: OnEvent) -> None:
    while events := await asyncio.to_thread(reader.read):
        for event in events:
            await on_event(event)


async def _ignore(event: Event) -> None:
    del event


async def _unattached(elsewhere_id: str) -> None:
    del elsewhere_id
