"""Batches in SQL: what clients see of them, and what their workers write.  Blocking: call it by `asyncio.to_thread`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, func, insert, or_, select, update

from gateway.batches import model
from gateway.batches.model import Batch, LinePlace, LineProblem, LineResult, no_such_batch
from gateway.batches.tables import BATCH, BATCH_LINE, BATCH_PERSON
from gateway.database import translated
from gateway.key_table import from_micros, to_micros
from gateway.leases import LeaseLostError, claim, hold, release
from gateway.newest_first import newest_first
from kala.errors import NotFoundError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

    from gateway.payloads import Payloads

ENDED_KEPT: Final = timedelta(days=180)
"""How long a batch can be looked up; its files end on their own."""


class BatchStore:
    """The batches of one database."""

    def __init__(
        self, engine: Engine, payloads: Payloads, *, lease: timedelta, now: Callable[[], datetime]
    ) -> None:
        self._engine = engine
        self._payloads = payloads
        self._lease = lease
        self._now = now

    def create(self, batch: Batch) -> None:
        """Store a new batch, to be validated."""
        notes = self._sealed_notes(batch.tenant, batch.subject, batch.id, batch.metadata, ())
        life = batch.output_life
        with translated(), self._engine.begin() as connection:
            connection.execute(
                insert(BATCH).values(
                    id=batch.id,
                    tenant=batch.tenant,
                    owner=batch.owner,
                    subject=batch.subject,
                    endpoint=batch.endpoint,
                    input_file_id=batch.input_file_id,
                    sealed_notes=notes,
                    status=model.VALIDATING,
                    created_at=to_micros(batch.created_at),
                    expires_at=to_micros(batch.expires_at),
                    output_seconds=None if life is None else round(life.total_seconds()),
                    total=0,
                    completed=0,
                    failed=0,
                    input_tokens=0,
                    output_tokens=0,
                )
            )

    def get(self, tenant: str, batch_id: str) -> Batch:
        """Give a batch of a tenant, or raise NotFoundError."""
        with translated(), self._engine.connect() as connection:
            row = connection.execute(
                select(BATCH).where(BATCH.c.id == batch_id, BATCH.c.tenant == tenant)
            ).first()
        if row is None:
            raise no_such_batch(batch_id)
        return self._batch_of(row)

    def list(self, tenant: str, *, limit: int, after: str = "") -> Sequence[Batch]:
        """List a tenant's batches, the newest first; `after` continues behind one."""
        with translated(), self._engine.connect() as connection:
            rows = newest_first(connection, BATCH, tenant, limit=limit, after=after, noun="batch")
        return [batch for row in rows if (batch := self._readable(row)) is not None]

    def cancel(self, tenant: str, batch_id: str) -> Batch:
        """Ask for a batch's end; one that has ended stays as it is."""
        stopping = (
            update(BATCH)
            .where(
                BATCH.c.id == batch_id,
                BATCH.c.tenant == tenant,
                BATCH.c.status.in_((model.VALIDATING, model.IN_PROGRESS)),
            )
            .values(status=model.CANCELLING, cancelling_at=to_micros(self._now()))
        )
        with translated(), self._engine.begin() as connection:
            connection.execute(stopping)
        return self.get(tenant, batch_id)

    def claim(self, holder: str) -> Batch | None:
        """Take the batch that is due, for one lease; None when none is."""
        with translated(), self._engine.begin() as connection:
            due = BATCH.c.status.in_(model.AT_WORK)
            row = claim(connection, BATCH, due, holder=holder, now=self._now(), lease=self._lease)
        batch = None if row is None else self._readable(row)
        if row is not None and batch is None:
            # Written while its person was erased: nobody can read it any more.
            with translated(), self._engine.begin() as connection:
                _remove(connection, row.id)
        return batch

    def renew(self, batch_id: str, holder: str) -> str:
        """Hold on to a batch, and give its status; LeaseLostError when it is another's."""
        with translated(), self._engine.begin() as connection:
            row = hold(connection, BATCH, batch_id, holder=holder, now=self._now(), lease=self._lease)
            return str(row.status)

    def release(self, batch_id: str, holder: str, *, pause: timedelta = timedelta()) -> None:
        """Let go of a batch; nobody takes it up before `pause` is over."""
        with translated(), self._engine.begin() as connection:
            release(connection, BATCH, batch_id, holder=holder, until=self._now() + pause)

    def accept(self, batch: Batch, holder: str, places: Sequence[LinePlace], persons: Iterable[str]) -> Batch:
        """Begin the work on a valid input file; `persons` are the subjects that its requests name."""
        lines = [
            {
                "batch_id": batch.id,
                "number": place.number,
                "start": place.start,
                "length": place.length,
                "attempts": 0,
            }
            for place in places
        ]
        named = [{"batch_id": batch.id, "subject": subject} for subject in sorted(set(persons))]
        with translated(), self._engine.begin() as connection:
            row = hold(
                connection, BATCH, batch.id, holder=holder, now=self._now(), values={"total": len(lines)}
            )
            if row.status == model.VALIDATING:
                row = self._enter(connection, batch.id, holder, model.IN_PROGRESS)
            connection.execute(delete(BATCH_LINE).where(BATCH_LINE.c.batch_id == batch.id))
            connection.execute(delete(BATCH_PERSON).where(BATCH_PERSON.c.batch_id == batch.id))
            connection.execute(insert(BATCH_LINE), lines)
            if named:
                connection.execute(insert(BATCH_PERSON), named)
        return self._batch_of(row)

    def reject(self, batch: Batch, holder: str, problems: Sequence[LineProblem]) -> None:
        """End a batch whose input file is not one, or whose answers cannot be kept any longer."""
        errors = [problem.to_json() for problem in problems]
        notes = self._sealed_notes(batch.tenant, batch.subject, batch.id, batch.metadata, errors)
        with translated(), self._engine.begin() as connection:
            self._enter(connection, batch.id, holder, model.FAILED, sealed_notes=notes, lease_until=None)
            connection.execute(delete(BATCH_LINE).where(BATCH_LINE.c.batch_id == batch.id))

    def note(self, batch: Batch, holder: str, problem: LineProblem) -> None:
        """Keep why a batch will end early."""
        errors = [*batch.errors, problem.to_json()]
        notes = self._sealed_notes(batch.tenant, batch.subject, batch.id, batch.metadata, errors)
        with translated(), self._engine.begin() as connection:
            hold(connection, BATCH, batch.id, holder=holder, now=self._now(), values={"sealed_notes": notes})

    def pending(self, batch_id: str, *, limit: int, after: int = 0) -> Sequence[LinePlace]:
        """List lines that are not done, behind one."""
        query = (
            select(BATCH_LINE)
            .where(
                BATCH_LINE.c.batch_id == batch_id,
                BATCH_LINE.c.succeeded.is_(None),
                BATCH_LINE.c.number > after,
            )
            .order_by(BATCH_LINE.c.number)
            .limit(limit)
        )
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [LinePlace(row.number, row.start, row.length, row.attempts) for row in rows]

    def attempted(self, batch_id: str, holder: str, number: int) -> int:
        """Count one more attempt that came to nothing, and give how many there were."""
        counted = (
            update(BATCH_LINE)
            .where(BATCH_LINE.c.batch_id == batch_id, BATCH_LINE.c.number == number)
            .values(attempts=BATCH_LINE.c.attempts + 1)
            .returning(BATCH_LINE.c.attempts)
        )
        with translated(), self._engine.begin() as connection:
            hold(connection, BATCH, batch_id, holder=holder, now=self._now())
            return connection.execute(counted).scalar() or 0

    def record(self, batch: Batch, holder: str, result: LineResult) -> str:
        """Keep what a line came to, once, and give the batch's status; LeaseLostError when it is another's."""
        sealed = self._payloads.seal(
            batch.tenant, batch.subject, result.line, _result_context(batch.id, result.number)
        )
        count = BATCH.c.completed if result.succeeded else BATCH.c.failed
        kept = (
            update(BATCH_LINE)
            .where(
                BATCH_LINE.c.batch_id == batch.id,
                BATCH_LINE.c.number == result.number,
                BATCH_LINE.c.succeeded.is_(None),
            )
            .values(succeeded=result.succeeded, sealed_result=sealed)
        )
        with translated(), self._engine.begin() as connection:
            row = hold(
                connection,
                BATCH,
                batch.id,
                holder=holder,
                now=self._now(),
                values={
                    "input_tokens": BATCH.c.input_tokens + result.input_tokens,
                    "output_tokens": BATCH.c.output_tokens + result.output_tokens,
                    count.name: count + 1,
                },
            )
            if not connection.execute(kept).rowcount:
                raise LeaseLostError  # it was done by another holder, whose answer stays
        return str(row.status)

    def results(self, batch: Batch, *, limit: int, after: int = 0) -> Sequence[LineResult]:
        """Read what lines came to, in their order, behind one."""
        query = (
            select(BATCH_LINE)
            .where(
                BATCH_LINE.c.batch_id == batch.id,
                BATCH_LINE.c.succeeded.is_not(None),
                BATCH_LINE.c.number > after,
            )
            .order_by(BATCH_LINE.c.number)
            .limit(limit)
        )
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [
            LineResult(
                row.number,
                row.succeeded,
                self._payloads.open(
                    batch.tenant, batch.subject, row.sealed_result, _result_context(batch.id, row.number)
                ),
            )
            for row in rows
        ]

    def finalizing(self, batch: Batch, holder: str) -> None:
        """Say that only its files are to be written; one that is being cancelled stays that."""
        if batch.status == model.IN_PROGRESS:
            with translated(), self._engine.begin() as connection:
                self._enter(connection, batch.id, holder, model.FINALIZING, only_from=model.IN_PROGRESS)

    def end(
        self,
        batch: Batch,
        holder: str,
        status: str,
        *,
        output_file_id: str | None,
        error_file_id: str | None,
        publish: Callable[[Connection], None],
    ) -> None:
        """End a batch with its files, all at once: `publish` makes them visible in the same transaction."""
        with translated(), self._engine.begin() as connection:
            self._enter(
                connection,
                batch.id,
                holder,
                status,
                output_file_id=output_file_id,
                error_file_id=error_file_id,
                lease_until=None,
            )
            publish(connection)
            connection.execute(delete(BATCH_LINE).where(BATCH_LINE.c.batch_id == batch.id))

    def unread(self, tenant: str) -> Mapping[str, str]:
        """Give a tenant's batches of which no line was accepted, with their input files: whom those name is not known."""
        query = select(BATCH.c.id, BATCH.c.input_file_id).where(BATCH.c.tenant == tenant, BATCH.c.total == 0)
        with translated(), self._engine.connect() as connection:
            return {row.id: row.input_file_id for row in connection.execute(query)}

    def erase(self, tenant: str, subject: str, *, also: Sequence[str] = ()) -> tuple[int, Sequence[str]]:
        """Delete every batch of a person or that names them; give how many, and the files that they read and wrote."""
        named = select(BATCH_PERSON.c.batch_id).where(BATCH_PERSON.c.subject == subject)
        theirs = or_(BATCH.c.subject == subject, BATCH.c.id.in_(named), BATCH.c.id.in_(also))
        query = select(BATCH).where(BATCH.c.tenant == tenant, theirs)
        with translated(), self._engine.begin() as connection:
            rows = connection.execute(query).all()
            for row in rows:
                _remove(connection, row.id)
        files = [(row.input_file_id, row.output_file_id, row.error_file_id) for row in rows]
        return len(rows), [file for each in files for file in each if file]

    def sweep(self) -> None:
        """Forget batches that ended long ago."""
        past = to_micros(self._now() - ENDED_KEPT)
        query = select(BATCH.c.id).where(BATCH.c.created_at <= past, BATCH.c.status.not_in(model.AT_WORK))
        with translated(), self._engine.begin() as connection:
            for batch_id in connection.execute(query.limit(1000)).scalars().all():
                _remove(connection, batch_id)

    def waiting(self, tenant: str) -> int:
        """Count a tenant's batches that have not ended."""
        query = select(func.count()).where(BATCH.c.tenant == tenant, BATCH.c.status.in_(model.AT_WORK))
        with translated(), self._engine.connect() as connection:
            return connection.execute(query).scalar() or 0

    def _enter(
        self,
        connection: Connection,
        batch_id: str,
        holder: str,
        status: str,
        *,
        only_from: str | None = None,
        **values: object,
    ) -> Row[Any]:  # Any: SQLAlchemy types rows by their query
        row = hold(connection, BATCH, batch_id, holder=holder, now=self._now())
        if only_from is not None and row.status != only_from:
            return row
        values |= {"status": status, f"{status}_at": to_micros(self._now())}
        return hold(connection, BATCH, batch_id, holder=holder, now=self._now(), values=values)

    def _sealed_notes(
        self,
        tenant: str,
        subject: str,
        batch_id: str,
        metadata: Mapping[str, str] | None,
        errors: Sequence[Mapping[str, Any]],  # Any: JSON
    ) -> bytes:
        notes = json.dumps({"metadata": metadata, "errors": list(errors)}).encode()
        return self._payloads.seal(tenant, subject, notes, _notes_context(batch_id))

    def _readable(self, row: Row[Any]) -> Batch | None:  # Any: as below
        try:
            return self._batch_of(row)
        except NotFoundError:
            return None

    def _batch_of(self, row: Row[Any]) -> Batch:  # Any: SQLAlchemy types rows by their query
        try:
            sealed = self._payloads.open(row.tenant, row.subject, row.sealed_notes, _notes_context(row.id))
        except NotFoundError as error:  # its person was erased this moment
            raise no_such_batch(row.id) from error
        notes = json.loads(sealed)
        stamps = {name: getattr(row, name) for name in model.STAMPS}
        return Batch(
            id=row.id,
            tenant=row.tenant,
            owner=row.owner,
            subject=row.subject,
            endpoint=row.endpoint,
            input_file_id=row.input_file_id,
            status=row.status,
            created_at=from_micros(row.created_at),
            expires_at=from_micros(row.expires_at),
            metadata=notes["metadata"],
            errors=notes["errors"],
            stamps={name: from_micros(at) for name, at in stamps.items() if at is not None},
            output_file_id=row.output_file_id,
            error_file_id=row.error_file_id,
            output_life=None if row.output_seconds is None else timedelta(seconds=row.output_seconds),
            total=row.total,
            completed=row.completed,
            failed=row.failed,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
        )


def _remove(connection: Connection, batch_id: str) -> None:
    # Its row first: whoever writes a line holds it.
    connection.execute(select(BATCH.c.id).where(BATCH.c.id == batch_id).with_for_update())
    connection.execute(delete(BATCH_LINE).where(BATCH_LINE.c.batch_id == batch_id))
    connection.execute(delete(BATCH_PERSON).where(BATCH_PERSON.c.batch_id == batch_id))
    connection.execute(delete(BATCH).where(BATCH.c.id == batch_id))


def _notes_context(batch_id: str) -> bytes:
    return f"batch-notes:{batch_id}".encode()


def _result_context(batch_id: str, number: int) -> bytes:
    return f"batch-result:{batch_id}:{number}".encode()
