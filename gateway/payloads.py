"""What the gateway keeps of people, sealed: one data key per person and tenant, wrapped by a key that lies in a file.

A sealed payload is one version byte, the 16-byte id of its data key, a 12-byte nonce, and AES-256-GCM over the
plaintext with tenant, subject and context bound to it. Destroying a person's data key makes everything that was sealed
under it unreadable at once, in every copy of the database that has the destruction. Neither a plaintext nor an
unwrapped key is ever written. Nothing is remembered between calls: an erasure through another replica counts at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from gateway.database import translated
from gateway.payload_table import PAYLOAD_KEY
from kala.errors import DataLossError, FailedPreconditionError, NotFoundError, UnavailableError
from services.common.secret_keys import load_or_create_secret_key

if TYPE_CHECKING:
    from sqlalchemy import Engine, Row

KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 16
NONCE_BYTES: Final = 12
"""NIST SP 800-38D section 8.2: 96 bits."""

OVERHEAD_BYTES: Final = 1 + KEY_ID_BYTES + NONCE_BYTES + 16
"""How much longer a sealed payload is than its plaintext."""

_VERSION: Final = b"\x01"
_HEADER_BYTES: Final = 1 + KEY_ID_BYTES
_WRAP_LABEL: Final = b"kala-gateway-subject-key-v1\0"
_PAYLOAD_LABEL: Final = b"kala-gateway-payload-v1\0"

Random = Callable[[int], bytes]


class Payloads:
    """Seals, opens and erases; for any thread.  Blocking: call it by `asyncio.to_thread`.

    Call it outside transactions of your own: SQLite has one writer, and a person's first payload writes a key.
    """

    def __init__(self, engine: Engine, key_file: Path, random: Random = secrets.token_bytes) -> None:
        """Read the key-encryption key, made when absent; FailedPreconditionError when it is not the database's."""
        key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        kek = load_or_create_secret_key(key_file)
        self._engine = engine
        self._random = random
        self._kek = AESGCM(kek)
        self._kek_id = sha256(_WRAP_LABEL + kek).hexdigest()[:16]
        self._require_own_keys(key_file)

    def seal(self, tenant: str, subject: str, plaintext: bytes, context: bytes) -> bytes:
        """Encrypt under the person's key, made on first use; `context` says what this is, and must be given to open it."""
        key_id, aead = self._key(tenant, subject)
        header = _VERSION + key_id
        nonce = self._random(NONCE_BYTES)
        label = _label(_PAYLOAD_LABEL + header, tenant, subject, context)
        return header + nonce + aead.encrypt(nonce, plaintext, label)

    def open(self, tenant: str, subject: str, sealed: bytes, context: bytes) -> bytes:
        """Decrypt; NotFoundError, reason SUBJECT_ERASED, after an erasure, and DataLossError for damage."""
        header, rest = sealed[:_HEADER_BYTES], sealed[_HEADER_BYTES:]
        if header[:1] != _VERSION or len(rest) < NONCE_BYTES:
            raise DataLossError("a stored payload is damaged")
        row = self._find(tenant, subject)
        if row is None or row.key_id != header[1:]:
            raise NotFoundError("the person's key was destroyed", reason="SUBJECT_ERASED")
        label = _label(_PAYLOAD_LABEL + header, tenant, subject, context)
        try:
            return self._unwrap(row).decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], label)
        except InvalidTag as error:
            raise DataLossError("a stored payload is damaged") from error

    def erase(self, tenant: str, subject: str) -> int:
        """Destroy a person's key, and give how many there were; what is sealed later gets a new one."""
        with translated(), self._engine.begin() as connection:
            erased = connection.execute(delete(PAYLOAD_KEY).where(*_of(tenant, subject))).rowcount
        # Also where there was none: an earlier attempt may have come only as far as here.
        self._scrub()
        return erased

    def _key(self, tenant: str, subject: str) -> tuple[bytes, AESGCM]:
        row = self._find(tenant, subject)
        while row is None:
            self._create(tenant, subject)
            # Another replica may have been first, or an erasure may have come between.
            row = self._find(tenant, subject)
        return row.key_id, self._unwrap(row)

    def _find(
        self, tenant: str, subject: str
    ) -> Row[Any] | None:  # Any: SQLAlchemy types rows by their query
        with translated(), self._engine.connect() as connection:
            return connection.execute(select(PAYLOAD_KEY).where(*_of(tenant, subject))).first()

    def _create(self, tenant: str, subject: str) -> None:
        key, key_id = self._random(KEY_BYTES), self._random(KEY_ID_BYTES)
        nonce = self._random(NONCE_BYTES)
        wrapped = nonce + self._kek.encrypt(nonce, key, _label(_WRAP_LABEL, tenant, subject, key_id))
        values = {
            "tenant": tenant,
            "subject": subject,
            "key_id": key_id,
            "kek_id": self._kek_id,
            "wrapped": wrapped,
        }
        with translated():
            try:
                with self._engine.begin() as connection:
                    connection.execute(insert(PAYLOAD_KEY).values(values))
            except IntegrityError:
                return  # another thread or replica made one

    def _unwrap(self, row: Row[Any]) -> AESGCM:  # Any: SQLAlchemy types rows by their query
        label = _label(_WRAP_LABEL, row.tenant, row.subject, row.key_id)
        try:
            return AESGCM(self._kek.decrypt(row.wrapped[:NONCE_BYTES], row.wrapped[NONCE_BYTES:], label))
        except InvalidTag as error:
            raise DataLossError("a person's data key is damaged") from error

    def _require_own_keys(self, key_file: Path) -> None:
        with translated(), self._engine.connect() as connection:
            foreign = connection.execute(
                select(PAYLOAD_KEY.c.kek_id).where(PAYLOAD_KEY.c.kek_id != self._kek_id).limit(1)
            ).scalar()
        if foreign is not None:
            raise FailedPreconditionError(
                f"{key_file} is not the key that wraps the keys of this database (that one's id is {foreign}); "
                "bring back the file that lay there: without it stored conversations and files cannot be read"
            )

    def _scrub(self) -> None:
        """Let the database's own files forget the key: freed bytes are overwritten, and old pages leave the log."""
        try:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                if self._engine.dialect.name != "sqlite":
                    connection.exec_driver_sql(f"VACUUM FULL {PAYLOAD_KEY.name}")
                elif connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar():
                    raise _remembered()  # a reader kept the old pages for as long as SQLite waits
        except SQLAlchemyError as error:
            raise _remembered() from error


def _remembered() -> UnavailableError:
    return UnavailableError(
        "the person's key is destroyed, but the database could not be made to forget its bytes; repeat the erasure",
        reason="DATABASE_UNAVAILABLE",
    )


def _of(tenant: str, subject: str) -> tuple[Any, Any]:  # Any: SQL expressions
    return PAYLOAD_KEY.c.tenant == tenant, PAYLOAD_KEY.c.subject == subject


def _label(head: bytes, tenant: str, subject: str, context: bytes) -> bytes:
    # Neither a tenant nor a pseudonym can hold a NUL, so that no two triples give the same label.
    return b"\0".join((head, tenant.encode(), subject.encode(), context))
