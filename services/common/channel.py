"""The one way to call another part: balanced, health-checked, retried only where that is safe, always with a deadline.

A channel made here adds to every call the caller's name, the trace it belongs to and a deadline, without the cost of
grpc.aio's client interceptors (which run every call in a task of its own).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Final, Self

import grpc

from kala.errors import FailedPreconditionError, InvalidArgumentError
from services.common.addresses import UNIX_PREFIX, parse_address
from services.common.deadlines import bounded
from services.common.grpc_options import Option, keepalive_options, size_options
from services.common.peers import PEER_METADATA_KEY
from services.common.settings import DEFAULT_MAX_MESSAGE_BYTES
from services.common.tracing import TRACEPARENT_KEY, current_trace

if TYPE_CHECKING:
    from types import TracebackType

    from services.common.tls import TlsFiles

DEFAULT_TIMEOUT_SECONDS: Final = 10.0
"""For a call that names none: longer than any call but a generation, a tool run or a watch should take."""

RETRY_ATTEMPTS: Final = 4
"""The first try and three more: enough to meet another of three replicas while one goes away."""

_RETRY_POLICY: Final = {
    "maxAttempts": RETRY_ATTEMPTS,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}

_RETRY_THROTTLING: Final = {"maxTokens": 100, "tokenRatio": 0.1}
"""Retries stop while more than half of 100 tokens are spent: an outage must not be multiplied by four."""

MIN_RECONNECT_MILLIS: Final = 100
MAX_RECONNECT_MILLIS: Final = 2_000
"""A part that was restarted is found again within two seconds; gRPC's own limit is two minutes."""

MIN_RESOLUTION_MILLIS: Final = 1_000
"""New replicas are found this soon after a connection ends; with gRPC's 30 s it took 26 s when measured."""

_RESOLVED_SCHEMES: Final = ("dns:", "ipv4:", "ipv6:")
"""Targets that list or resolve to several servers, passed to gRPC as they are."""

Timeout = float | None
Pairs = Iterable[tuple[str, str | bytes]]


def open_channel(
    address: str,
    *,
    peer_name: str,
    tls: TlsFiles | None = None,
    idempotent: Collection[str] = (),
    default_timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    server_name: str | None = None,
) -> grpc.aio.Channel:
    """Open a channel to `unix:/path`, `host:port` or a `dns:`/`ipv4:` target; connects on the first call.

    `idempotent` lists the methods (`/package.Service/Method`) that may be tried again after UNAVAILABLE.
    A call's own `timeout=` replaces `default_timeout_seconds`; the RPC being served shortens either.
    `server_name` is the name that the server's certificate must carry when it is not the host in `address`.
    Raises FailedPreconditionError for an address beyond this machine without TLS files: nothing goes there in the clear.
    """
    if default_timeout_seconds <= 0:
        raise InvalidArgumentError("default_timeout_seconds", "must be above zero: every call has a deadline")
    if not address.startswith(_RESOLVED_SCHEMES):
        address = str(parse_address(address))
    if tls is None and not _is_local(address):
        raise FailedPreconditionError(f"{address} is not on this machine, so calling it needs TLS files")
    options = _options(idempotent, max_message_bytes, server_name, is_unix=address.startswith(UNIX_PREFIX))
    if tls is None:
        inner = grpc.aio.insecure_channel(address, options=options)
    else:
        inner = grpc.aio.secure_channel(address, tls.channel_credentials(), options=options)
    return _BoundedChannel(inner, peer_name, default_timeout_seconds)


def _is_local(target: str) -> bool:
    if target.startswith(_RESOLVED_SCHEMES):
        # dns:[//authority/]host:port, ipv4:address:port,address:port
        servers = target.partition(":")[2].rpartition("/")[2].split(",")
        return all(parse_address(server).is_local for server in servers)
    return parse_address(target).is_local


def service_config(idempotent: Collection[str]) -> str:
    """Write the gRPC service config as JSON: round robin, health checks, and retries of the listed methods."""
    config: dict[str, object] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
    }
    if idempotent:
        config["methodConfig"] = [
            {"name": [_method_name(method) for method in sorted(idempotent)], "retryPolicy": _RETRY_POLICY}
        ]
        config["retryThrottling"] = _RETRY_THROTTLING
    return json.dumps(config)


def _method_name(method: str) -> dict[str, str]:
    service, _, name = method.removeprefix("/").partition("/")
    if not service or not name:
        raise InvalidArgumentError(
            "idempotent", f"must hold names like /package.Service/Method, not {method!r}"
        )
    return {"service": service, "method": name}


def _options(
    idempotent: Collection[str], max_message_bytes: int, server_name: str | None, *, is_unix: bool
) -> list[Option]:
    options: list[Option] = [
        *size_options(max_message_bytes),
        ("grpc.service_config", service_config(idempotent)),
        # Only this process's config counts, and no call between parts ever goes through a proxy.
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_http_proxy", 0),
        # A channel's back-off is its own: another channel's failures do not delay it.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", MIN_RECONNECT_MILLIS),
        ("grpc.min_reconnect_backoff_ms", MIN_RECONNECT_MILLIS),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_MILLIS),
        ("grpc.dns_min_time_between_resolutions_ms", MIN_RESOLUTION_MILLIS),
    ]
    if not is_unix:
        options += keepalive_options()
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


class _BoundedCall:
    """A stub's method that never goes out without a name, a trace and a deadline."""

    __slots__ = ("_call", "_peer", "_timeout_seconds")

    def __init__(
        self, call: Any, peer_name: str, timeout_seconds: float
    ) -> None:  # Any: one of four call kinds
        self._call = call
        self._peer = (PEER_METADATA_KEY, peer_name)
        self._timeout_seconds = timeout_seconds

    def __call__(
        self,
        request: Any = None,  # Any: a message, an iterator of messages, or None to write them one by one
        *,
        timeout: Timeout = None,
        metadata: Pairs | None = None,
        **options: Any,  # Any: credentials, wait_for_ready, compression
    ) -> Any:  # Any: the call object of the kind
        pairs = [self._peer, *(metadata or ())]
        trace = current_trace()
        if trace is not None:
            pairs.append((TRACEPARENT_KEY, trace.traceparent))
        seconds = bounded(self._timeout_seconds if timeout is None else timeout)
        return self._call(request, timeout=seconds, metadata=pairs, **options)


class _BoundedChannel(grpc.aio.Channel):
    """A channel whose every call is a `_BoundedCall`."""

    def __init__(self, inner: grpc.aio.Channel, peer_name: str, default_timeout_seconds: float) -> None:
        self._inner = inner
        self._peer_name = peer_name
        self._default_timeout_seconds = default_timeout_seconds

    # Any in the four: generated stubs pass their own message types and private keywords through.
    def unary_unary(self, *args: Any, **options: Any) -> Any:
        return self._bound(self._inner.unary_unary(*args, **options))

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        return self._bound(self._inner.unary_stream(*args, **options))

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        return self._bound(self._inner.stream_unary(*args, **options))

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        return self._bound(self._inner.stream_stream(*args, **options))

    def _bound(self, call: object) -> _BoundedCall:
        return _BoundedCall(call, self._peer_name, self._default_timeout_seconds)

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
