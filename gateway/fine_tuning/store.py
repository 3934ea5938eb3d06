"""Fine-tuning jobs in SQL, with their events.  Blocking: call it by `asyncio.to_thread`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, func, insert, select, update

from gateway.database import translated
from gateway.fine_tuning import model
from gateway.fine_tuning.model import Event, Job, no_such_job
from gateway.fine_tuning.tables import FINE_TUNING_EVENT, FINE_TUNING_JOB
from gateway.key_table import from_micros, to_micros
from gateway.leases import claim, hold, release
from gateway.newest_first import newest_first
from kala.errors import NotFoundError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

    from gateway.payloads import Payloads

_JOB: Final = FINE_TUNING_JOB
_EVENT: Final = FINE_TUNING_EVENT

MAX_EVENTS: Final = 10_000
"""Of one job: a day of training, a report every ten seconds."""

ENDED_KEPT: Final = timedelta(days=180)
"""How long a job that has ended can be looked up; its adapter stays."""


class FineTuningStore:
    """The fine-tuning jobs of one database."""

    def __init__(
        self, engine: Engine, payloads: Payloads, *, lease: timedelta, now: Callable[[], datetime]
    ) -> None:
        self._engine = engine
        self._payloads = payloads
        self._lease = lease
        self._now = now

    def create(self, job: Job) -> None:
        """Store a new job."""
        notes = self._seal_notes(job)
        event = self._seal_event(job, 1, Event("Created fine-tuning job."))
        with translated(), self._engine.begin() as connection:
            connection.execute(
                insert(_JOB).values(
                    id=job.id,
                    tenant=job.tenant,
                    owner=job.owner,
                    subject=job.subject,
                    model=job.model,
                    training_file=job.training_file,
                    sealed_notes=notes,
                    status=job.status,
                    step=job.step,
                    created_at=to_micros(job.created_at),
                )
            )
            connection.execute(insert(_EVENT).values(event))

    def get(self, tenant: str, job_id: str) -> Job:
        """Give a job of a tenant, or raise NotFoundError."""
        with translated(), self._engine.connect() as connection:
            row = connection.execute(select(_JOB).where(_JOB.c.id == job_id, _JOB.c.tenant == tenant)).first()
        if row is None:
            raise no_such_job(job_id)
        return self._job_of(row)

    def list(self, tenant: str, *, limit: int, after: str = "") -> Sequence[Job]:
        """List a tenant's jobs, the newest first; `after` continues behind one."""
        with translated(), self._engine.connect() as connection:
            rows = newest_first(connection, _JOB, tenant, limit=limit, after=after, noun="job")
        return [job for row in rows if (job := self._readable(row)) is not None]

    def events(self, job: Job, *, limit: int, before: int | None = None) -> Sequence[Event]:
        """List a job's events, the newest first, before a number."""
        query = select(_EVENT).where(_EVENT.c.job_id == job.id).order_by(_EVENT.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(_EVENT.c.number < before)
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [self._event_of(job, row) for row in rows]

    def cancel(self, tenant: str, job_id: str) -> Job:
        """End a job at once; what runs at the trainer is ended next. One that has ended stays as it is."""
        job = self.get(tenant, job_id)
        now = to_micros(self._now())
        ending = (
            update(_JOB)
            .where(_JOB.c.id == job_id, _JOB.c.tenant == tenant, _JOB.c.status.not_in(model.ENDED))
            .values(
                status=model.CANCELLED, step=model.STOP, finished_at=now, cancel_asked_at=now,
                # Whoever works on it loses it, and changes nothing more.
                lease_holder=None, lease_until=None,
            )
        )  # fmt: skip
        event = Event("The job was cancelled.")
        with translated(), self._engine.begin() as connection:
            if connection.execute(ending).rowcount:
                self._add(connection, job, event)
        return self.get(tenant, job_id)

    def claim(self, holder: str) -> Job | None:
        """Take the job that is due, for one lease; None when none is."""
        with translated(), self._engine.begin() as connection:
            due = _JOB.c.step != model.DONE
            row = claim(connection, _JOB, due, holder=holder, now=self._now(), lease=self._lease)
        job = None if row is None else self._readable(row)
        if row is not None and job is None:
            # Written while its person was erased: nobody can read it any more.
            with translated(), self._engine.begin() as connection:
                _remove(connection, row.id)
        return job

    def renew(self, job_id: str, holder: str) -> None:
        """Hold on to a job; LeaseLostError when it is another's, or was cancelled."""
        with translated(), self._engine.begin() as connection:
            hold(connection, _JOB, job_id, holder=holder, now=self._now(), lease=self._lease)

    def release(self, job_id: str, holder: str, *, pause: timedelta) -> None:
        """Let go of a job; nobody takes it up before `pause` is over."""
        with translated(), self._engine.begin() as connection:
            release(connection, _JOB, job_id, holder=holder, until=self._now() + pause)

    def save(self, job: Job, holder: str, *events: Event) -> None:
        """Keep how a job stands now and what happened; LeaseLostError when it is another's."""
        finished = job.finished_at or (self._now() if job.status in model.ENDED else None)
        values = {
            "sealed_notes": self._seal_notes(job),
            "status": job.status,
            "step": job.step,
            "finished_at": None if finished is None else to_micros(finished),
            "trainer_job": job.trainer_job,
            "adapter": job.adapter,
            "fine_tuned_model": job.fine_tuned_model,
        }
        with translated(), self._engine.begin() as connection:
            hold(connection, _JOB, job.id, holder=holder, now=self._now(), values=values)
            for event in events:
                self._add(connection, job, event)

    def erase(self, tenant: str, subject: str) -> int:
        """Delete every job of a person, and give how many there were."""
        query = select(_JOB.c.id).where(_JOB.c.tenant == tenant, _JOB.c.subject == subject)
        with translated(), self._engine.begin() as connection:
            ids = connection.execute(query).scalars().all()
            for job_id in ids:
                _remove(connection, job_id)
        return len(ids)

    def of(self, tenant: str, subject: str) -> Sequence[str]:
        """Name every job of a person."""
        query = select(_JOB.c.id).where(_JOB.c.tenant == tenant, _JOB.c.subject == subject)
        with translated(), self._engine.connect() as connection:
            return connection.execute(query).scalars().all()

    def needing_files(self) -> set[str]:
        """Name the jobs whose files lie before the trainer, or are being laid."""
        query = select(_JOB.c.id).where(_JOB.c.step.in_((model.LAY, model.BUILD)))
        with translated(), self._engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def sweep(self) -> None:
        """Forget jobs that ended long ago."""
        past = to_micros(self._now() - ENDED_KEPT)
        query = select(_JOB.c.id).where(_JOB.c.finished_at <= past, _JOB.c.step == model.DONE)
        with translated(), self._engine.begin() as connection:
            for job_id in connection.execute(query.limit(1000)).scalars().all():
                _remove(connection, job_id)

    def waiting(self, tenant: str) -> int:
        """Count a tenant's jobs that have not ended."""
        query = select(func.count()).where(_JOB.c.tenant == tenant, _JOB.c.status.not_in(model.ENDED))
        with translated(), self._engine.connect() as connection:
            return connection.execute(query).scalar() or 0

    def _add(self, connection: Connection, job: Job, event: Event) -> None:
        last = connection.execute(select(func.max(_EVENT.c.number)).where(_EVENT.c.job_id == job.id)).scalar()
        if (last or 0) < MAX_EVENTS:
            connection.execute(insert(_EVENT).values(self._seal_event(job, (last or 0) + 1, event)))

    def _seal_event(self, job: Job, number: int, event: Event) -> dict[str, object]:
        said = {"message": event.message, "level": event.level, "data": event.data}
        sealed = self._payloads.seal(
            job.tenant, job.subject, json.dumps(said).encode(), _event_context(job.id, number)
        )
        return {"job_id": job.id, "number": number, "created_at": to_micros(self._now()), "sealed": sealed}

    def _event_of(self, job: Job, row: Row[Any]) -> Event:  # Any: SQLAlchemy types rows by their query
        sealed = self._payloads.open(job.tenant, job.subject, row.sealed, _event_context(job.id, row.number))
        said = json.loads(sealed)
        return Event(said["message"], said["level"], said["data"], row.number, from_micros(row.created_at))

    def _seal_notes(self, job: Job) -> bytes:
        return self._payloads.seal(
            job.tenant, job.subject, json.dumps(job.notes).encode(), _notes_context(job.id)
        )

    def _readable(self, row: Row[Any]) -> Job | None:  # Any: as below
        try:
            return self._job_of(row)
        except NotFoundError:
            return None

    def _job_of(self, row: Row[Any]) -> Job:  # Any: SQLAlchemy types rows by their query
        try:
            sealed = self._payloads.open(row.tenant, row.subject, row.sealed_notes, _notes_context(row.id))
        except NotFoundError as error:  # its person was erased this moment
            raise no_such_job(row.id) from error
        return Job(
            id=row.id,
            tenant=row.tenant,
            owner=row.owner,
            subject=row.subject,
            model=row.model,
            training_file=row.training_file,
            status=row.status,
            step=row.step,
            created_at=from_micros(row.created_at),
            finished_at=None if row.finished_at is None else from_micros(row.finished_at),
            trainer_job=row.trainer_job,
            adapter=row.adapter,
            fine_tuned_model=row.fine_tuned_model,
            notes=json.loads(sealed),
        )


def _remove(connection: Connection, job_id: str) -> None:
    # Its row first: whoever works on it holds it.
    connection.execute(select(_JOB.c.id).where(_JOB.c.id == job_id).with_for_update())
    connection.execute(delete(_EVENT).where(_EVENT.c.job_id == job_id))
    connection.execute(delete(_JOB).where(_JOB.c.id == job_id))


def _notes_context(job_id: str) -> bytes:
    return f"fine-tuning-notes:{job_id}".encode()


def _event_context(job_id: str, number: int) -> bytes:
    return f"fine-tuning-event:{job_id}:{number}".encode()
