"""Stored responses in SQL, their words sealed by person.  Blocking; called from threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson
from sqlalchemy import delete, insert, literal, select, update

from gateway.conversations.records import UNFINISHED, Json, Owner, StoredResponse
from gateway.conversations.tables import RESPONSE
from gateway.database import translated
from kala.errors import FailedPreconditionError, NotFoundError

if TYPE_CHECKING:
    from sqlalchemy import Engine, Row

    from gateway.payloads import Payloads

MAX_TURNS: Final = 1_000
"""Of one conversation: more words than any model's context, and a walk through them that takes well under a second."""

PREVIOUS_NOT_FOUND: Final = "PREVIOUS_RESPONSE_NOT_FOUND"

_R: Final = RESPONSE.c


class ResponseStore:
    """The responses of one database."""

    def __init__(self, engine: Engine, payloads: Payloads) -> None:
        self._engine = engine
        self._payloads = payloads

    def insert(self, response: StoredResponse) -> None:
        """Store a new response."""
        owner = response.owner
        values = {
            "id": response.id,
            "tenant": owner.tenant,
            "owner": owner.key,
            "subject": owner.subject,
            "previous_id": response.previous_id,
            "status": response.status,
            "is_refused": response.is_refused,
            "created_at": response.created_at,
            "expires_at": response.expires_at,
            "lease_until": response.lease_until,
            "input": self._seal(owner, response.id, "input", list(response.items)),
            "body": self._seal(owner, response.id, "body", response.body),
        }
        with translated(), self._engine.begin() as connection:
            connection.execute(insert(RESPONSE).values(values))

    def update(
        self,
        response_id: str,
        owner: Owner,
        body: Json,
        *,
        is_refused: bool = False,
        lease_until: int | None = None,
    ) -> bool:
        """Change what is not finished yet; False where it is, or where it was deleted or erased meanwhile."""
        sealed = self._seal(owner, response_id, "body", body)
        with translated(), self._engine.begin() as connection:
            changed = connection.execute(
                update(RESPONSE)
                .where(_R.id == response_id, _R.status.in_(UNFINISHED))
                .values(status=body["status"], body=sealed, is_refused=is_refused, lease_until=lease_until)
            )
        return bool(changed.rowcount)

    def renew(self, response_ids: Sequence[str], lease_until: int) -> Sequence[str]:
        """Say that somebody still works on these; gives those that are still unfinished."""
        alive = _R.id.in_(response_ids), _R.status.in_(UNFINISHED)
        with translated(), self._engine.begin() as connection:
            connection.execute(update(RESPONSE).where(*alive).values(lease_until=lease_until))
            return list(connection.execute(select(_R.id).where(*alive)).scalars())

    def find(self, owner: Owner, response_id: str, now: int) -> StoredResponse | None:
        """Give a caller's response that has not expired, or None."""
        query = select(RESPONSE).where(_R.id == response_id, *_is_of(owner), _R.expires_at > now)
        with translated(), self._engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else self._readable(row)

    def delete(self, owner: Owner, response_id: str) -> bool:
        """Delete a caller's response; whether there was one."""
        with translated(), self._engine.begin() as connection:
            gone = connection.execute(delete(RESPONSE).where(_R.id == response_id, *_is_of(owner)))
        return bool(gone.rowcount)

    def conversation(self, owner: Owner, response_id: str, now: int) -> list[StoredResponse]:
        """Give a response and all that it follows, the oldest first.

        NotFoundError where one of them is not there any more; FailedPreconditionError where there are too many.
        """
        first = select(RESPONSE, literal(0).label("depth")).where(
            _R.id == response_id, *_is_of(owner), _R.expires_at > now
        )
        walk = first.cte("walk", recursive=True)
        before = select(RESPONSE, (walk.c.depth + 1).label("depth")).where(
            _R.id == walk.c.previous_id, *_is_of(owner), _R.expires_at > now, walk.c.depth < MAX_TURNS
        )
        walk = walk.union_all(before)
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(select(walk).order_by(walk.c.depth.desc())).all()
        if len(rows) > MAX_TURNS:
            raise FailedPreconditionError(
                f"the conversation has more than {MAX_TURNS} turns; begin a new one",
                reason="CONVERSATION_TOO_LONG",
            )
        if not rows or rows[0].previous_id is not None:
            raise _not_there(rows[0].previous_id if rows else response_id)
        turns = [self._readable(row) for row in rows]
        if None in turns:
            raise _not_there(rows[turns.index(None)].id)
        return [turn for turn in turns if turn is not None]

    def abandoned(self, now: int, limit: int = 100) -> list[StoredResponse]:
        """Give unfinished responses on which nobody works any more."""
        query = select(RESPONSE).where(_R.status.in_(UNFINISHED), _R.lease_until < now).limit(limit)
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        found = {row.id: self._readable(row) for row in rows}
        with translated(), self._engine.begin() as connection:
            unreadable = [name for name, one in found.items() if one is None]
            connection.execute(delete(RESPONSE).where(_R.id.in_(unreadable)))
        return [one for one in found.values() if one is not None]

    def sweep(self, now: int) -> int:
        """Delete what has expired; how many those were."""
        with translated(), self._engine.begin() as connection:
            return connection.execute(delete(RESPONSE).where(_R.expires_at <= now)).rowcount

    def erase(self, tenant: str, subject: str) -> int:
        """Delete everything about a person; how many those were."""
        with translated(), self._engine.begin() as connection:
            gone = connection.execute(delete(RESPONSE).where(_R.tenant == tenant, _R.subject == subject))
        return gone.rowcount

    def _readable(self, row: Row[Any]) -> StoredResponse | None:  # Any: as below
        """Open a row; None where an erasure destroyed the key while it was being written."""
        try:
            return self._opened(row)
        except NotFoundError:
            return None

    def _opened(self, row: Row[Any]) -> StoredResponse:  # Any: SQLAlchemy types rows by their query
        owner = Owner(row.tenant, row.owner, row.subject)
        return StoredResponse(
            id=row.id,
            owner=owner,
            previous_id=row.previous_id,
            status=row.status,
            is_refused=row.is_refused,
            created_at=row.created_at,
            expires_at=row.expires_at,
            lease_until=row.lease_until,
            items=self._open(owner, row.id, "input", row.input),
            body=self._open(owner, row.id, "body", row.body),
        )

    def _seal(self, owner: Owner, response_id: str, what: str, value: object) -> bytes:
        return self._payloads.seal(
            owner.tenant, owner.subject, orjson.dumps(value), _context(response_id, what)
        )

    def _open(self, owner: Owner, response_id: str, what: str, sealed: bytes) -> Any:  # Any: JSON
        return orjson.loads(
            self._payloads.open(owner.tenant, owner.subject, sealed, _context(response_id, what))
        )


def _is_of(owner: Owner) -> tuple[Any, Any]:  # Any: SQL expressions
    return _R.tenant == owner.tenant, _R.owner == owner.key


def _not_there(response_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no response {response_id[:64]!r}: it was never stored, has expired, was deleted or erased, or belongs "
        "to another key; send the conversation in `input`",
        reason=PREVIOUS_NOT_FOUND,
    )


def _context(response_id: str, what: str) -> bytes:
    return f"response\0{response_id}\0{what}".encode()
