"""Keys in SQL: SQLite on one machine, PostgreSQL for replicas.  Blocking; `KeyRing` calls it from a thread."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, and_, delete, insert, or_, select, update

from gateway.database import open_database, translated
from gateway.key_table import API_KEY, from_micros, to_micros
from gateway.keys import SCOPE_NAMES, SCOPES, ApiKey
from gateway.limits.key_limits import UNLIMITED, KeyLimits
from gateway.limits.tables import KEY_LIMITS

_WITH_LIMITS: Final = select(API_KEY, KEY_LIMITS.c.limits).outerjoin(
    KEY_LIMITS, KEY_LIMITS.c.key_id == API_KEY.c.id
)


class KeyStore:
    """The keys of one database; a path or URL is opened and brought to the newest schema."""

    def __init__(self, database: str | Path | Engine) -> None:
        self._engine = database if isinstance(database, Engine) else open_database(database)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def insert(self, key: ApiKey, secret_sha256: bytes) -> None:
        """Store a new key."""
        with translated(), self._engine.begin() as connection:
            connection.execute(insert(API_KEY).values(**_row_of(key), secret_sha256=secret_sha256))
            _keep_limits(connection, key.id, key.limits)

    def change(
        self, key_id: str, *, display_name: str | None = None, limits: KeyLimits | None = None
    ) -> ApiKey | None:
        """Change what is given of a key. Gives the key as it is then, or None when there is none."""
        with translated(), self._engine.begin() as connection:
            if display_name is not None:
                connection.execute(
                    update(API_KEY).where(API_KEY.c.id == key_id).values(display_name=display_name)
                )
            if limits is not None:
                _keep_limits(connection, key_id, limits)
        return self.find(key_id)

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
        query = _WITH_LIMITS.order_by(API_KEY.c.created_at.desc(), API_KEY.c.id.desc()).limit(limit)
        if after is not None:
            created, key_id = after
            query = query.where(
                or_(
                    API_KEY.c.created_at < created,
                    and_(API_KEY.c.created_at == created, API_KEY.c.id < key_id),
                )
            )
        if live_at is not None:
            now = to_micros(live_at)
            query = query.where(
                API_KEY.c.revoked_at.is_(None),
                or_(API_KEY.c.expires_at.is_(None), API_KEY.c.expires_at > now),
            )
        with translated(), self._engine.connect() as connection:
            return [_key_of(row) for row in connection.execute(query)]

    def revoke(self, key_id: str, at: datetime) -> ApiKey | None:
        """End a key; the first time stays. Gives the key as it is then, or None when there is none."""
        with translated(), self._engine.begin() as connection:
            connection.execute(
                update(API_KEY)
                .where(API_KEY.c.id == key_id, API_KEY.c.revoked_at.is_(None))
                .values(revoked_at=to_micros(at))
            )
        return self.find(key_id)

    def mark_used(self, key_id: str, at: datetime) -> None:
        """Note when a key was last used."""
        with translated(), self._engine.begin() as connection:
            connection.execute(
                update(API_KEY).where(API_KEY.c.id == key_id).values(last_used_at=to_micros(at))
            )

    def _one(self, condition: Any) -> ApiKey | None:  # Any: an SQL expression
        with translated(), self._engine.connect() as connection:
            row = connection.execute(_WITH_LIMITS.where(condition)).first()
        return None if row is None else _key_of(row)


def position(key: ApiKey) -> tuple[int, str]:
    """Give where a key stands in the order of `KeyStore.list`."""
    return to_micros(key.created_at), key.id


def _row_of(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "display_name": key.display_name,
        "tenant": key.tenant,
        "scopes": " ".join(sorted(SCOPE_NAMES[scope] for scope in key.scopes)),
        "prefix": key.prefix,
        "created_at": to_micros(key.created_at),
        "expires_at": None if key.expires_at is None else to_micros(key.expires_at),
        "revoked_at": None if key.revoked_at is None else to_micros(key.revoked_at),
        "last_used_at": None if key.last_used_at is None else to_micros(key.last_used_at),
    }


def _key_of(row: Row[Any]) -> ApiKey:  # Any: SQLAlchemy types rows by their query
    return ApiKey(
        id=row.id,
        display_name=row.display_name,
        tenant=row.tenant,
        scopes=frozenset(SCOPES[name] for name in row.scopes.split()),
        prefix=row.prefix,
        created_at=from_micros(row.created_at),
        expires_at=None if row.expires_at is None else from_micros(row.expires_at),
        revoked_at=None if row.revoked_at is None else from_micros(row.revoked_at),
        last_used_at=None if row.last_used_at is None else from_micros(row.last_used_at),
        limits=UNLIMITED if row.limits is None else KeyLimits.from_json(row.limits),
    )


def _keep_limits(connection: Connection, key_id: str, limits: KeyLimits) -> None:
    connection.execute(delete(KEY_LIMITS).where(KEY_LIMITS.c.key_id == key_id))
    if limits != UNLIMITED:
        connection.execute(insert(KEY_LIMITS).values(key_id=key_id, limits=limits.to_json()))
