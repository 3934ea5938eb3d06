"""Erasures and legal holds in the log's database, the same on SQLite and PostgreSQL.

Every erasure moves the head row's `key_epoch` in the transaction that destroys a key: a writer whose data keys are from
before then commits nothing with them, in this process or another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import structlog
from sqlalchemy import Connection, Engine, func, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from kala.audit.erasure import parse_certificate
from kala.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, UnavailableError
from services.audit.privacy.erasures import ErasureRow, Hold, Progress, StoreReport
from services.audit.storage.schema import ENTRY, ERASURE, HEAD, LEGAL_HOLD, PAYLOAD, SINK_CURSOR, SUBJECT_KEY
from services.common.database import BUSY_SECONDS

# Rows of one transaction that empties ciphertexts: it holds the database for some milliseconds.
STEP_ROWS: Final = 500
# How long a reader may keep the old pages of the WAL before an erasure says that it is not finished.
SCRUB_SECONDS: Final = 5.0
_PAUSE_MILLISECONDS: Final = 50
# A table of keys up to this size, about 300,000 of them, is written anew at once by an erasure on PostgreSQL.
MAX_REWRITTEN_BYTES: Final = 64 * 1024 * 1024
_SELECT_KEYS_TABLE: Final = """
SELECT pg_has_role(relowner, 'USAGE'), pg_table_size(oid) FROM pg_class WHERE oid = 'subject_key'::regclass
"""

# PostgreSQL's insufficient_privilege.
_NOT_ALLOWED: Final = "42501"
# Where retention has got to, kept among the sinks' cursors; no sink's name begins so.
_EXPIRY_CURSOR: Final = "kala.retention.payloads"
# Before logs had cursors of their own, only the first log's was right.
_FIRST_LOG: Final = 1

log = structlog.get_logger()


class PrivacyStore:
    """Erasures and holds of one log; blocking."""

    def __init__(
        self,
        engine: Engine,
        log_id: int,
        *,
        clock: Callable[[], int],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`clock` gives microseconds since 1970."""
        self._engine = engine
        self._log_id = log_id
        self._clock = clock
        self._pause = pause
        self.scrub_seconds = SCRUB_SECONDS

    def tenant_of(self, subject: str) -> str | None:
        """The tenant whose content the subject's living key seals; None when nothing is sealed."""
        query = (
            select(ENTRY.c.tenant)
            .join(PAYLOAD, (PAYLOAD.c.log_id == ENTRY.c.log_id) & (PAYLOAD.c.idx == ENTRY.c.idx))
            .join(SUBJECT_KEY, SUBJECT_KEY.c.key_id == PAYLOAD.c.key_id)
            .where(
                SUBJECT_KEY.c.subject == subject,
                SUBJECT_KEY.c.erased_at.is_(None),
            )
            .limit(1)
        )
        with self._reading() as connection:
            return connection.execute(query).scalar()

    def erasure(self, request_id: bytes) -> ErasureRow | None:
        """The erasure that was asked for under this id."""
        with self._reading() as connection:
            return _erasure(connection, request_id)

    def erased_at(self, subjects: Sequence[str]) -> dict[tuple[str, str], int]:
        """When those of the subjects that were erased last were, by subject and tenant; microseconds since 1970.

        By the tenant that asked: another's certificate about a subject of this one erases nothing here.
        """
        query = (
            select(ERASURE.c.subject, ERASURE.c.certificate, ERASURE.c.erased_at)
            .where(ERASURE.c.subject.in_(subjects), ERASURE.c.signature.is_not(None))
            .order_by(ERASURE.c.erased_at)
        )
        with self._reading() as connection:
            return {
                (subject, parse_certificate(certificate)["tenant"]): erased_at
                for subject, certificate, erased_at in connection.execute(query)
            }

    def begin(self, request_id: bytes, subject: str, tenant: str) -> ErasureRow:
        """Enters an erasure, or gives the one of this id; `AlreadyExistsError` when that is of another subject."""
        now = self._clock()
        row = {"request_id": request_id, "subject": subject, "erased_at": now}
        try:
            with self._changing() as connection:
                connection.execute(
                    insert(ERASURE).values(**row, certificate=Progress(tenant, now).to_bytes())
                )
        except AlreadyExistsError:
            pass
        found = self.erasure(request_id)
        if found is None or found.subject != subject:
            raise AlreadyExistsError(
                f"request_id {request_id.hex()} is taken by an erasure of another subject",
                reason="REQUEST_ID_TAKEN",
            )
        return found

    def destroy(self, request_id: bytes, elsewhere: Sequence[StoreReport]) -> ErasureRow:
        """Destroys the subject's living key and adds up what was erased; `FailedPreconditionError` names a hold.

        One transaction: the key is gone for every writer when it is gone for one, or nothing happened.
        """
        with self._changing() as connection:
            size = self._end_keys(connection)
            row = _erasure(connection, request_id)
            if row is None:
                raise NotFoundError("this erasure was never begun")
            if row.signature is not None:
                return row
            _require_free(connection, row.subject)
            progress = self._destroy_keys(connection, row, size).plus(elsewhere)
            changed = {"certificate": progress.to_bytes(), "erased_at": progress.erased_at}
            connection.execute(update(ERASURE).where(ERASURE.c.request_id == request_id).values(**changed))
            return replace(row, certificate=progress.to_bytes())

    def empty_ciphertexts(self, keys: Sequence[str]) -> int:
        """Deletes what destroyed keys sealed, in short transactions; returns how many payloads that were."""
        emptied = 0
        for key_id in keys:
            with self._reading() as connection:
                rows = connection.execute(
                    select(PAYLOAD.c.log_id, PAYLOAD.c.idx)
                    .where(PAYLOAD.c.key_id == key_id, PAYLOAD.c.ciphertext.is_not(None))
                    .distinct()
                )
                places: dict[int, list[int]] = {}
                for log_id, index in rows:
                    places.setdefault(log_id, []).append(index)
            for log_id, indexes in places.items():
                indexes.sort()
                for start in range(0, len(indexes), STEP_ROWS):
                    emptied += self._empty(key_id, log_id, indexes[start : start + STEP_ROWS])
        return emptied

    def seal(self, request_id: bytes, certificate: bytes, signature: str) -> ErasureRow:
        """Keeps the signed certificate; the first one stays. Gives the erasure as it is then."""
        with self._changing() as connection:
            connection.execute(
                update(ERASURE)
                .where(ERASURE.c.request_id == request_id, ERASURE.c.signature.is_(None))
                .values(certificate=certificate, signature=signature)
            )
            row = _erasure(connection, request_id)
        if row is None:
            raise NotFoundError("this erasure was never begun")
        return row

    def finish(self, request_id: bytes, index: int) -> None:
        """Notes the entry of the erasure: its certificate may now be given."""
        with self._changing() as connection:
            connection.execute(update(ERASURE).where(ERASURE.c.request_id == request_id).values(idx=index))

    def place_hold(self, hold_id: str, subject: str) -> None:
        """Forbids erasure and expiry of the subject's content from now on."""
        with self._changing() as connection:
            # Erasure and expiry hold the same row: they are over before the hold begins, or see the hold.
            lock_heads(connection)
            connection.execute(
                insert(LEGAL_HOLD).values(hold_id=hold_id, subject=subject, placed_at=self._clock())
            )

    def hold(self, hold_id: str) -> Hold | None:
        """A hold, released or not."""
        query = select(LEGAL_HOLD.c.hold_id, LEGAL_HOLD.c.subject, LEGAL_HOLD.c.released_at).where(
            LEGAL_HOLD.c.hold_id == hold_id
        )
        with self._reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else Hold(*row)

    def release_hold(self, hold_id: str) -> None:
        """Ends a hold; the first end stays."""
        with self._changing() as connection:
            lock_heads(connection)
            ended = connection.execute(
                update(LEGAL_HOLD)
                .where(LEGAL_HOLD.c.hold_id == hold_id, LEGAL_HOLD.c.released_at.is_(None))
                .values(released_at=self._clock())
            ).rowcount
            if ended:
                self._expire_again(connection, hold_id)

    def require_free(self, subject: str) -> None:
        """Raises `FailedPreconditionError` naming a hold that forbids the subject's erasure."""
        with self._reading() as connection:
            _require_free(connection, subject)

    def scrub(self) -> None:
        """Makes the database's own files forget destroyed keys, as far as they are this process's to change.

        SQLite: old pages leave the WAL; freed bytes are overwritten anyway (`secure_delete`). `UnavailableError` while a
        reader keeps them. PostgreSQL: the table of keys is written anew, without dead rows, where the role may.
        """
        if self._engine.dialect.name == "sqlite":
            self._scrub_wal()
        else:
            self._rewrite_keys()

    def _destroy_keys(self, connection: Connection, row: ErasureRow, size: int) -> Progress:
        before = row.progress
        living = connection.execute(
            select(SUBJECT_KEY.c.key_id).where(
                SUBJECT_KEY.c.subject == row.subject, SUBJECT_KEY.c.erased_at.is_(None)
            )
        ).scalars()
        keys = list(living)
        now = self._clock()
        progress = replace(before, erased_at=now, covers=size)
        if not keys:
            return progress.plus([StoreReport("audit.keys", 0), StoreReport("audit.payloads", 0)])
        lost = connection.execute(
            select(func.count()).where(PAYLOAD.c.key_id.in_(keys), PAYLOAD.c.ciphertext.is_not(None))
        ).scalar_one()
        connection.execute(
            update(SUBJECT_KEY).where(SUBJECT_KEY.c.key_id.in_(keys)).values(wrapped=None, erased_at=now)
        )
        done = [StoreReport("audit.keys", len(keys)), StoreReport("audit.payloads", lost)]
        return replace(progress, keys=[*before.keys, *keys]).plus(done)

    def _empty(self, key_id: str, log_id: int, places: Sequence[int]) -> int:
        with self._changing() as connection:
            return connection.execute(
                update(PAYLOAD)
                .where(
                    PAYLOAD.c.log_id == log_id,
                    PAYLOAD.c.idx.in_(places),
                    PAYLOAD.c.key_id == key_id,
                    PAYLOAD.c.ciphertext.is_not(None),
                )
                .values(ciphertext=None)
            ).rowcount

    def _expire_again(self, connection: Connection, hold_id: str) -> None:
        """Lets retention come back for the content that it left to this hold."""
        firsts = (
            select(PAYLOAD.c.log_id, func.min(PAYLOAD.c.idx))
            .join(SUBJECT_KEY, SUBJECT_KEY.c.key_id == PAYLOAD.c.key_id)
            .join(LEGAL_HOLD, LEGAL_HOLD.c.subject == SUBJECT_KEY.c.subject)
            .where(LEGAL_HOLD.c.hold_id == hold_id, SUBJECT_KEY.c.erased_at.is_(None))
            .group_by(PAYLOAD.c.log_id)
        )
        for log_id, place in connection.execute(firsts).all():
            connection.execute(
                update(SINK_CURSOR)
                .where(SINK_CURSOR.c.sink == expiry_cursor(log_id), SINK_CURSOR.c.idx > place)
                .values(idx=place)
            )

    def _end_keys(self, connection: Connection) -> int:
        """Shuts out every writer until this transaction ends, and all keys that writers remember; the log's size."""
        lock_heads(connection)
        # Another log's writers remember the subject's key too.
        connection.execute(update(HEAD).values(key_epoch=HEAD.c.key_epoch + 1))
        size: int = connection.execute(select(HEAD.c.size).where(HEAD.c.log_id == self._log_id)).scalar_one()
        return size

    def _scrub_wal(self) -> None:
        deadline = time.monotonic() + self.scrub_seconds
        while True:
            with self._reading() as connection:
                # It keeps writers out while it waits for readers: so it hardly waits, and tries again.
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {_PAUSE_MILLISECONDS}")
                try:
                    busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
                finally:
                    connection.exec_driver_sql(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1_000}")
            if not busy:
                return
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    "a reader still keeps pages from before the erasure; repeat the request with the same request_id",
                    reason="ERASURE_UNFINISHED",
                )
            self._pause(_PAUSE_MILLISECONDS / 1_000)

    def _rewrite_keys(self) -> None:
        with self._reading() as connection:
            owned, size = connection.exec_driver_sql(_SELECT_KEYS_TABLE).one()
            if owned and size <= MAX_REWRITTEN_BYTES:
                # The old file is removed; while it is written anew, nobody reads or makes keys: 0.1 s per 100,000.
                connection.exec_driver_sql("VACUUM (FULL) subject_key")
                return
        log.warning(
            "destroyed keys stay in free pages until VACUUM FULL subject_key", is_owner=owned, bytes=size
        )

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        with translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with translated(), self._engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def translated() -> Iterator[None]:
    """Says in KALA's errors what a database refuses; never in the driver's words, which may hold a URL."""
    try:
        yield
    except IntegrityError as error:
        raise AlreadyExistsError("the row exists already") from error
    except SQLAlchemyError as error:
        if getattr(getattr(error, "orig", None), "sqlstate", None) == _NOT_ALLOWED:
            raise FailedPreconditionError(
                "the role of KALA_AUDIT_DATABASE may not do this: grant it kala_audit_eraser beside kala_audit_writer, "
                "and the tables' ownership for entries to be dropped",
                reason="DATABASE_ROLE",
            ) from error
        raise UnavailableError("the log's database does not answer", reason="AUDIT_UNAVAILABLE") from error


def expiry_cursor(log_id: int) -> str:
    """The name of a log's cursor of retention."""
    return _EXPIRY_CURSOR if log_id == _FIRST_LOG else f"{_EXPIRY_CURSOR}/{log_id}"


def lock_heads(connection: Connection) -> None:
    """Makes this transaction take turns with every other that does so; SQLite's take turns anyway.

    Of every log in the database: they share subjects, keys and holds.
    """
    connection.execute(select(HEAD.c.log_id).order_by(HEAD.c.log_id).with_for_update())


def _erasure(connection: Connection, request_id: bytes) -> ErasureRow | None:
    query = select(
        ERASURE.c.request_id, ERASURE.c.subject, ERASURE.c.certificate, ERASURE.c.signature, ERASURE.c.idx
    ).where(ERASURE.c.request_id == request_id)
    row = connection.execute(query).first()
    return None if row is None else ErasureRow(*row)


def _require_free(connection: Connection, subject: str) -> None:
    query = (
        select(LEGAL_HOLD.c.hold_id)
        .where(LEGAL_HOLD.c.subject == subject, LEGAL_HOLD.c.released_at.is_(None))
        .order_by(LEGAL_HOLD.c.placed_at)
        .limit(1)
    )
    held_by = connection.execute(query).scalar()
    if held_by is not None:
        raise FailedPreconditionError(
            f"the subject's content is held by holds/{held_by}; release it first", reason="LEGAL_HOLD"
        )
