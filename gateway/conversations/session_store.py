"""Stored sessions in SQL: conversations of chats, each turn sealed by its person.  Blocking; called from threads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson
from sqlalchemy import and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from gateway.conversations.records import Json, Owner
from gateway.conversations.tables import SESSION, SESSION_TURN
from gateway.database import translated
from kala.errors import AlreadyExistsError, NotFoundError

if TYPE_CHECKING:
    from sqlalchemy import Engine, Row

    from gateway.payloads import Payloads

_S: Final = SESSION.c
_T: Final = SESSION_TURN.c


@dataclass(frozen=True, slots=True)
class StoredSession:
    """One session without its turns."""

    id: str
    owner: Owner
    title: str
    created_at: int  # microseconds
    expires_at: int
    requests: int = 0


class SessionStore:
    """The sessions of one database."""

    def __init__(self, engine: Engine, payloads: Payloads) -> None:
        self._engine = engine
        self._payloads = payloads

    def insert(self, session: StoredSession) -> None:
        """Store a new session."""
        owner = session.owner
        title = self._payloads.seal(
            owner.tenant, owner.subject, session.title.encode(), _title_context(session.id)
        )
        values = {
            "id": session.id,
            "tenant": owner.tenant,
            "owner": owner.key,
            "subject": owner.subject,
            "title": title,
            "created_at": session.created_at,
            "expires_at": session.expires_at,
            "requests": session.requests,
        }
        with translated(), self._engine.begin() as connection:
            connection.execute(insert(SESSION).values(values))

    def find(self, owner: Owner, session_id: str, now: int) -> StoredSession:
        """Give a caller's session that has not expired; NotFoundError where there is none."""
        query = select(SESSION).where(_S.id == session_id, *_is_of(owner), _S.expires_at > now)
        with translated(), self._engine.connect() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise _no_session(session_id)
        return self._opened(row)

    def page(
        self, owner: Owner, now: int, *, limit: int, after: tuple[int, str] | None = None
    ) -> Sequence[StoredSession]:
        """List a caller's sessions, the newest first; `after` continues behind a session's time and id."""
        query = (
            select(SESSION)
            .where(*_is_of(owner), _S.expires_at > now)
            .order_by(_S.created_at.desc(), _S.id.desc())
            .limit(limit)
        )
        if after is not None:
            created, session_id = after
            query = query.where(
                or_(_S.created_at < created, and_(_S.created_at == created, _S.id < session_id))
            )
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [self._opened(row) for row in rows]

    def delete(self, owner: Owner, session_id: str) -> None:
        """Delete a caller's session with its turns; NotFoundError where there is none."""
        with translated(), self._engine.begin() as connection:
            mine = select(_S.id).where(_S.id == session_id, *_is_of(owner))
            connection.execute(delete(SESSION_TURN).where(_T.session_id.in_(mine)))
            gone = connection.execute(delete(SESSION).where(_S.id == session_id, *_is_of(owner)))
        if not gone.rowcount:
            raise _no_session(session_id)

    def turns(self, session_id: str) -> tuple[list[Json], int]:
        """Give a session's messages in order, and the place of the next turn."""
        query = select(SESSION_TURN).where(_T.session_id == session_id).order_by(_T.position)
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        messages: list[Json] = []
        for row in rows:
            context = _turn_context(session_id, row.position)
            with suppress(NotFoundError):  # an erasure destroyed the key while the turn was being written
                messages += orjson.loads(self._payloads.open(row.tenant, row.subject, row.messages, context))
        return messages, rows[-1].position + 1 if rows else 0

    def append(self, session_id: str, owner: Owner, position: int, messages: Sequence[Json]) -> None:
        """Add a turn at the place that `turns` gave, and count the request.

        AlreadyExistsError, reason SESSION_MOVED, where another request was first; NotFoundError where the session
        is gone. Without messages the request is only counted.
        """
        context = _turn_context(session_id, position)
        sealed = self._payloads.seal(owner.tenant, owner.subject, orjson.dumps(list(messages)), context)
        values = {
            "session_id": session_id,
            "position": position,
            "tenant": owner.tenant,
            "subject": owner.subject,
            "messages": sealed,
        }
        with translated():
            try:
                with self._engine.begin() as connection:
                    counted = connection.execute(
                        update(SESSION).where(_S.id == session_id).values(requests=_S.requests + 1)
                    )
                    if not counted.rowcount:
                        raise _no_session(session_id)
                    if messages:
                        connection.execute(insert(SESSION_TURN).values(values))
            except IntegrityError as error:
                raise AlreadyExistsError(
                    "another request of the same session was answered meanwhile, so this answer was not added to it; "
                    "send a session's requests one after the other",
                    reason="SESSION_MOVED",
                ) from error

    def sweep(self, now: int) -> int:
        """Delete what has expired; how many sessions those were."""
        with translated(), self._engine.begin() as connection:
            old = select(_S.id).where(_S.expires_at <= now)
            connection.execute(delete(SESSION_TURN).where(_T.session_id.in_(old)))
            return connection.execute(delete(SESSION).where(_S.expires_at <= now)).rowcount

    def erase(self, tenant: str, subject: str) -> tuple[int, int]:
        """Delete a person's sessions, and their turns in anybody's; how many of each."""
        with translated(), self._engine.begin() as connection:
            theirs = select(_S.id).where(_S.tenant == tenant, _S.subject == subject)
            turns = connection.execute(
                delete(SESSION_TURN).where(
                    or_(
                        _T.session_id.in_(theirs),
                        and_(_T.tenant == tenant, _T.subject == subject),
                    )
                )
            ).rowcount
            sessions = connection.execute(
                delete(SESSION).where(_S.tenant == tenant, _S.subject == subject)
            ).rowcount
        return sessions, turns

    def _opened(self, row: Row[Any]) -> StoredSession:  # Any: SQLAlchemy types rows by their query
        title = b""
        with suppress(NotFoundError):  # as above
            title = self._payloads.open(row.tenant, row.subject, row.title, _title_context(row.id))
        return StoredSession(
            id=row.id,
            owner=Owner(row.tenant, row.owner, row.subject),
            title=title.decode(),
            created_at=row.created_at,
            expires_at=row.expires_at,
            requests=row.requests,
        )


def _is_of(owner: Owner) -> tuple[Any, Any]:  # Any: SQL expressions
    return _S.tenant == owner.tenant, _S.owner == owner.key


def _no_session(session_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no session 'sessions/{session_id[:64]}': it has expired, was deleted or erased, or belongs to another key",
        reason="SESSION_NOT_FOUND",
    )


def _title_context(session_id: str) -> bytes:
    return f"session\0{session_id}\0title".encode()


def _turn_context(session_id: str, position: int) -> bytes:
    return f"session\0{session_id}\0{position}".encode()
