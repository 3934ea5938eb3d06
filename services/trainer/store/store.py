"""The trainer's resources in SQL. Every method runs in a thread; a tenant sees its own, None is the service itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, delete, insert, select, update

from kala.common.v1.adapter_pb2 import SignedRevocationList
from kala.errors import AlreadyExistsError, NotFoundError
from kala.trainer.v1 import dataset_pb2, job_pb2, registry_pb2
from services.trainer.names import ADAPTERS, DATASETS, split_version, versioned
from services.trainer.store import rows
from services.trainer.store.engine import open_engine, translated
from services.trainer.store.operation_rows import OperationRows
from services.trainer.store.rows import Part, micros
from services.trainer.store.schema import (
    ADAPTER,
    COUNTER,
    DATASET,
    EVALUATION,
    EXPORT,
    JOB,
    LINEAGE,
    REVOCATIONS,
    SUBJECT,
)

T = TypeVar("T")


class Store:
    """One database."""

    def __init__(self, database: str | Path) -> None:
        self._engine = open_engine(database)
        # One trainer has its database to itself; its threads take turns, so that none meets another's half.
        self._turn = threading.Lock()
        self.operations = OperationRows(self.run)

    @classmethod
    async def open(cls, database: str | Path) -> Self:
        """Open the database, made and migrated as needed."""
        return await asyncio.to_thread(cls, database)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Do something in one transaction, in a thread."""
        return await asyncio.to_thread(self._run, work)

    def _run(self, work: Callable[[Connection], T]) -> T:
        with self._turn, translated(), self._engine.begin() as connection:
            return work(connection)

    # Jobs

    async def put_job(self, job: job_pb2.TrainingJob, *, subject: str = "") -> None:
        """Write a job, new or not."""
        values = _owned(job, subject) | {
            "adapter": job.spec.adapter,
            "state": int(job.progress.state),
            "operation": job.operation,
            "data": job.SerializeToString(),
        }
        await self.run(lambda sql: rows.put(sql, JOB, job.name, values))

    async def get_job(self, name: str, tenant: str | None) -> job_pb2.TrainingJob:
        """Read a job; NotFoundError when there is none for this tenant."""
        return await self.run(lambda sql: rows.get(sql, JOB, job_pb2.TrainingJob, name, tenant))

    async def list_jobs(
        self, tenant: str | None, *, state: int = 0, adapter: str = "", limit: int, after: bytes = b""
    ) -> Part[job_pb2.TrainingJob]:
        """List jobs, the newest first."""
        conditions = [JOB.c.state == state] if state else []
        conditions += [JOB.c.adapter == adapter] if adapter else []
        return await self.run(
            lambda sql: rows.list_(
                sql, JOB, job_pb2.TrainingJob, tenant, *conditions, limit=limit, after=after
            )
        )

    # Datasets

    async def put_dataset(
        self, dataset: dataset_pb2.Dataset, *, subject: str = "", subjects: Mapping[str, int] | None = None
    ) -> None:
        """Write a dataset, new or not, with the rows of each person (by pseudonym) that it holds."""
        stem, version = split_version(DATASETS, dataset.name)
        values = _owned(dataset, subject) | {
            "stem": stem,
            "version": version,
            "data": dataset.SerializeToString(),
        }

        def work(sql: Connection) -> None:
            rows.put(sql, DATASET, dataset.name, values)
            sql.execute(delete(SUBJECT).where(SUBJECT.c.dataset == dataset.name))
            for person, count in (subjects or {}).items():
                sql.execute(
                    insert(SUBJECT).values(
                        dataset=dataset.name, tenant=dataset.tenant, subject=person, rows=count
                    )
                )

        await self.run(work)

    async def get_dataset(self, name: str, tenant: str | None) -> dataset_pb2.Dataset:
        """Read a dataset; a name without version is its newest one. NotFoundError when there is none for this tenant."""
        stem, version = split_version(DATASETS, name)
        if version is not None:
            return await self.run(lambda sql: rows.get(sql, DATASET, dataset_pb2.Dataset, name, tenant))
        part = await self.run(
            lambda sql: rows.list_(sql, DATASET, dataset_pb2.Dataset, tenant, DATASET.c.stem == stem, limit=1)
        )
        return _first(part.items, name)

    async def list_datasets(
        self, tenant: str | None, *, limit: int, after: bytes = b""
    ) -> Part[dataset_pb2.Dataset]:
        """List datasets, the newest first."""
        return await self.run(
            lambda sql: rows.list_(sql, DATASET, dataset_pb2.Dataset, tenant, limit=limit, after=after)
        )

    async def remove_dataset(self, name: str) -> None:
        """Forget a dataset and the persons in it."""

        def work(sql: Connection) -> None:
            sql.execute(delete(DATASET).where(DATASET.c.name == name))
            sql.execute(delete(SUBJECT).where(SUBJECT.c.dataset == name))

        await self.run(work)

    async def datasets_of_subject(self, tenant: str, subject: str) -> dict[str, int]:
        """Datasets that hold rows of a person, with how many."""
        query = select(SUBJECT.c.dataset, SUBJECT.c.rows).where(
            SUBJECT.c.tenant == tenant, SUBJECT.c.subject == subject
        )
        return await self.run(lambda sql: {row.dataset: row.rows for row in sql.execute(query)})

    # Adapters

    async def put_adapter(
        self, adapter: registry_pb2.Adapter, *, parents: Iterable[str] = (), subject: str = ""
    ) -> None:
        """Write an adapter, new or not; `parents` are the datasets and adapters it rests on, added to those known."""
        stem, version = split_version(ADAPTERS, adapter.name)
        values = _owned(adapter, subject) | {
            "stem": stem,
            "version": version,
            "state": int(adapter.state),
            "base_digest": adapter.description.base.digest,
            "digest": adapter.adapter_digest,
            "data": adapter.SerializeToString(),
        }

        def work(sql: Connection) -> None:
            rows.put(sql, ADAPTER, adapter.name, values)
            known = set(sql.scalars(select(LINEAGE.c.parent).where(LINEAGE.c.adapter == adapter.name)))
            for parent in sorted(set(parents) - known):
                sql.execute(insert(LINEAGE).values(adapter=adapter.name, parent=parent))

        await self.run(work)

    async def get_adapter(self, name: str, tenant: str | None) -> registry_pb2.Adapter:
        """Read an adapter; a name without version is its newest promoted one. NotFoundError when there is none."""
        stem, version = split_version(ADAPTERS, name)
        if version is not None:
            return await self.run(lambda sql: rows.get(sql, ADAPTER, registry_pb2.Adapter, name, tenant))
        promoted = int(registry_pb2.ADAPTER_STATE_PROMOTED)
        part = await self.run(
            lambda sql: rows.list_(
                sql,
                ADAPTER,
                registry_pb2.Adapter,
                tenant,
                ADAPTER.c.stem == stem,
                ADAPTER.c.state == promoted,
                limit=1,
            )
        )
        return _first(part.items, name)

    async def list_adapters(
        self,
        tenant: str | None,
        *,
        state: int = 0,
        base_digest: bytes = b"",
        stem: str = "",
        limit: int,
        after: bytes = b"",
    ) -> Part[registry_pb2.Adapter]:
        """List adapters, the newest first."""
        conditions = [ADAPTER.c.state == state] if state else []
        conditions += [ADAPTER.c.base_digest == base_digest] if base_digest else []
        conditions += [ADAPTER.c.stem == stem] if stem else []
        return await self.run(
            lambda sql: rows.list_(
                sql, ADAPTER, registry_pb2.Adapter, tenant, *conditions, limit=limit, after=after
            )
        )

    async def adapters_on(self, names: Sequence[str]) -> list[str]:
        """Adapters that rest on any of these datasets or adapters, directly or through others."""

        def work(sql: Connection) -> list[str]:
            found: dict[str, None] = {}
            wave = list(names)
            while wave:
                query = (
                    select(LINEAGE.c.adapter).where(LINEAGE.c.parent.in_(wave)).order_by(LINEAGE.c.adapter)
                )
                wave = [name for name in sql.scalars(query) if name not in found]
                found.update(dict.fromkeys(wave))
            return list(found)

        return await self.run(work)

    # Evaluations and exports

    async def put_evaluation(
        self, evaluation: registry_pb2.Evaluation, *, tenant: str, owner: str, subject: str = ""
    ) -> None:
        """Write an evaluation, new or not."""
        values = {
            "tenant": tenant,
            "owner": owner,
            "subject": subject,
            "created_at": micros(evaluation.started_at),
            "adapter": evaluation.adapter,
            "profile": evaluation.profile,
            "outcome": int(evaluation.outcome),
            "data": evaluation.SerializeToString(),
        }
        await self.run(lambda sql: rows.put(sql, EVALUATION, evaluation.name, values))

    async def get_evaluation(self, name: str, tenant: str | None) -> registry_pb2.Evaluation:
        """Read an evaluation; NotFoundError when there is none for this tenant."""
        return await self.run(lambda sql: rows.get(sql, EVALUATION, registry_pb2.Evaluation, name, tenant))

    async def list_evaluations(
        self, tenant: str | None, *, adapter: str, limit: int = 100
    ) -> Sequence[registry_pb2.Evaluation]:
        """Evaluations of an adapter, the newest first."""
        part = await self.run(
            lambda sql: rows.list_(
                sql,
                EVALUATION,
                registry_pb2.Evaluation,
                tenant,
                EVALUATION.c.adapter == adapter,
                limit=limit,
            )
        )
        return part.items

    async def put_export(
        self, name: str, export: registry_pb2.Export, *, tenant: str, owner: str, subject: str = ""
    ) -> None:
        """Write an export under a name of its own, e.g. its operation's."""
        values = {
            "tenant": tenant,
            "owner": owner,
            "subject": subject,
            "created_at": micros(export.created_at),
            "adapter": export.adapter,
            "format": int(export.format),
            "data": export.SerializeToString(),
        }
        await self.run(lambda sql: rows.put(sql, EXPORT, name, values))

    async def list_exports(
        self, tenant: str | None, *, adapter: str, limit: int = 100
    ) -> Sequence[registry_pb2.Export]:
        """Exports of an adapter, the newest first."""
        part = await self.run(
            lambda sql: rows.list_(
                sql, EXPORT, registry_pb2.Export, tenant, EXPORT.c.adapter == adapter, limit=limit
            )
        )
        return part.items

    # Revocations and versions

    async def put_revocations(self, serial: int, signed: SignedRevocationList) -> None:
        """Put a newer list into place; AlreadyExistsError when its serial is not above the stored one's."""

        def work(sql: Connection) -> None:
            last = sql.execute(select(REVOCATIONS.c.serial)).scalar()
            if last is not None and serial <= last:
                raise AlreadyExistsError(f"revocations: serial {serial} is not above {last}")
            sql.execute(delete(REVOCATIONS))
            sql.execute(insert(REVOCATIONS).values(serial=serial, data=signed.SerializeToString()))

        await self.run(work)

    async def revocations(self) -> SignedRevocationList | None:
        """The list as it was last signed; None before the first."""
        data: Any = await self.run(lambda sql: sql.execute(select(REVOCATIONS.c.data)).scalar())  # Any: SQL
        return None if data is None else SignedRevocationList.FromString(data)

    async def next_version(self, stem: str, tenant: str) -> str:
        """A new version's name of "adapters/<name>" or "datasets/<name>", never given before.

        Raises AlreadyExistsError when the name belongs to another tenant: names are the same for all.
        """

        def work(sql: Connection) -> int:
            row = sql.execute(select(COUNTER).where(COUNTER.c.stem == stem).with_for_update()).first()
            if row is None:
                sql.execute(insert(COUNTER).values(stem=stem, tenant=tenant, last=1))
                return 1
            if row.tenant != tenant:
                raise taken(stem)
            sql.execute(update(COUNTER).where(COUNTER.c.stem == stem).values(last=row.last + 1))
            return int(row.last) + 1

        return versioned(stem, await self.run(work))

    async def require_free(self, stem: str, tenant: str) -> None:
        """Raise AlreadyExistsError when the name "adapters/<name>" or "datasets/<name>" belongs to another tenant."""
        owner = await self.run(
            lambda sql: sql.execute(select(COUNTER.c.tenant).where(COUNTER.c.stem == stem)).scalar()
        )
        if owner is not None and owner != tenant:
            raise taken(stem)


def taken(stem: str) -> AlreadyExistsError:
    """Say that a name is somebody else's, and nothing of whose."""
    return AlreadyExistsError(f"{stem} is taken; choose another name", reason="NAME_TAKEN")


def _owned(
    message: job_pb2.TrainingJob | dataset_pb2.Dataset | registry_pb2.Adapter, subject: str
) -> dict[str, Any]:  # Any: SQL values
    return {
        "tenant": message.tenant,
        "owner": message.owner,
        "subject": subject,
        "created_at": micros(message.created_at),
    }


def _first(items: Sequence[T], name: str) -> T:
    if not items:
        raise NotFoundError(f"there is no {name}")
    return items[0]
