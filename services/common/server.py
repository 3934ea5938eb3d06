"""The one way to serve gRPC: health, reflection, the pass around every call, and an orderly end.

The end keeps an order: health says NOT_SERVING, balancers get time to notice, new calls are refused while running ones
go on for `drain_seconds`, then whatever the caller opened before is closed by its own `async with`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kala.errors import FailedPreconditionError, InternalError
from services.common import unix_socket
from services.common.addresses import TcpAddress, UnixAddress, parse_address
from services.common.clearance import guarded_methods
from services.common.event_loop import wait_for_stop_signal
from services.common.grpc_options import MIN_PING_INTERVAL_MILLIS, Option, keepalive_options, size_options
from services.common.health import HealthServicer
from services.common.interceptors import CallGate, CallPass, CallPolicy, Handler
from services.common.telemetry import RpcTelemetry

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.common.settings import GrpcServerSettings

Registration: TypeAlias = "Callable[[grpc.aio.Server], None]"
"""Adds one servicer: `partial(add_EthicsServiceServicer_to_server, servicer)`."""

HEALTH_SERVICE: Final = "grpc.health.v1.Health"

FAREWELL_SECONDS: Final = 0.1
"""How long the last word of a health Watch may take to go out."""

CANCEL_WAIT_SECONDS: Final = 5.0
"""How long cancelled handlers may take to unwind after the drain."""


@dataclass(frozen=True, slots=True)
class ServerHandle:
    """A server that answers; health says NOT_SERVING until `set_serving`."""

    address: str
    """Where a client of this machine dials: `unix:/path` or `host:port` with the port really bound."""

    port: int | None
    """The TCP port, or None for a unix socket."""

    health: HealthServicer

    async def set_serving(self, *, withheld: Collection[str] = ()) -> None:
        """Tell clients and probes to send calls; a probe for one of the `withheld` services hears that it is not ready."""
        await self.health.set(is_serving=True, withheld=withheld)

    async def set_not_serving(self) -> None:
        """Tell clients and probes to send no calls, while still answering those that come."""
        await self.health.set(is_serving=False)

    async def run_until_signalled(self) -> None:
        """Return at SIGTERM or SIGINT; leaving `serving` then drains."""
        await wait_for_stop_signal()


@asynccontextmanager
async def serving(
    settings: GrpcServerSettings,
    registrations: Sequence[Registration],
    *,
    policy: CallPolicy | None = None,
    telemetry: RpcTelemetry | None = None,
) -> AsyncIterator[ServerHandle]:
    """Serve the registered services at `settings.address` until the context is left, then drain.

    Raises FailedPreconditionError when the address cannot be used, InternalError when a guarded RPC has no guard.
    """
    gate = CallGate()
    routes = _Routes(
        CallPass(
            policy=CallPolicy() if policy is None else policy,
            allowed_peers=frozenset(settings.allowed_peers),
            telemetry=RpcTelemetry() if telemetry is None else telemetry,
            gate=gate,
        )
    )
    for register in registrations:
        # A registration only calls the two methods that _Routes has.
        register(cast("grpc.aio.Server", routes))
    _require_guards(routes)
    server = grpc.aio.server(handlers=[routes], options=_options(settings))
    health = HealthServicer(routes.services)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection([*routes.services, HEALTH_SERVICE, reflection.SERVICE_NAME], server)
    address, port = _bind(server, settings)
    await server.start()
    try:
        yield ServerHandle(address, port, health)
    finally:
        await _drain(server, health, gate, settings)


def _require_guards(routes: _Routes) -> None:
    """Refuse to serve an RPC that the contracts guard without its guard: a forgotten contract must not open a door."""
    pool = descriptor_pool.Default()
    for name in routes.services:
        try:
            file = pool.FindServiceByName(name).file
        except KeyError:
            continue  # no service of the contracts
        for method in guarded_methods([file]):
            if method.startswith(f"/{name}/") and routes.call_pass.policy.guard_for(method) is None:
                raise InternalError(f"{method} needs a clearance and this server would not ask for it")


async def _drain(
    server: grpc.aio.Server, health: HealthServicer, gate: CallGate, settings: GrpcServerSettings
) -> None:
    try:
        await health.set(is_serving=False)
        await asyncio.sleep(settings.balancer_wait_seconds)
        # grpc.aio answers CANCELLED, which no client may retry, to a call that meets its stop(); the gate answers
        # UNAVAILABLE, and stop() comes when clients have heard that they should not call.
        gate.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_seconds):
                await gate.wait_until_idle()
        await health.close()
        await server.stop(FAREWELL_SECONDS)
    finally:
        # Also when the drain itself is cut short.  stop() returns when calls are cancelled, not when their handlers
        # have unwound, so wait for that too.
        await server.stop(None)
        await server.wait_for_termination(CANCEL_WAIT_SECONDS)


def _bind(server: grpc.aio.Server, settings: GrpcServerSettings) -> tuple[str, int | None]:
    address = parse_address(settings.address)
    if isinstance(address, UnixAddress):
        unix_socket.prepare(address.path)
    elif settings.tls is None and not address.is_local:
        raise FailedPreconditionError(f"{address} can be reached from other machines and has no TLS files")
    try:
        if settings.tls is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), settings.tls.server_credentials())
    except RuntimeError as error:
        raise FailedPreconditionError(f"{address}: cannot listen here; is the address taken?") from error
    if isinstance(address, UnixAddress):
        unix_socket.protect(address.path)
        return str(address), None
    return str(TcpAddress(address.host, port)), port


def _options(settings: GrpcServerSettings) -> list[Option]:
    # Without so_reuseport=0 a second process would share the port in silence.
    options = [*size_options(settings.max_message_bytes), ("grpc.so_reuseport", 0)]
    if isinstance(parse_address(settings.address), TcpAddress):
        options += [
            *keepalive_options(),
            ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MILLIS),
            ("grpc.max_connection_age_ms", round(settings.max_connection_age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", round(settings.max_connection_age_grace_seconds * 1000)),
        ]
    return options


class _Routes(grpc.GenericRpcHandler):
    """Finds the wrapped handler of a method; wraps each on its first call and keeps it.

    Takes registrations in the place of a server, so that no servicer can be served unwrapped.
    """

    def __init__(self, call_pass: CallPass) -> None:
        self.services: list[str] = []
        self.call_pass = call_pass
        self._inner: list[grpc.GenericRpcHandler] = []
        self._wrapped: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Take the handlers of one service."""
        for handler in handlers:
            self._inner.append(handler)
            if isinstance(handler, grpc.ServiceRpcHandler):
                self.services.append(handler.service_name())

    def add_registered_method_handlers(self, service_name: str, handlers: Mapping[str, Handler]) -> None:
        """Ignore what generated code registers a second time under fixed names."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Find a method's wrapped handler; None means UNIMPLEMENTED."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            found = (inner.service(handler_call_details) for inner in self._inner)
            handler = next((handler for handler in found if handler is not None), None)
            if handler is None:
                return None
            wrapped = self._wrapped[method] = self.call_pass.wrap(method, handler)
        return wrapped
