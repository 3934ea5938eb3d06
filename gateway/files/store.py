"""Files in SQL, in sealed parts, so that every replica has them.  Blocking: call it by `asyncio.to_thread`.

A file is visible once it is whole; what an upload that broke off left behind is swept away after an hour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from gateway.database import translated
from gateway.files.model import PART_BYTES, StoredFile, new_file_id, no_such_file
from gateway.files.tables import FILE, FILE_PART, FILE_ROOM
from gateway.key_table import from_micros, to_micros
from kala.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

    from gateway.payloads import Payloads

UPLOADING: Final = "uploading"
READY: Final = "ready"

STALE: Final = timedelta(hours=1)
"""An upload that has not ended by then never will: the longest may take a quarter of that."""

MAX_FILES: Final = 10_000
"""Of one tenant, unfinished ones included: also empty ones take rows, names and places in lists."""

MOST_NAMES: Final = 10_000
"""In one statement: PostgreSQL takes 65,535, SQLite at least 32,766."""

FILE_TOO_LARGE: Final = "FILE_TOO_LARGE"
FILE_QUOTA_EXCEEDED: Final = "FILE_QUOTA_EXCEEDED"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be stored."""

    file_bytes: int
    tenant_bytes: int


@dataclass(slots=True)
class Draft:
    """A file that is being written."""

    id: str
    tenant: str
    owner: str
    subject: str
    created_at: datetime
    size: int = 0
    parts: int = 0
    digest: Any = field(default_factory=hashlib.sha256)  # Any: hashlib's own object
    pending: bytearray = field(default_factory=bytearray)


class FileStore:
    """The files of one database."""

    def __init__(
        self, engine: Engine, payloads: Payloads, *, bounds: Bounds, now: Callable[[], datetime]
    ) -> None:
        self._engine = engine
        self._payloads = payloads
        self._bounds = bounds
        self._now = now

    def begin(self, *, tenant: str, owner: str, subject: str) -> Draft:
        """Begin a file; `append` to it, then `finish` or `discard` it.  FailedPreconditionError where there are too many."""
        draft = Draft(new_file_id(), tenant, owner, subject, self._now())
        self._require_place(tenant)
        self._open_room(tenant)
        with translated(), self._engine.begin() as connection:
            connection.execute(
                insert(FILE).values(
                    id=draft.id,
                    tenant=tenant,
                    owner=owner,
                    subject=subject,
                    state=UPLOADING,
                    purpose="",
                    sealed_name=b"",
                    bytes=0,
                    parts=0,
                    sha256=b"",
                    created_at=to_micros(draft.created_at),
                )
            )
        return draft

    def append(self, draft: Draft, data: bytes) -> None:
        """Add bytes; FailedPreconditionError names the bound that they pass."""
        if draft.size + len(draft.pending) + len(data) > self._bounds.file_bytes:
            raise InvalidArgumentError(
                "file",
                f"is larger than {self._bounds.file_bytes} bytes; split it",
                reason=FILE_TOO_LARGE,
            )
        draft.pending += data
        while len(draft.pending) >= PART_BYTES:
            self._write(draft, bytes(draft.pending[:PART_BYTES]))
            del draft.pending[:PART_BYTES]

    def finish(self, draft: Draft, *, purpose: str, name: str, life: timedelta | None) -> StoredFile:
        """Make a file whole and visible."""
        sealed_name = self.complete(draft, name)
        with translated(), self._engine.begin() as connection:
            return self.publish(connection, draft, sealed_name, purpose=purpose, name=name, life=life)

    def complete(self, draft: Draft, name: str) -> bytes:
        """Write what is pending, and give the sealed name for `publish`; outside of any transaction."""
        if draft.pending:
            self._write(draft, bytes(draft.pending))
            draft.pending.clear()
        return self._payloads.seal(draft.tenant, draft.subject, name.encode(), _name_context(draft.id))

    def publish(
        self,
        connection: Connection,
        draft: Draft,
        sealed_name: bytes,
        *,
        purpose: str,
        name: str,
        life: timedelta | None,
    ) -> StoredFile:
        """Make a complete draft visible with the transaction of `connection`."""
        expires_at = None if life is None else draft.created_at + life
        file = StoredFile(
            id=draft.id,
            tenant=draft.tenant,
            owner=draft.owner,
            subject=draft.subject,
            purpose=purpose,
            name=name,
            size=draft.size,
            parts=draft.parts,
            sha256=draft.digest.digest(),
            created_at=draft.created_at,
            expires_at=expires_at,
        )
        made = connection.execute(
            update(FILE)
            .where(FILE.c.id == draft.id, FILE.c.state == UPLOADING)
            .values(
                state=READY,
                purpose=purpose,
                sealed_name=sealed_name,
                sha256=file.sha256,
                expires_at=None if expires_at is None else to_micros(expires_at),
            )
        )
        if not made.rowcount:
            raise _gone()
        return file

    def discard(self, draft: Draft) -> None:
        """Take back a file that was not finished."""
        with translated(), self._engine.begin() as connection:
            _remove(connection, draft.id)

    def get(self, tenant: str, file_id: str) -> StoredFile:
        """Give a whole file of a tenant, or raise NotFoundError."""
        query = select(FILE).where(FILE.c.id == file_id, *self._visible(tenant))
        with translated(), self._engine.connect() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise no_such_file(file_id)
        return self._file_of(row)

    def list(
        self, tenant: str, *, purposes: Sequence[str], limit: int, after: str = "", newest_first: bool = True
    ) -> Sequence[StoredFile]:
        """List files of these purposes; `after` continues behind a file, InvalidArgumentError when it is none."""
        query = select(FILE).where(FILE.c.purpose.in_(purposes), *self._visible(tenant)).limit(limit)
        with translated(), self._engine.connect() as connection:
            if after:
                at = connection.execute(
                    select(FILE.c.created_at).where(FILE.c.id == after, FILE.c.tenant == tenant)
                ).scalar()
                if at is None:
                    raise InvalidArgumentError("after", "is no file of your tenant; begin without it")
                query = query.where(_behind(at, after, newest_first=newest_first))
            order = (
                (FILE.c.created_at.desc(), FILE.c.id.desc())
                if newest_first
                else (FILE.c.created_at, FILE.c.id)
            )
            rows = connection.execute(query.order_by(*order)).all()
        files = []
        for row in rows:
            try:
                files.append(self._file_of(row))
            except NotFoundError:
                continue  # its person was erased this moment
        return files

    def part(self, file: StoredFile, number: int) -> bytes:
        """Read one part, from 0; NotFoundError when the file was deleted meanwhile."""
        query = select(FILE_PART.c.sealed).where(FILE_PART.c.file_id == file.id, FILE_PART.c.number == number)
        with translated(), self._engine.connect() as connection:
            sealed = connection.execute(query).scalar()
        if sealed is None:
            raise no_such_file(file.id)
        return self._payloads.open(file.tenant, file.subject, sealed, _part_context(file.id, number))

    def read(self, file: StoredFile) -> Iterator[bytes]:
        """Read a whole file part by part; DataLossError at its end when it is not what was uploaded."""
        digest = hashlib.sha256()
        for number in range(file.parts):
            data = self.part(file, number)
            digest.update(data)
            yield data
        if digest.digest() != file.sha256:
            raise DataLossError("a stored file is damaged")

    def delete(self, tenant: str, file_id: str) -> None:
        """Delete a file of a tenant; NotFoundError when there is none."""
        with translated(), self._engine.begin() as connection:
            query = select(FILE.c.id).where(FILE.c.id == file_id, *self._visible(tenant))
            if connection.execute(query).first() is None:
                raise no_such_file(file_id)
            _remove(connection, file_id)

    def erase(self, tenant: str, subject: str, *, also: Sequence[str] = ()) -> int:
        """Delete every file of a person, and those named besides; give how many there were."""
        whose = [FILE.c.subject == subject]
        whose += [FILE.c.id.in_(also[at : at + MOST_NAMES]) for at in range(0, len(also), MOST_NAMES)]
        with translated(), self._engine.begin() as connection:
            ids: set[str] = set()
            for condition in whose:
                query = select(FILE.c.id).where(FILE.c.tenant == tenant, condition)
                ids.update(connection.execute(query).scalars())
            for file_id in ids:
                _remove(connection, file_id)
        return len(ids)

    def sweep(self) -> int:
        """Delete files past their end and uploads that broke off; give how many there were."""
        now = self._now()
        query = select(FILE.c.id).where(
            or_(
                and_(FILE.c.expires_at.is_not(None), FILE.c.expires_at <= to_micros(now)),
                and_(FILE.c.state == UPLOADING, FILE.c.created_at <= to_micros(now - STALE)),
            )
        )
        with translated(), self._engine.connect() as connection:
            ids = connection.execute(query.limit(1000)).scalars().all()
        for file_id in ids:
            with translated(), self._engine.begin() as connection:
                _remove(connection, file_id)
        return len(ids)

    def taken(self, tenant: str) -> int:
        """Give how many bytes a tenant's files take, unfinished ones included."""
        query = select(FILE_ROOM.c.bytes).where(FILE_ROOM.c.tenant == tenant)
        with translated(), self._engine.connect() as connection:
            return connection.execute(query).scalar() or 0

    def _write(self, draft: Draft, data: bytes) -> None:
        # Sealed before the transaction: a person's first payload writes a key.
        sealed = self._payloads.seal(draft.tenant, draft.subject, data, _part_context(draft.id, draft.parts))
        with translated(), self._engine.begin() as connection:
            self._take_room(connection, draft.tenant, len(data))
            grown = connection.execute(
                update(FILE)
                .where(FILE.c.id == draft.id, FILE.c.state == UPLOADING)
                .values(bytes=FILE.c.bytes + len(data), parts=draft.parts + 1)
            )
            if not grown.rowcount:
                raise _gone()
            connection.execute(insert(FILE_PART).values(file_id=draft.id, number=draft.parts, sealed=sealed))
        draft.digest.update(data)
        draft.size += len(data)
        draft.parts += 1

    def _require_place(self, tenant: str) -> None:
        # Two at once may both take the last place; they cannot take many.
        with translated(), self._engine.connect() as connection:
            count = select(func.count()).where(FILE.c.tenant == tenant)
            if (connection.execute(count).scalar() or 0) < MAX_FILES:
                return
        raise FailedPreconditionError(
            f"your tenant has {MAX_FILES} files, and may have no more; delete some",
            reason=FILE_QUOTA_EXCEEDED,
        )

    def _open_room(self, tenant: str) -> None:
        """See to it that a tenant's sum exists, whoever is first."""
        with translated():
            with self._engine.connect() as connection:
                known = select(FILE_ROOM.c.tenant).where(FILE_ROOM.c.tenant == tenant)
                if connection.execute(known).first() is not None:
                    return
            with suppress(IntegrityError), self._engine.begin() as connection:
                connection.execute(insert(FILE_ROOM).values(tenant=tenant, bytes=0))

    def _take_room(self, connection: Connection, tenant: str, size: int) -> None:
        """Take room in one statement, so that no two writers can both take the last of it."""
        fits = (
            update(FILE_ROOM)
            .where(FILE_ROOM.c.tenant == tenant, FILE_ROOM.c.bytes + size <= self._bounds.tenant_bytes)
            .values(bytes=FILE_ROOM.c.bytes + size)
        )
        if connection.execute(fits).rowcount:
            return
        raise FailedPreconditionError(
            f"the files of your tenant may take {self._bounds.tenant_bytes} bytes, and this one does not fit; "
            "delete files, or have KALA_GATEWAY_FILE_QUOTA_BYTES raised",
            reason=FILE_QUOTA_EXCEEDED,
        )

    def _visible(self, tenant: str) -> tuple[Any, ...]:  # Any: SQL expressions
        now = to_micros(self._now())
        return (
            FILE.c.tenant == tenant,
            FILE.c.state == READY,
            or_(FILE.c.expires_at.is_(None), FILE.c.expires_at > now),
        )

    def _file_of(self, row: Row[Any]) -> StoredFile:  # Any: SQLAlchemy types rows by their query
        name = self._payloads.open(row.tenant, row.subject, row.sealed_name, _name_context(row.id))
        return StoredFile(
            id=row.id,
            tenant=row.tenant,
            owner=row.owner,
            subject=row.subject,
            purpose=row.purpose,
            name=name.decode(),
            size=row.bytes,
            parts=row.parts,
            sha256=row.sha256,
            created_at=from_micros(row.created_at),
            expires_at=None if row.expires_at is None else from_micros(row.expires_at),
        )


def _remove(connection: Connection, file_id: str) -> None:
    # Its row first, which whoever writes a part holds: no part can come between.
    connection.execute(select(FILE.c.id).where(FILE.c.id == file_id).with_for_update())
    connection.execute(delete(FILE_PART).where(FILE_PART.c.file_id == file_id))
    row = connection.execute(
        delete(FILE).where(FILE.c.id == file_id).returning(FILE.c.tenant, FILE.c.bytes)
    ).first()
    if row is not None:
        # Never below nothing: a sum that went wrong must not grant room without end.
        left = FILE_ROOM.c.bytes - row.bytes
        floor = func.max(left, 0) if connection.dialect.name == "sqlite" else func.greatest(left, 0)
        connection.execute(update(FILE_ROOM).where(FILE_ROOM.c.tenant == row.tenant).values(bytes=floor))


def _behind(at: int, file_id: str, *, newest_first: bool) -> Any:  # Any: an SQL expression
    created, name = FILE.c.created_at, FILE.c.id
    if newest_first:
        return or_(created < at, and_(created == at, name < file_id))
    return or_(created > at, and_(created == at, name > file_id))


def _part_context(file_id: str, number: int) -> bytes:
    return f"file-part:{file_id}:{number}".encode()


def _name_context(file_id: str) -> bytes:
    return f"file-name:{file_id}".encode()


def _gone() -> NotFoundError:
    return NotFoundError("the file was erased while it was written; upload it again", reason="FILE_NOT_FOUND")
