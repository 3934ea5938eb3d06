"""gRPC options that both ends of a connection must agree on."""

from __future__ import annotations

from typing import Final

MAX_METADATA_BYTES: Final = 32 * 1024
"""Trailers carry an error's message percent-encoded and once more in the details; gRPC's own limit is 8 KiB."""

KEEPALIVE_MILLIS: Final = 30_000
"""How often an idle TCP connection is probed: under the 60 s after which common firewalls forget it."""

KEEPALIVE_TIMEOUT_MILLIS: Final = 10_000
"""How long a probe may go unanswered before the connection counts as dead."""

MIN_PING_INTERVAL_MILLIS: Final = 10_000
"""How often a server lets clients probe: under their interval, or it ends the connection for too many pings."""

Option = tuple[str, int | str]


def size_options(max_message_bytes: int) -> list[Option]:
    """Limit messages, both ways, and leave room for errors with details."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ]


def keepalive_options() -> list[Option]:
    """Notice a dead TCP connection even when nothing is being sent; unix sockets need no such thing."""
    return [
        ("grpc.keepalive_time_ms", KEEPALIVE_MILLIS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MILLIS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
