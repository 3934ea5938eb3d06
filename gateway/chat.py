"""`POST /v1/chat/completions`: from a client's request to a judged, audited answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.acts import CHAT_KIND, CHAT_RPC, Act, Fitting
from gateway.adapters import adapters_of
from gateway.chat_action import build_action, has_untrusted_content, request_text
from gateway.chat_answer import ChunkWriter, Identity, completion
from gateway.chat_schema import MAX_MESSAGES, ChatRequest, ImagePart, UserMessage, parse_chat_request
from gateway.chat_tools import ChatTools
from gateway.destination import Destinations
from gateway.edge import Exchange, too_large, until_disconnect
from gateway.fitting import fit
from gateway.gate import Gate
from gateway.keys import ApiKey
from gateway.ledger import Ledger
from gateway.mid_stream import MidStream, mid_stream_of
from gateway.pipeline import Pipeline
from gateway.readers import Chats, Stream, Whole
from gateway.strict_json import read_object
from gateway.tool_story import LoopRequest
from gateway.truncation import Truncation, strategy_of
from kala.common.v1 import options_pb2
from kala.errors import InvalidArgumentError, KalaError
from kala.inference.v1 import inference_pb2
from services.common.sealing import pack

if TYPE_CHECKING:
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub

ROUTE: Final = "HTTP POST /v1/chat/completions"
ID_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class ChatLimits:
    """What one request may bring."""

    max_body_bytes: int
    max_image_body_bytes: int
    body_timeout_seconds: float
    max_messages: int = MAX_MESSAGES


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that was read."""

    request: ChatRequest
    action: inference_pb2.ChatAction
    fitting: Fitting | None = None
    loop: LoopRequest | None = None
    """Set where KALA's tools may be called."""
    after_untrusted_content: bool = False
    """Of the conversation as it came: what fitting leaves out has had its say."""


class ChatCompletions:
    """Answers chat requests."""

    def __init__(
        self,
        *,
        gate: Gate,
        inference: InferenceServiceAsyncStub,
        ledger: Ledger,
        pipeline: Pipeline,
        tools: ChatTools,
        limits: ChatLimits,
        may_spool: bool,
        destinations: Destinations = Destinations(),  # noqa: B008 - frozen
        mid_stream: MidStream = "error",
        truncation: Truncation = "refuse",
        wall_clock: Callable[[], float] = time.time,
        new_id: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._gate = gate
        self._inference = inference
        self._ledger = ledger
        self._pipeline = pipeline
        self._tools = tools
        self._limits = limits
        self._may_spool = may_spool
        self._destinations = destinations
        self._mid_stream: MidStream = mid_stream
        self._truncation: Truncation = truncation
        self._wall_clock = wall_clock
        self._new_id = new_id

    async def complete(self, exchange: Exchange) -> None:
        """Handle one request."""
        exchange.is_audited = True
        key = await self._gate.admit(exchange, rpc=ROUTE, scope=options_pb2.SCOPE_CHAT)
        asked = await self._read(exchange, key)
        request, action = asked.request, asked.action
        act = Act(
            rpc=CHAT_RPC,
            kind=CHAT_KIND,
            action=pack(action),
            caller=self._gate.caller(key, request.safety_identifier or request.user or ""),
            request_id=exchange.request_id,
            trace_id=exchange.trace_id,
            started=exchange.started,
            model=action.model,
            request_text=request_text(action),
            after_untrusted_content=asked.after_untrusted_content,
            # A remote backend must not see what is not yet in the log (design section 2).
            must_log_first=action.allow_remote,
            may_spool=self._may_spool,
        )
        identity = Identity(
            f"chatcmpl-{self._new_id(ID_BYTES)}", int(self._wall_clock()), action.model, asked.fitting
        )
        chats: Chats = self._pipeline if asked.loop is None else self._tools.loop(asked.loop)
        reader = self._reader(exchange, chats, identity, asked)
        with self._gate.room:
            await until_disconnect(exchange, reader.run(act))

    def _reader(self, exchange: Exchange, chats: Chats, identity: Identity, asked: _Asked) -> Whole | Stream:
        tools = frozenset(tool.name for tool in asked.action.tools)
        if asked.request.wants_stream:
            chunks = ChunkWriter(identity, wants_usage=asked.request.wants_usage)
            return Stream(exchange, chats, chunks, declared_tools=tools)
        return Whole(exchange, chats, partial(completion, identity), declared_tools=tools)

    async def _read(self, exchange: Exchange, key: ApiKey) -> _Asked:
        """Read, validate and fit a request; one that cannot be put leaves a record of its known caller, then raises."""
        body = b""
        try:
            body = await exchange.read_body(
                max_bytes=self._limits.max_image_body_bytes, timeout_seconds=self._limits.body_timeout_seconds
            )
            self._check_size(body)
            request = parse_chat_request(read_object(body), max_messages=self._limits.max_messages)
            self._check_images(request, body)
            destination = self._destinations.of(exchange.headers, request.model or "")
            strategy = strategy_of(exchange.headers, default=self._truncation)
            action = build_action(request, destination)
            action.adapters.extend(adapters_of(exchange.headers))
            if action.stream:
                action.mid_stream = mid_stream_of(exchange.headers, default=self._mid_stream)
        except InvalidArgumentError as error:
            await self._record(exchange, key, error, body)
            raise
        if request.wants_kala_tools:
            await self._gate.require(exchange, key, rpc=ROUTE, scope=options_pb2.SCOPE_TOOLS)
        asked = _Asked(request, action, after_untrusted_content=has_untrusted_content(action))
        if not (strategy or request.wants_kala_tools):
            return asked
        with self._gate.room:
            try:
                return await self._prepared(asked, key, strategy)
            except KalaError as error:
                await self._record(exchange, key, error, body)
                raise

    async def _prepared(self, asked: _Asked, key: ApiKey, strategy: str) -> _Asked:
        """Do what a request needs of other services before it is judged: KALA's tools, and fitting."""
        if asked.request.wants_kala_tools:
            loop = await self._tools.prepare(asked.request, asked.action, self._gate.caller(key))
            asked = replace(asked, loop=replace(loop, refit=self._tools.refit(strategy)))
        if strategy:
            asked = replace(asked, fitting=await fit(self._inference, asked.action, strategy))
        return asked

    async def _record(self, exchange: Exchange, key: ApiKey, error: KalaError, body: bytes) -> None:
        """Log a request that came to no judgement."""
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


def _has_images(request: ChatRequest) -> bool:
    return any(
        isinstance(part, ImagePart)
        for message in request.messages
        if isinstance(message, UserMessage) and isinstance(message.content, list)
        for part in message.content
    )
