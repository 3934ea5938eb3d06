"""One pass around every RPC of all four kinds, composed once per method: the whole chain costs one extra frame.

Outermost first: telemetry, audit of denied and administrative calls, authentication, guard, errors.
A handler raises a KalaError; its caller gets the status of `services.common.status`.  Anything else is a bug: the log
gets the traceback and the caller gets INTERNAL "internal error".
"""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Never, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from kala.errors import (
    CancelledError,
    ClearanceError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    KalaError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from services.common.deadlines import remember_deadline, time_left
from services.common.peers import Context, Peer, peer_of
from services.common.status import abort, code_of, from_code
from services.common.tracing import TRACEPARENT_KEY, TraceContext, parse_traceparent

if TYPE_CHECKING:
    from services.common.telemetry import MethodTelemetry, Observation, RpcTelemetry

# What serves every RPC cannot know the message types of any: hence Any in the signatures below.
Message = Any
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

Guard = Callable[[Message, Peer, Context], Awaitable[None]]
"""Checks a request before its handler sees it and raises ClearanceError; runs in the handler's task."""

INTERNAL_MESSAGE: Final = "internal error"
"""All that a caller learns of a bug; the log line with the same trace id has the rest."""

UNKNOWN_PEER: Final = "unknown"


def _anyone(_method: str, _peer: Peer) -> bool:
    return True


def _unguarded(_method: str) -> Guard | None:
    return None


async def _unrecorded_denial(_method: str, _peer: Peer | None, _error: KalaError) -> None:
    return None


async def _unrecorded_act(_method: str, _peer: Peer, _ok: bool) -> None:  # noqa: FBT001 - called by position
    return None


@dataclass(frozen=True, slots=True)
class CallPolicy:
    """What a service decides about its RPCs beside `allowed_peers`; methods are `/package.Service/Method`."""

    may_call: Callable[[str, Peer], bool] = _anyone
    guard_for: Callable[[str], Guard | None] = _unguarded
    administrative: frozenset[str] = frozenset()
    on_denied: Callable[[str, Peer | None, KalaError], Awaitable[None]] = _unrecorded_denial
    on_administrative: Callable[[str, Peer, bool], Awaitable[None]] = _unrecorded_act


class CallGate:
    """Counts the calls that run, and once closed lets no more in."""

    __slots__ = ("_idle", "_is_closed", "_running")

    def __init__(self) -> None:
        self._running = 0
        self._is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Count a call in; refused calls count too, until `leave`."""
        self._running += 1
        self._idle.clear()

    def leave(self) -> None:
        """Count a call out."""
        self._running -= 1
        if self._running == 0:
            self._idle.set()

    def close(self) -> None:
        """Refuse every call from now on."""
        self._is_closed = True

    def check(self) -> None:
        """Raise UnavailableError, which a client may retry elsewhere, once closed."""
        if self._is_closed:
            raise UnavailableError("this server is stopping", reason="STOPPING")

    async def wait_until_idle(self) -> None:
        """Return when no call runs."""
        await self._idle.wait()


@dataclass(frozen=True, slots=True)
class CallPass:
    """Wraps the handlers of one server."""

    policy: CallPolicy
    allowed_peers: frozenset[str]
    telemetry: RpcTelemetry
    gate: CallGate

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Compose the pass around a handler of any of the four kinds."""
        passed = _MethodPass(
            method=method,
            policy=self.policy,
            allowed_peers=self.allowed_peers,
            telemetry=self.telemetry.of_method(method),
            gate=self.gate,
            guard=self.policy.guard_for(method),
            deserializer=handler.request_deserializer,
            is_administrative=method in self.policy.administrative,
        )
        # Without a deserializer gRPC hands over the bytes: they are parsed once their sender may call.
        codec = {"response_serializer": handler.response_serializer}
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(passed.around_unary(handler.unary_unary), **codec)
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                passed.around_unary(handler.stream_unary, streams=True), **codec
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(passed.around_stream(handler.unary_stream), **codec)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                passed.around_stream(handler.stream_stream, streams=True), **codec
            )
        raise InternalError(f"{method} has no handler")


@dataclass(slots=True)
class _Call:
    """What is known of one call so far."""

    context: Context
    observed: Observation
    peer: Peer | None = None


@dataclass(frozen=True, slots=True)
class _MethodPass:
    method: str
    policy: CallPolicy
    allowed_peers: frozenset[str]
    telemetry: MethodTelemetry
    gate: CallGate
    guard: Guard | None
    deserializer: Callable[[bytes], Message] | None
    is_administrative: bool

    def around_unary(self, behaviour: Callable[..., Any], *, streams: bool = False) -> Callable[..., Any]:
        async def pass_unary(request: Message, context: Context) -> Message:
            call = self._begin(context)
            try:
                admitted = await self._admit(call, request, streams=streams)
                response = await behaviour(admitted, context)
                await self._succeed(call)
            except BaseException as error:  # noqa: BLE001 - this is where every error ends
                await self._fail(call, error)
            self._end(call, grpc.StatusCode.OK.name)
            return response

        return pass_unary

    def around_stream(self, behaviour: Callable[..., Any], *, streams: bool = False) -> Callable[..., Any]:
        generates = inspect.isasyncgenfunction(behaviour)

        # A coroutine that writes, not a generator: a cancelled call then unwinds in this task, at once and in order.
        async def pass_stream(request: Message, context: Context) -> None:
            call = self._begin(context)
            try:
                admitted = await self._admit(call, request, streams=streams)
                result = behaviour(admitted, context)
                if generates or inspect.isasyncgen(result):
                    async with aclosing(result) as items:
                        async for item in items:
                            await context.write(item)
                else:
                    await result
                await self._succeed(call)
            except BaseException as error:  # noqa: BLE001 - this is where every error ends
                await self._fail(call, error)
            self._end(call, grpc.StatusCode.OK.name)

        return pass_stream

    def _begin(self, context: Context) -> _Call:
        self.gate.enter()
        call = _Call(context, self.telemetry.begin(_parent_of(context)))
        remember_deadline(context)
        return call

    async def _admit(self, call: _Call, request: Message, *, streams: bool) -> Message:
        self.gate.check()
        call.peer = peer = peer_of(call.context)
        if peer.part not in self.allowed_peers or not self.policy.may_call(self.method, peer):
            raise PermissionDeniedError(f"{peer} may not call {self.method}", reason="PEER_NOT_ALLOWED")
        if not streams:
            message = self._parsed(request)
            if self.guard is not None:
                await self.guard(message, peer, call.context)
            return message
        messages = self._all_parsed(request)
        if self.guard is None:
            return messages
        try:
            first = await anext(messages)
        except StopAsyncIteration:
            raise ClearanceError("the stream ended before the message that carries its clearance") from None
        await self.guard(first, peer, call.context)
        return _rejoined(first, messages)

    def _parsed(self, data: bytes) -> Message:
        if self.deserializer is None:
            return data
        try:
            return self.deserializer(data)
        except DecodeError as error:
            raise InvalidArgumentError("", f"the request is not a message of {self.method}") from error

    async def _all_parsed(self, stream: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        async for data in stream:
            yield self._parsed(data)

    async def _succeed(self, call: _Call) -> None:
        if not self.is_administrative or call.peer is None:
            return
        try:
            await self.policy.on_administrative(self.method, call.peer, True)
        except Exception as error:
            self._note_unrecorded(error)
            # No audit append means no answer, even though the act is done: the caller must not build on it.
            raise UnavailableError(
                "the call could not be recorded in the audit log", reason="AUDIT_UNAVAILABLE"
            ) from error

    async def _fail(self, call: _Call, error: BaseException) -> Never:
        """Judge, record and answer a call that raised; always raises."""
        outcome = self._outcome_of(call, error)
        try:
            await self._record_failure(call, outcome)
        finally:
            self._end(call, code_of(outcome).name, outcome.reason)
        if isinstance(error, grpc.aio.AbortError) or _ends_by_itself(error):
            raise error
        await abort(call.context, outcome)

    def _outcome_of(self, call: _Call, error: BaseException) -> KalaError:
        if isinstance(error, KalaError):
            return error
        if isinstance(error, grpc.aio.AbortError):
            return from_code(call.context.code(), call.context.details() or "")
        if _ends_by_itself(error):
            left = time_left(call.context)
            is_late = left is not None and left <= 0
            return (
                DeadlineExceededError("the deadline passed")
                if is_late
                else CancelledError("the caller went away")
            )
        if isinstance(error, NotImplementedError):
            # What generated base classes raise for the RPCs that a servicer does not have.
            return UnimplementedError("this release does not serve the call")
        self.telemetry.log.error(
            "unexpected exception",
            trace_id=call.observed.span.context.trace_id,
            exception=_traceback_of(error),
        )
        return InternalError(INTERNAL_MESSAGE)

    async def _record_failure(self, call: _Call, outcome: KalaError) -> None:
        try:
            if isinstance(outcome, PermissionDeniedError | UnauthenticatedError):
                await self.policy.on_denied(self.method, call.peer, outcome)
            elif self.is_administrative and call.peer is not None:
                await self.policy.on_administrative(self.method, call.peer, False)
        except Exception as error:  # noqa: BLE001 - logged, and the call fails anyway
            self._note_unrecorded(error)

    def _note_unrecorded(self, error: Exception) -> None:
        self.telemetry.audit_failures.inc()
        self.telemetry.log.error("audit record lost", exception=_traceback_of(error))

    def _end(self, call: _Call, code: str, reason: str = "") -> None:
        peer = UNKNOWN_PEER if call.peer is None else call.peer.name
        self.telemetry.end(call.observed, code=code, peer=peer, reason=reason)
        self.gate.leave()


def _ends_by_itself(error: BaseException) -> bool:
    """Tell a call that gRPC or the process ends from one that a bug ended: a stray CancelledError is a bug."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return not isinstance(error, Exception)


def _traceback_of(error: BaseException) -> str:
    """Format here and plainly: structlog's default would print local variables, which hold prompts and keys."""
    return "".join(traceback.format_exception(error))


def _parent_of(context: Context) -> TraceContext | None:
    for key, value in context.invocation_metadata() or ():
        if key == TRACEPARENT_KEY and isinstance(value, str):
            return parse_traceparent(value)
    return None


async def _rejoined(first: Message, rest: AsyncIterator[Message]) -> AsyncIterator[Message]:
    yield first
    async for message in rest:
        yield message
