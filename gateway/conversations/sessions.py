"""Chats that go on in a stored session: its messages are told before the request's, and what was said is added to it.

System messages are the request's own and are not kept. A turn that was refused is not kept either: every later one would
be judged by its words again. It counts as a request all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter

from gateway.chat_answer import message_of
from gateway.chat_schema import ChatRequest, Message
from gateway.conversations.records import Json, Owner
from kala.errors import KalaError, NotFoundError

if TYPE_CHECKING:
    from gateway.acts import Act, Conclusion
    from gateway.conversations.session_store import SessionStore
    from gateway.pipeline import OnChatRelease
    from gateway.readers import Chats

SESSIONS: Final = "sessions/"
FIELD: Final = "kala_session"
REFUSED: Final = "content_filter"

_MESSAGES: Final[TypeAdapter[list[Any]]] = TypeAdapter(list[Message])
_INSTRUCTING: Final = ("system", "developer")


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session as a request found it."""

    id: str
    owner: Owner
    position: int
    messages: Sequence[Json]

    def before(self, request: ChatRequest) -> tuple[ChatRequest, list[str]]:
        """Give the request with the session's messages before its own, and where each message came from."""
        stored = _MESSAGES.validate_python(self.messages)
        own = [(message, f"messages[{place}]") for place, message in enumerate(request.messages)]
        instructing = [pair for pair in own if pair[0].role in _INSTRUCTING]
        said = [pair for pair in own if pair[0].role not in _INSTRUCTING]
        told = [*instructing, *((message, FIELD) for message in stored), *said]
        whole = request.model_copy(update={"messages": [message for message, _ in told]})
        return whole, [origin for _, origin in told]


class Sessions:
    """The sessions that chats go on in; one per process."""

    def __init__(self, store: SessionStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    async def open(self, name: str, owner: Owner) -> OpenSession:
        """Open a caller's session; NotFoundError where there is none."""
        session_id = name.removeprefix(SESSIONS)
        now = int(self._clock() * 1_000_000)
        session = await asyncio.to_thread(self._store.find, owner, session_id, now)
        messages, position = await asyncio.to_thread(self._store.turns, session.id)
        return OpenSession(session.id, owner, position, messages)

    async def append(self, session: OpenSession, messages: Sequence[Json]) -> None:
        """Add what was said; AlreadyExistsError, reason SESSION_MOVED, where another request was first."""
        await asyncio.to_thread(self._store.append, session.id, session.owner, session.position, messages)


class SessionChats:
    """Carries out one chat and adds it to its session before its reader hears of the end."""

    def __init__(self, chats: Chats, sessions: Sessions, session: OpenSession, request: ChatRequest) -> None:
        self._chats = chats
        self._sessions = sessions
        self._session = session
        self._request = request

    async def chat(
        self, act: Act, *, declared_tools: frozenset[str], is_stream: bool, on_release: OnChatRelease
    ) -> Conclusion:
        """Carry out the chat; where it cannot be added, that is its error."""
        conclusion = await self._chats.chat(
            act, declared_tools=declared_tools, is_stream=is_stream, on_release=on_release
        )
        if conclusion.error is not None:
            return conclusion
        try:
            await self._sessions.append(self._session, self._said(conclusion))
        except KalaError as error:
            return replace(conclusion, error=error)
        return conclusion

    def _said(self, conclusion: Conclusion) -> list[Json]:
        if conclusion.finish_reason == REFUSED:
            return []
        asked = [
            message.model_dump(exclude_none=True, by_alias=True)
            for message in self._request.messages
            if message.role not in _INSTRUCTING
        ]
        return [*asked, *answered(conclusion)]


def answered(conclusion: Conclusion) -> list[Json]:
    """Give an answer as the messages that a client would send back."""
    tools: dict[str, Any] = dict(conclusion.tools or {})  # Any: JSON
    messages = list(tools.get("messages", ()))
    told = {call["id"] for message in messages for call in message.get("tool_calls", ())}
    if any(call.id in told for call in conclusion.answer.tool_calls.values()):
        return messages  # the calls that are left to others stand there already
    last = message_of(conclusion.answer)
    last.pop("reasoning_content", None)
    return [*messages, {key: value for key, value in last.items() if value is not None}]


def no_session() -> NotFoundError:
    """Give the error for a name that no session can have."""
    return NotFoundError("there is no such session", reason="SESSION_NOT_FOUND")
