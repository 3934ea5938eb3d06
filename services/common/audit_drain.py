"""Empties the spool into the log: in order, exactly once, past records that the log will never take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final, ParamSpec, Protocol, TypeVar

import structlog

from kala.audit.v1 import audit_pb2
from kala.errors import AlreadyExistsError, KalaError
from services.common.audit_refusals import is_refusal, may_be_refusal, notice_of, without_content_of
from services.common.audit_types import receipt_id
from services.common.spool import Spool

DRAIN_RECORDS: Final = 256
# What stays well below gRPC's largest message.
MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
# After a failed call: a line too slow for the usual batch must still empty the spool.
PATIENT_BATCH_BYTES: Final = 1024 * 1024
# Failures over one record, of no particular kind, before another record tells whether it is the record or the log.
STRIKES: Final = 4

log = structlog.get_logger()

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Runner(Protocol):
    """Runs a blocking call in the one thread that owns the spool's files."""

    def __call__(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Awaitable[_T]: ...


class SpoolDrain:
    """Delivers what waits in one spool, and forgets what was delivered."""

    def __init__(
        self,
        spool: Spool,
        *,
        call: Callable[[Sequence[audit_pb2.Record]], Awaitable[None]],
        run: Runner,
        clock: Callable[[], datetime],
    ) -> None:
        """`call` appends records to the log, all or none, and raises what it answers."""
        self._spool = spool
        self._call = call
        self._run = run
        self._clock = clock
        self._strikes = 0
        # Held while records are on their way, so that an erasure finds all of them in one place.
        self._busy = asyncio.Lock()

    async def deliver_some(self, *, is_patient: bool) -> None:
        """Delivers the oldest records; raises what the log answers while they have to wait."""
        async with self._busy:
            most = PATIENT_BATCH_BYTES if is_patient else MAX_BATCH_BYTES
            waiting = await self._run(self._spool.peek, DRAIN_RECORDS, most)
            records = [audit_pb2.Record.FromString(data) for data in waiting]
            try:
                await self._call(records)
            except KalaError as error:
                if not may_be_refusal(error):
                    raise
                for record in records:
                    await self._deliver_one(record)
                    await self._run(self._spool.drop, 1)
            else:
                await self._run(self._spool.drop, len(records))

    async def erase_subject(self, subject_key_id: str, tenant: str) -> int:
        """Takes the content of this tenant's subject out of every record, waiting or set aside; tells of how many."""
        async with self._busy:
            return await self._run(
                self._spool.rewrite, lambda data: without_content_of(data, subject_key_id, tenant)
            )

    async def _deliver_one(self, record: audit_pb2.Record) -> None:
        """Delivers one record; one that the log refuses for ever is named in the log and kept aside."""
        error = await self._refusal_of(record)
        if error is not None and not is_refusal(error):
            self._strikes += 1
            if self._strikes < STRIKES:
                raise error
            await self._name_refused(record, error)
            # The log takes records now; perhaps it recovered just then and takes this one too, notice or not.
            error = await self._refusal_of(record)
        elif error is not None:
            await self._name_refused(record, error)
        self._strikes = 0
        if error is not None:
            await self._run(self._spool.set_aside, record.SerializeToString())
            name = receipt_id(record.idempotency_key)
            log.error("the log refuses a spooled record", receipt=name, error=error.message)

    async def _refusal_of(self, record: audit_pb2.Record) -> KalaError | None:
        """What the log has against this record; None when it took it."""
        try:
            await self._call([record])
        except KalaError as error:
            if not may_be_refusal(error):
                raise
            return error
        return None

    async def _name_refused(self, record: audit_pb2.Record, error: KalaError) -> None:
        """Puts a notice of the refused record in the log. That the log takes it shows that the refusal is the record's.

        Raises what the log answers when it takes neither: then it is the log that fails, and the record waits.
        """
        try:
            await self._call([notice_of(record, error, self._clock())])
        except AlreadyExistsError:
            # A process that died before it set the record aside named it.
            return
        except KalaError as failure:
            if not (is_refusal(error) and is_refusal(failure)):
                raise
