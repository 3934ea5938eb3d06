"""`POST /v1/chat/completions`: from a client's request to a judged, audited answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.acts import CHAT_KIND, CHAT_RPC, Act, Conclusion, Fitting, Logged
from gateway.answer import Release
from gateway.chat_action import build_action, has_untrusted_content, request_text
from gateway.chat_answer import EVENT_STREAM, ChunkWriter, Identity, completion
from gateway.chat_schema import MAX_MESSAGES, ChatRequest, ImagePart, UserMessage, parse_chat_request
from gateway.destination import Destinations
from gateway.edge import Exchange, too_large, until_disconnect
from gateway.fitting import TRUNCATION_HEADER, fit, strategy_of
from gateway.gate import Gate
from gateway.keys import ApiKey
from gateway.ledger import Ledger
from gateway.pipeline import OnChatRelease, Pipeline, Progress
from gateway.strict_json import read_object
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


class ChatCompletions:
    """Answers chat requests."""

    def __init__(
        self,
        *,
        gate: Gate,
        inference: InferenceServiceAsyncStub,
        ledger: Ledger,
        pipeline: Pipeline,
        limits: ChatLimits,
        may_spool: bool,
        destinations: Destinations = Destinations(),  # noqa: B008 - frozen
        wall_clock: Callable[[], float] = time.time,
        new_id: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._gate = gate
        self._inference = inference
        self._ledger = ledger
        self._pipeline = pipeline
        self._limits = limits
        self._may_spool = may_spool
        self._destinations = destinations
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
            after_untrusted_content=has_untrusted_content(action),
            # A remote backend must not see what is not yet in the log (design section 2).
            must_log_first=action.allow_remote,
            may_spool=self._may_spool,
        )
        answer = _Stream if request.wants_stream else _Whole
        identity = Identity(
            f"chatcmpl-{self._new_id(ID_BYTES)}", int(self._wall_clock()), action.model, asked.fitting
        )
        with self._gate.room:
            await until_disconnect(exchange, answer(exchange, self._pipeline, identity, request).run(act))

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
            strategy = strategy_of(exchange.headers.get(TRUNCATION_HEADER, ""))
            action = build_action(request, destination)
        except InvalidArgumentError as error:
            await self._record(exchange, key, error, body)
            raise
        if not strategy:
            return _Asked(request, action)
        with self._gate.room:
            try:
                return _Asked(request, action, await fit(self._inference, action, strategy))
            except KalaError as error:
                await self._record(exchange, key, error, body)
                raise

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


class _Reader:
    """One client waiting for one answer."""

    def __init__(
        self, exchange: Exchange, pipeline: Pipeline, identity: Identity, request: ChatRequest
    ) -> None:
        self._exchange = exchange
        self._pipeline = pipeline
        self._identity = identity
        self._request = request

    async def _carry_out(self, act: Act, on_release: OnChatRelease) -> Conclusion:
        names = frozenset(tool.function.name for tool in self._request.tools or ())
        return await self._pipeline.chat(
            act,
            declared_tools=names,
            is_stream=self._request.wants_stream,
            on_release=on_release,
        )

    def _note(self, conclusion: Conclusion) -> None:
        self._exchange.receipt = conclusion.receipt
        self._exchange.served = conclusion.served
        self._exchange.overhead_ms = conclusion.overhead_ms


class _Whole(_Reader):
    """Waits for everything."""

    async def run(self, act: Act) -> None:
        """Answer with one JSON object."""
        logprobs: list[inference_pb2.TokenLogprob] = []

        async def collect(release: Release, _progress: Progress) -> None:
            logprobs.extend(release.logprobs)

        conclusion = await self._carry_out(act, collect)
        self._note(conclusion)
        if conclusion.error is not None:
            raise conclusion.error
        await self._exchange.send_json(
            200, completion(self._identity, conclusion, logprobs if conclusion.is_allowed else ())
        )


class _Stream(_Reader):
    """Reads chunks as they are released."""

    def __init__(
        self, exchange: Exchange, pipeline: Pipeline, identity: Identity, request: ChatRequest
    ) -> None:
        super().__init__(exchange, pipeline, identity, request)
        self._chunks = ChunkWriter(identity, wants_usage=request.wants_usage)

    async def run(self, act: Act) -> None:
        """Answer with server-sent events; the headers wait for the first words, so that a failure before keeps its status."""
        conclusion = await self._carry_out(act, self._pass_on)
        if not self._exchange.has_begun:
            self._note(conclusion)
            if conclusion.error is not None:
                raise conclusion.error
            if conclusion.intent_id is not None:
                self._exchange.receipt = Logged(conclusion.intent_id, is_logged=True)
            await self._begin(conclusion)
        if conclusion.error is not None:
            await self._exchange.send_part(self._chunks.failed(conclusion.error, conclusion))
        else:
            await self._exchange.send_part(self._chunks.concluded(conclusion))
        await self._exchange.end_stream()

    async def _begin(self, conclusion: Conclusion) -> None:
        await self._exchange.begin_stream(EVENT_STREAM)
        if conclusion.stage == "request" and conclusion.answer.text:
            await self._exchange.send_part(self._chunks.released(Release(text=conclusion.answer.text)))

    async def _pass_on(self, release: Release, progress: Progress) -> None:
        if not self._exchange.has_begun:
            self._exchange.receipt = Logged(progress.intent_id, is_logged=True)
            self._exchange.served = progress.served
            self._exchange.overhead_ms = progress.overhead_ms
            self._chunks.served_by(progress.served.model)
            await self._exchange.begin_stream(EVENT_STREAM)
        await self._exchange.send_part(self._chunks.released(release))


def _has_images(request: ChatRequest) -> bool:
    return any(
        isinstance(part, ImagePart)
        for message in request.messages
        if isinstance(message, UserMessage) and isinstance(message.content, list)
        for part in message.content
    )
