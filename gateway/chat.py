"""`POST /v1/chat/completions`: from a client's request to a judged, audited answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from gateway.acts import CHAT_KIND
from gateway.chat_answer import ChunkWriter, Identity, completion
from gateway.chat_runs import Asked, ChatRuns
from gateway.chat_schema import MAX_MESSAGES, ChatRequest, ImagePart, UserMessage, parse_chat_request
from gateway.conversations.records import Owner
from gateway.conversations.sessions import FIELD, SessionChats, Sessions
from gateway.edge import Exchange, too_large, until_disconnect
from gateway.gate import Gate
from gateway.keys import ApiKey
from gateway.ledger import Ledger
from gateway.limits.estimates import estimate_of
from gateway.readers import Chats, Stream, Whole
from gateway.responses.translate import located
from gateway.strict_json import read_object
from kala.common.v1 import options_pb2
from kala.errors import InvalidArgumentError, KalaError, NotFoundError

ROUTE: Final = "HTTP POST /v1/chat/completions"
ID_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class ChatLimits:
    """What one request may bring."""

    max_body_bytes: int
    max_image_body_bytes: int
    body_timeout_seconds: float
    max_messages: int = MAX_MESSAGES


class ChatCompletions:
    """Answers chat requests."""

    def __init__(
        self,
        runs: ChatRuns,
        *,
        gate: Gate,
        ledger: Ledger,
        limits: ChatLimits,
        sessions: Sessions,
        wall_clock: Callable[[], float] = time.time,
        new_id: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._runs = runs
        self._gate = gate
        self._ledger = ledger
        self._limits = limits
        self._sessions = sessions
        self._wall_clock = wall_clock
        self._new_id = new_id

    async def complete(self, exchange: Exchange) -> None:
        """Handle one request."""
        exchange.is_audited = True
        key = await self._gate.admit(exchange, rpc=ROUTE, scope=options_pb2.SCOPE_CHAT)
        asked, body = await self._read(exchange, key)
        async with self._gate.reserve(exchange, key, estimate_of(asked.action)):
            if asked.needs_others:
                asked = await self._prepared(exchange, key, asked, body)
            act = self._runs.act(asked, exchange, self._gate.caller(key, _person_in(asked.request)))
            identity = Identity(
                f"chatcmpl-{self._new_id(ID_BYTES)}",
                int(self._wall_clock()),
                asked.action.model,
                asked.fitting,
            )
            reader = self._reader(exchange, self._chats(asked, exchange), identity, asked)
            await until_disconnect(exchange, reader.run(act))

    def _reader(self, exchange: Exchange, chats: Chats, identity: Identity, asked: Asked) -> Whole | Stream:
        tools = asked.tool_names
        if asked.request.wants_stream:
            chunks = ChunkWriter(identity, wants_usage=asked.request.wants_usage)
            return Stream(exchange, chats, chunks, declared_tools=tools)
        return Whole(exchange, chats, partial(completion, identity), declared_tools=tools)

    async def _read(self, exchange: Exchange, key: ApiKey) -> tuple[Asked, bytes]:
        """Read and validate a request; one that cannot be put leaves a record of its known caller, then raises."""
        body = b""
        try:
            body = await exchange.read_body(
                max_bytes=self._limits.max_image_body_bytes, timeout_seconds=self._limits.body_timeout_seconds
            )
            self._check_size(body)
            request = parse_chat_request(read_object(body), max_messages=self._limits.max_messages)
            self._check_images(request, body)
            asked = await self._asked(exchange, key, request)
        except (InvalidArgumentError, NotFoundError) as error:
            await self._record(exchange, key, error, body)
            raise
        if request.wants_kala_tools:
            await self._gate.require(exchange, key, rpc=ROUTE, scope=options_pb2.SCOPE_TOOLS)
        return asked, body

    async def _asked(self, exchange: Exchange, key: ApiKey, request: ChatRequest) -> Asked:
        """Give the chat, in its session where it names one."""
        if request.kala_session is None:
            return self._runs.ask(request, exchange.headers)
        owner = Owner.of(self._gate.caller(key, _person_in(request)))
        session = await self._sessions.open(request.kala_session, owner)
        whole, origins = session.before(request)
        try:
            asked = self._runs.ask(whole, exchange.headers)
        except InvalidArgumentError as error:
            raise located(error, origins) from error
        if asked.action.ByteSize() > self._limits.max_image_body_bytes:
            raise InvalidArgumentError(
                FIELD,
                f"has become longer than {self._limits.max_image_body_bytes} bytes; begin a new session",
            )
        return replace(asked, session=session, own=request)

    def _chats(self, asked: Asked, exchange: Exchange) -> Chats:
        chats = self._runs.chats(asked, exchange.reservation)
        if asked.session is None:
            return chats
        return SessionChats(chats, self._sessions, asked.session, asked.own or asked.request)

    async def _prepared(self, exchange: Exchange, key: ApiKey, asked: Asked, body: bytes) -> Asked:
        try:
            return await self._runs.prepare(asked, self._gate.caller(key), exchange.reservation)
        except KalaError as error:
            await self._record(exchange, key, error, body)
            raise

    async def _record(self, exchange: Exchange, key: ApiKey, error: KalaError, body: bytes) -> None:
        """Log a request that came to no judgement."""
        await self._gate.count(exchange, key)
        exchange.receipt = await self._ledger.invalid(
            self._gate.caller(key),
            kind=CHAT_KIND,
            rpc=ROUTE,
            error=error,
            body=body,
            request_id=exchange.request_id,
            trace_id=exchange.trace_id,
        )

    def _check_size(self, body: bytes) -> None:
        # Cheap first look: only a body that mentions images may be large; `_check_images` looks properly.
        if len(body) > self._limits.max_body_bytes and b'"image_url"' not in body:
            raise too_large(self._limits.max_body_bytes)

    def _check_images(self, request: ChatRequest, body: bytes) -> None:
        if len(body) > self._limits.max_body_bytes and not _has_images(request):
            raise too_large(self._limits.max_body_bytes)


def _person_in(request: ChatRequest) -> str:
    return request.safety_identifier or request.user or ""


def _has_images(request: ChatRequest) -> bool:
    return any(
        isinstance(part, ImagePart)
        for message in request.messages
        if isinstance(message, UserMessage) and isinstance(message.content, list)
        for part in message.content
    )
