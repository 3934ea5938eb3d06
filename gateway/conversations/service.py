"""Serves kala.gateway.v1.SessionsService: a caller's stored conversations."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from gateway.conversations.records import Owner
from gateway.conversations.session_store import SessionStore, StoredSession
from gateway.conversations.sessions import SESSIONS, no_session
from gateway.key_table import from_micros, to_micros
from gateway.page_tokens import PageTokens, page_size
from kala.errors import InvalidArgumentError
from kala.gateway.v1 import gateway_pb2

if TYPE_CHECKING:
    from gateway.bridge import LocalHandler
    from gateway.edge import Exchange
    from gateway.identity import Caller

_SERVICE: Final = "/kala.gateway.v1.SessionsService/"
LIST: Final = f"{_SERVICE}ListSessions"
MAX_TITLE_CHARS: Final = 256
MAX_TTL: Final = timedelta(days=3650)
ID_BYTES: Final = 16
_NAME: Final = re.compile(r"sessions/[0-9a-f]{32}")


class SessionsService:
    """The four RPCs."""

    def __init__(
        self,
        store: SessionStore,
        tokens: PageTokens,
        *,
        default_ttl: timedelta,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        new_id: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._default_ttl = default_ttl
        self._now = now
        self._new_id = new_id

    @property
    def handlers(self) -> dict[str, LocalHandler]:
        """Give the RPCs by name, for the bridge."""
        return {
            f"{_SERVICE}CreateSession": self.create,
            f"{_SERVICE}GetSession": self.get,
            LIST: self.page,
            f"{_SERVICE}DeleteSession": self.delete,
        }

    async def create(
        self, request: gateway_pb2.CreateSessionRequest, caller: Caller, _exchange: Exchange
    ) -> gateway_pb2.CreateSessionResponse:
        """Open a session."""
        if len(request.title) > MAX_TITLE_CHARS:
            raise InvalidArgumentError("title", f"must have at most {MAX_TITLE_CHARS} characters; shorten it")
        ttl = request.ttl.ToTimedelta() if request.HasField("ttl") else self._default_ttl
        if not timedelta(seconds=1) <= ttl <= MAX_TTL:
            raise InvalidArgumentError("ttl", f"must be 1 second to {MAX_TTL.days} days")
        now = self._now()
        session = StoredSession(
            id=self._new_id(ID_BYTES),
            owner=Owner.of(caller),
            title=request.title,
            created_at=to_micros(now),
            expires_at=to_micros(now + ttl),
        )
        await asyncio.to_thread(self._store.insert, session)
        return gateway_pb2.CreateSessionResponse(session=_message(session))

    async def get(
        self, request: gateway_pb2.GetSessionRequest, caller: Caller, _exchange: Exchange
    ) -> gateway_pb2.GetSessionResponse:
        """Give a caller's session."""
        session = await asyncio.to_thread(
            self._store.find, Owner.of(caller), _id_in(request.name), to_micros(self._now())
        )
        return gateway_pb2.GetSessionResponse(session=_message(session))

    async def page(
        self, request: gateway_pb2.ListSessionsRequest, caller: Caller, _exchange: Exchange
    ) -> gateway_pb2.ListSessionsResponse:
        """List a caller's sessions, the newest first."""
        size = page_size(request.page_size)
        owner, now = Owner.of(caller), to_micros(self._now())
        after = self._after(request.page_token, owner)
        sessions = await asyncio.to_thread(lambda: self._store.page(owner, now, limit=size + 1, after=after))
        token = ""
        if len(sessions) > size:
            last = sessions[size - 1]
            token = self._tokens.write(LIST, _query(owner), f"{last.created_at}:{last.id}".encode())
        return gateway_pb2.ListSessionsResponse(
            sessions=[_message(session) for session in sessions[:size]], next_page_token=token
        )

    async def delete(
        self, request: gateway_pb2.DeleteSessionRequest, caller: Caller, _exchange: Exchange
    ) -> gateway_pb2.DeleteSessionResponse:
        """Delete a caller's session and its content."""
        await asyncio.to_thread(self._store.delete, Owner.of(caller), _id_in(request.name))
        return gateway_pb2.DeleteSessionResponse()

    def _after(self, token: str, owner: Owner) -> tuple[int, str] | None:
        if not token:
            return None
        micros, _, session_id = self._tokens.read(token, LIST, _query(owner)).decode().partition(":")
        return int(micros), session_id


def _query(owner: Owner) -> bytes:
    return f"{owner.tenant}\0{owner.key}".encode()


def _id_in(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise no_session()
    return name.removeprefix(SESSIONS)


def _message(session: StoredSession) -> gateway_pb2.Session:
    message = gateway_pb2.Session(name=SESSIONS + session.id, title=session.title, requests=session.requests)
    message.created_at.FromDatetime(from_micros(session.created_at))
    message.expires_at.FromDatetime(from_micros(session.expires_at))
    return message
