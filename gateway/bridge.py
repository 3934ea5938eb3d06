"""The REST bridge: every RPC of every contract over HTTP, by its own path, verb and scope.

A guarded RPC takes its bare action and runs through the whole pipeline; clearances never cross this edge.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc

from gateway.acts import Act, decision_json
from gateway.bridge_routes import Binding, Routes
from gateway.call_options import CallOptions, read_options
from gateway.chat_action import has_untrusted_content, request_text, tail_of
from gateway.code_prompts import CodePrompts
from gateway.edge import Exchange, until_disconnect
from gateway.errors import METHOD_NOT_ALLOWED, google_body, http_status
from gateway.framing import framing_for
from gateway.gate import Gate
from gateway.guarded import ActFailedError, GuardedCalls, RefusedError
from gateway.identity import Caller
from gateway.keys import ApiKey
from gateway.ledger import Ledger
from gateway.limits.estimates import estimate_of
from gateway.pipeline import Recorded
from gateway.readings import Readings
from gateway.tenancy import GET_ENTRY, confine, entry_of_payload, require_own
from gateway.transcoding import read_message, write_message
from kala.common.v1 import options_pb2
from kala.errors import InvalidArgumentError, NotFoundError, UnavailableError, UnimplementedError
from kala.inference.v1 import inference_pb2
from kala.tools.v1 import tools_pb2
from services.common.peers import GATEWAY, TOOLS
from services.common.principals import principal_metadata
from services.common.sealing import pack
from services.common.status import from_error

if TYPE_CHECKING:
    from google.protobuf.message import Message

UNARY_SECONDS: Final = 60.0
"""For most calls that neither act nor stream: listing and reading, at most over a slow disk."""

MAX_BODY_BYTES: Final = 32 * 1024 * 1024
"""As the largest chat request; larger content travels as references."""

LONG_CALLS: Final = {
    "/kala.audit.v1.AuditReadService/Export": 6 * 3600.0,
    "/kala.audit.v1.AuditReadService/WatchCheckpoints": 24 * 3600.0,
    "/kala.audit.v1.AuditReadService/WatchEntries": 24 * 3600.0,
    "/kala.inference.v1.InferenceService/PullModel": 24 * 3600.0,
    "/kala.tools.v1.ToolsService/SelfTest": 600.0,
    "/kala.trainer.v1.TrainerService/CheckDataset": 900.0,
    "/kala.trainer.v1.TrainerService/WaitOperation": 310.0,
    "/kala.trainer.v1.TrainerService/WatchTrainingJob": 24 * 3600.0,
    "/kala.trainer.v1.TrainerService/WatchLogs": 24 * 3600.0,
}
"""Calls that are no acts and may take long, in seconds: a large file on a slow line; every sandbox on a busy machine; a
million rows; a log of a hundred million entries on a slow line; a job or the log, which whoever follows it for longer asks
for again."""

WATCHES: Final = frozenset(
    {
        "/kala.audit.v1.AuditReadService/WatchCheckpoints",
        "/kala.audit.v1.AuditReadService/WatchEntries",
    }
)
"""Streams that say when they stand, before their first message."""

LARGE_BYTES: Final = 256 * 1024
"""Messages from here on are written beside the event loop."""

LocalHandler = Callable[[Any, Caller, Exchange], Awaitable["Message"]]
"""Serves an RPC of the gateway itself; Any: each has its own request class."""


Within = Callable[[float], float]
"""Gives how many of so many seconds a call may take."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of one RPC."""

    exchange: Exchange
    binding: Binding
    message: Message
    caller: Caller
    options: CallOptions

    def seconds(self, limit: float) -> float:
        """Give how many of so many seconds are left of the caller's own time."""
        return self.options.seconds(limit, elapsed_ms=self.exchange.elapsed_ms)


def _all_of(seconds: float) -> float:
    return seconds


class Bridge:
    """Serves every bridged RPC."""

    def __init__(
        self,
        *,
        routes: Routes,
        gate: Gate,
        ledger: Ledger,
        guarded: GuardedCalls,
        readings: Readings,
        channels: Mapping[str, grpc.aio.Channel],
        local: Mapping[str, LocalHandler],
        body_timeout_seconds: float,
        max_act_seconds: float,
        may_spool: bool,
    ) -> None:
        self._routes = routes
        self._gate = gate
        self._ledger = ledger
        self._guarded = guarded
        self._readings = readings
        self._prompts = CodePrompts(guarded)
        self._channels = channels
        self._local = local
        self._body_timeout_seconds = body_timeout_seconds
        self._max_act_seconds = max_act_seconds
        self._may_spool = may_spool
        self._calls = {binding.rpc: self._call_of(binding) for binding in routes.bindings}

    async def serve(self, exchange: Exchange) -> None:
        """Handle one request."""
        binding, variables = self._find(exchange)
        exchange.is_audited = binding.action_class is not None
        key = await self._gate.admit(exchange, rpc=binding.rpc, scope=binding.scope)
        caller = self._gate.caller(key)
        message, options = await self._read(exchange, binding, variables, key)
        self._require_deployed(binding)
        asked = Asked(exchange, binding, message, caller, options)
        if binding.rpc in self._local:
            # A key must be revocable when there is no room left; what was logged as done is done, also for nobody.
            await self._serve_own(asked)
            return
        async with self._gate.reserve(exchange, key, estimate_of(message)):
            await until_disconnect(exchange, self._serve_call(asked))

    def _find(self, exchange: Exchange) -> tuple[Binding, Mapping[str, str]]:
        found = self._routes.find(exchange.method, exchange.path)
        if found is not None:
            return found
        verbs = self._routes.verbs_at(exchange.path)
        if verbs:
            exchange.allowed = verbs
            raise InvalidArgumentError(
                "",
                f"{exchange.method} is not allowed here; use {', '.join(verbs)}",
                reason=METHOD_NOT_ALLOWED,
            )
        raise NotFoundError(f"there is no {exchange.path[:256]} here; see /openapi.json")

    async def _read(
        self, exchange: Exchange, binding: Binding, variables: Mapping[str, str], key: ApiKey
    ) -> tuple[Message, CallOptions]:
        body = b""
        try:
            body = await exchange.read_body(
                max_bytes=MAX_BODY_BYTES, timeout_seconds=self._body_timeout_seconds
            )
            message = read_message(
                binding.input_class, body=body, query=exchange.query, variables=variables, taken=binding.body
            )
            return message, read_options(exchange.headers, binding.response_class)
        except InvalidArgumentError as error:
            await self._gate.count(exchange, key)
            exchange.receipt = await self._ledger.invalid(
                self._gate.caller(key),
                kind="rpc",
                rpc=binding.rpc,
                error=error,
                body=body,
                request_id=exchange.request_id,
                trace_id=exchange.trace_id,
            )
            raise

    def _require_deployed(self, binding: Binding) -> None:
        if binding.part == GATEWAY:
            if binding.rpc not in self._local:
                raise UnimplementedError(f"{binding.rpc} is not served by this release")
        elif binding.part not in self._channels:
            raise UnavailableError(
                f"the {binding.part} service is not deployed here; set {binding.part}_address",
                reason=f"{binding.part.upper()}_NOT_DEPLOYED",
            )

    async def _serve_own(self, asked: Asked) -> None:
        exchange = asked.exchange
        response = await self._local[asked.binding.rpc](asked.message, asked.caller, exchange)
        await exchange.send_json(200, asked.options.shown(write_message(response)))

    async def _serve_call(self, asked: Asked) -> None:
        if asked.binding.action_class is not None:
            await self._serve_guarded(asked)
            return
        confine(asked.message, asked.caller)
        if asked.binding.is_streaming:
            await self._serve_stream(asked)
        else:
            await self._serve_unary(asked)

    async def _serve_unary(self, asked: Asked) -> None:
        exchange, message, caller = asked.exchange, asked.message, asked.caller
        entry = entry_of_payload(message)
        if entry is not None:
            # Asked by the gateway for itself: the log records the reading of the payload, not this look before it.
            require_own(await self._ask(GET_ENTRY, entry, None), caller)
        ask = partial(self._ask, asked.binding.rpc, caller=caller, within=asked.seconds)
        response = await ask(message)
        require_own(response, caller)
        try:
            await self._readings.require_fit(self._act(asked), message, response, ask)
        except RefusedError as refused:
            await _send_refusal(exchange, refused)
            return
        await exchange.send_json(200, asked.options.shown(write_message(response)))

    async def _ask(
        self, rpc: str, message: Message, caller: Caller | None, within: Within = _all_of
    ) -> Message:
        seconds = within(LONG_CALLS.get(rpc, UNARY_SECONDS))
        metadata = None if caller is None else principal_metadata(caller.principal)
        try:
            response: Message = await self._calls[rpc](message, timeout=seconds, metadata=metadata)
        except grpc.RpcError as error:
            raise from_error(error) from error
        return response

    async def _serve_stream(self, asked: Asked) -> None:
        exchange, rpc = asked.exchange, asked.binding.rpc
        framing = framing_for(exchange.headers.get("accept", ""))
        seconds = asked.seconds(LONG_CALLS.get(rpc, self._max_act_seconds))
        call = self._calls[rpc](
            asked.message, timeout=seconds, metadata=principal_metadata(asked.caller.principal)
        )
        try:
            if rpc in WATCHES:
                # Whoever watches hears that the watch stands, however long the first message takes.
                await call.initial_metadata()
                if not call.done():
                    await exchange.begin_stream(framing.content_type)
            async for response in call:
                if not exchange.has_begun:
                    await exchange.begin_stream(framing.content_type)
                await exchange.send_part(framing.write(asked.options.shown(write_message(response))))
        except grpc.RpcError as error:
            known = from_error(error)
            if not exchange.has_begun:
                raise known from error
            await exchange.send_part(framing.fail(known))
        finally:
            call.cancel()
        if not exchange.has_begun:
            await exchange.begin_stream(framing.content_type)
        await exchange.end_stream()

    async def _serve_guarded(self, asked: Asked) -> None:
        exchange, binding = asked.exchange, asked.binding
        act = self._act(asked)
        try:
            if isinstance(asked.message, tools_pb2.GenerateCodeAction):
                act = await self._with_prompt(act, asked.message, asked.caller)
            acted = await self._guarded.carry_out(act, binding, partial(self._call, asked))
        except RefusedError as refused:
            if exchange.reservation is not None:
                exchange.reservation.settle_refused(refused.stage)
            await _send_refusal(exchange, refused)
            return
        except ActFailedError as failed:
            exchange.served = failed.served
            raise
        exchange.receipt, exchange.served = acted.receipt, acted.served
        if exchange.reservation is not None:
            exchange.reservation.settle(acted.usage, model=acted.served.model)
        written = [asked.options.shown(value) for value in await _in_json(acted.responses)]
        if binding.is_streaming:
            framing = framing_for(exchange.headers.get("accept", ""))
            await exchange.send_bytes(200, framing.write_all(written), framing.content_type)
        else:
            await exchange.send_json(200, written[0])

    async def _with_prompt(self, act: Act, action: tools_pb2.GenerateCodeAction, caller: Caller) -> Act:
        try:
            return await self._prompts.added(act, action, partial(self._ask, caller=caller))
        except InvalidArgumentError as error:
            raise Recorded(error, await self._ledger.not_judged(act, "error", error.reason)) from error

    def _act(self, asked: Asked) -> Act:
        exchange, binding, message = asked.exchange, asked.binding, asked.message
        chat = message if isinstance(message, inference_pb2.ChatAction) else None
        return Act(
            rpc=binding.rpc,
            kind=binding.kind,
            action=pack(message),
            caller=asked.caller,
            request_id=exchange.request_id,
            trace_id=exchange.trace_id,
            started=exchange.started,
            model=getattr(message, "model", ""),
            request_text=_request_text(message),
            after_untrusted_content=(
                bool(getattr(message, "after_untrusted_content", False))
                if chat is None
                else has_untrusted_content(chat)
            ),
            must_log_first=True,
            # Only conversation may go on from the spool (design section 7).
            may_spool=binding.scope == options_pb2.SCOPE_CHAT and self._may_spool,
        )

    async def _call(self, asked: Asked, message: Message) -> AsyncIterator[Message]:
        seconds = asked.seconds(self._max_act_seconds)
        # From here on it may have run, whatever becomes of its answer; with an id of its own it is done once.
        asked.exchange.has_acted = asked.binding.part == TOOLS and not getattr(
            asked.message, "request_id", ""
        )
        call = self._calls[asked.binding.rpc](message, timeout=seconds)
        try:
            if asked.binding.is_streaming:
                async for response in call:
                    yield response
            else:
                yield await call
        finally:
            call.cancel()

    def _call_of(self, binding: Binding) -> Any:  # Any: a grpc.aio multi-callable of either kind
        channel = self._channels.get(binding.part)
        if channel is None:
            return None
        make = channel.unary_stream if binding.is_streaming else channel.unary_unary
        return make(
            binding.rpc,
            request_serializer=binding.request_class.SerializeToString,
            response_deserializer=binding.response_class.FromString,
        )


async def _send_refusal(exchange: Exchange, refused: RefusedError) -> None:
    exchange.receipt = refused.receipt
    body = google_body(refused)
    body["kala"] = {
        "decision": decision_json(refused.decision, refused.stage),
        "receipt": refused.receipt.to_json(),
    }
    await exchange.send_json(http_status(refused), body)


async def _in_json(messages: list[Message]) -> list[dict[str, Any]]:  # Any: JSON
    """Write messages as JSON; a million numbers take a second, in which others are served."""
    if sum(message.ByteSize() for message in messages) < LARGE_BYTES:
        return [write_message(message) for message in messages]
    return await asyncio.to_thread(lambda: [write_message(message) for message in messages])


def _request_text(message: Message) -> str:
    """Give what was asked, for the judges of the answer."""
    match message:
        case inference_pb2.ChatAction():
            return request_text(message)
        case inference_pb2.CompleteAction():
            return tail_of(message.prompt)
        case _:
            return ""
