"""Keys in SQL: SQLite on one machine, PostgreSQL for replicas.  Blocking; `KeyRing` calls it from a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    and_,
    insert,
    or_,
    select,
    update,
)  # fmt: skip
from sqlalchemy.exc import SQLAlchemyError

from gateway.keys import SCOPE_NAMES, SCOPES, ApiKey
from kala.errors import FailedPreconditionError, UnavailableError
from services.common.database import connectable, lock_schema

_METADATA: Final = MetaData()

# Times are microseconds since 1970 in UTC: exact, sortable and the same in every database.
API_KEY: Final = Table(
    "api_key",
    _METADATA,
    Column("id", String(32), primary_key=True),
    Column("display_name", String(128), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("scopes", String(256), nullable=False),  # names, sorted, separated by spaces
    Column("secret_sha256", LargeBinary(32), nullable=False, unique=True),
    Column("prefix", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False, index=True),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("last_used_at", BigInteger),
)

_VERSION: Final = Table("gateway_schema", _METADATA, Column("version", Integer, nullable=False))


def _create_keys(connection: Connection) -> None:
    API_KEY.create(connection)


MIGRATIONS: Final = (_create_keys,)
"""Step n leads from version n to n + 1; a released step is never changed, only followed."""


class KeyStore:
    """The keys of one database, which it brings to the newest schema when opened."""

    def __init__(self, database: str | Path) -> None:
        self._engine = connectable(str(database), variable="KALA_GATEWAY_DATABASE")
        with _translated():
            _migrate(self._engine)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def insert(self, key: ApiKey, secret_sha256: bytes) -> None:
        """Store a new key."""
        with _translated(), self._engine.begin() as connection:
            connection.execute(insert(API_KEY).values(**_row_of(key), secret_sha256=secret_sha256))

    def find_by_secret(self, secret_sha256: bytes) -> ApiKey | None:
        """Find a key by the digest of its secret."""
        return self._one(API_KEY.c.secret_sha256 == secret_sha256)

    def find(self, key_id: str) -> ApiKey | None:
        """Find a key by its id."""
        return self._one(API_KEY.c.id == key_id)

    def list(
        self, *, limit: int, after: tuple[int, str] | None = None, live_at: datetime | None = None
    ) -> Sequence[ApiKey]:
        """List keys, the newest first; `after` continues behind a key's (`position`), `live_at` leaves ended ones out."""
        query = select(API_KEY).order_by(API_KEY.c.created_at.desc(), API_KEY.c.id.desc()).limit(limit)
        if after is not None:
            created, key_id = after
            query = query.where(
                or_(
                    API_KEY.c.created_at < created,
                    and_(API_KEY.c.created_at == created, API_KEY.c.id < key_id),
                )
            )
        if live_at is not None:
            now = _micros(live_at)
            query = query.where(
                API_KEY.c.revoked_at.is_(None),
                or_(API_KEY.c.expires_at.is_(None), API_KEY.c.expires_at > now),
            )
        with _translated(), self._engine.connect() as connection:
            return [_key_of(row) for row in connection.execute(query)]

    def revoke(self, key_id: str, at: datetime) -> ApiKey | None:
        """End a key; the first time stays. Gives the key as it is then, or None when there is none."""
        with _translated(), self._engine.begin() as connection:
            connection.execute(
                update(API_KEY)
                .where(API_KEY.c.id == key_id, API_KEY.c.revoked_at.is_(None))
                .values(revoked_at=_micros(at))
            )
        return self.find(key_id)

    def mark_used(self, key_id: str, at: datetime) -> None:
        """Note when a key was last used."""
        with _translated(), self._engine.begin() as connection:
            connection.execute(update(API_KEY).where(API_KEY.c.id == key_id).values(last_used_at=_micros(at)))

    def _one(self, condition: Any) -> ApiKey | None:  # Any: an SQL expression
        with _translated(), self._engine.connect() as connection:
            row = connection.execute(select(API_KEY).where(condition)).first()
        return None if row is None else _key_of(row)


def position(key: ApiKey) -> tuple[int, str]:
    """Give where a key stands in the order of `KeyStore.list`."""
    return _micros(key.created_at), key.id


def _migrate(engine: Engine) -> None:
    with engine.begin() as connection:
        lock_schema(connection, "gateway")
        _VERSION.create(connection, checkfirst=True)
        version = connection.execute(select(_VERSION.c.version)).scalar()
        if version is None:
            connection.execute(insert(_VERSION).values(version=0))
            version = 0
        if version > len(MIGRATIONS):
            raise FailedPreconditionError(
                f"the gateway's database has schema {version}, newer than this release's {len(MIGRATIONS)}; upgrade KALA"
            )
        for migrate in MIGRATIONS[version:]:
            migrate(connection)
        connection.execute(update(_VERSION).values(version=len(MIGRATIONS)))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise UnavailableError(
            "the gateway's database does not answer", reason="DATABASE_UNAVAILABLE"
        ) from error


def _row_of(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "display_name": key.display_name,
        "tenant": key.tenant,
        "scopes": " ".join(sorted(SCOPE_NAMES[scope] for scope in key.scopes)),
        "prefix": key.prefix,
        "created_at": _micros(key.created_at),
        "expires_at": None if key.expires_at is None else _micros(key.expires_at),
        "revoked_at": None if key.revoked_at is None else _micros(key.revoked_at),
        "last_used_at": None if key.last_used_at is None else _micros(key.last_used_at),
    }


def _key_of(row: Row[Any]) -> ApiKey:  # Any: SQLAlchemy types rows by their query
    return ApiKey(
        id=row.id,
        display_name=row.display_name,
        tenant=row.tenant,
        scopes=frozenset(SCOPES[name] for name in row.scopes.split()),
        prefix=row.prefix,
        created_at=_time(row.created_at),
        expires_at=None if row.expires_at is None else _time(row.expires_at),
        revoked_at=None if row.revoked_at is None else _time(row.revoked_at),
        last_used_at=None if row.last_used_at is None else _time(row.last_used_at),
    )


def _micros(time: datetime) -> int:
    whole = int(time.replace(microsecond=0).timestamp())
    return whole * 1_000_000 + time.microsecond


def _time(micros: int) -> datetime:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 1_000_000)
