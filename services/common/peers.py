"""Who is on the other end of a connection, and what the parts are called.

A TLS connection is named by its certificate.  A unix socket or loopback connection has no certificate: the operating
system has already decided who may connect, so the name that the client claims is taken, marked `local:` so that nobody
mistakes it for a proven one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kala.errors import UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import grpc

# grpc leaves the message types of a context open, and what serves every RPC cannot know them either.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

PEER_METADATA_KEY: Final = "kala-peer"
"""Request metadata in which a client on this machine says which part it is; ignored on TLS connections."""

LOCAL_PREFIX: Final = "local:"
"""Marks a claimed name; no certificate name may contain a colon, so the two kinds never meet."""

GATEWAY: Final = "gateway"
CONSOLE: Final = "console"
ETHICS: Final = "ethics"
INFERENCE: Final = "inference"
TOOLS: Final = "tools"
AUDIT: Final = "audit"
TRAINER: Final = "trainer"
CLI: Final = "cli"
WITNESS: Final = "witness"

PART_NAMES: Final = (GATEWAY, CONSOLE, ETHICS, INFERENCE, TOOLS, AUDIT, TRAINER)
"""The parts of a suite in the order of their metrics ports."""

GRPC_PORTS: Final = {ETHICS: 50051, INFERENCE: 50052, TOOLS: 50053, AUDIT: 50054, TRAINER: 50055}

METRICS_PORTS: Final = {part: port for port, part in enumerate(PART_NAMES, start=9461)}

_MAX_NAME_LENGTH: Final = 253
"""The longest DNS name (RFC 1035 section 2.3.4); also bounds what a claimed name can put into a log."""

_LOOPBACK_PEERS: Final = ("unix:", "ipv4:127.", "ipv6:[::1]:", "ipv6:%5B::1%5D:")


@dataclass(frozen=True, slots=True)
class Peer:
    """A caller: `gateway` when a certificate proved it, `local:gateway` when it was only claimed on this machine."""

    name: str

    @property
    def is_local(self) -> bool:
        """Tell whether the name was claimed over a socket of this machine instead of proven."""
        return self.name.startswith(LOCAL_PREFIX)

    @property
    def part(self) -> str:
        """The bare name that allow-lists hold."""
        return self.name.removeprefix(LOCAL_PREFIX)

    def __str__(self) -> str:
        return self.name


def peer_of(context: Context) -> Peer:
    """Name the caller of an RPC, or raise UnauthenticatedError when the connection proves and claims nothing."""
    return identify(
        transport=context.peer(),
        auth=context.auth_context(),
        metadata=context.invocation_metadata() or (),
    )


def identify(
    *, transport: str, auth: Mapping[str, Iterable[bytes]], metadata: Iterable[tuple[str, str | bytes]]
) -> Peer:
    """Name a caller from what gRPC knows of its connection; the pure part of `peer_of`."""
    if _first(auth, "transport_security_type") == "ssl":
        return Peer(_checked(_first(auth, "peer_dns") or _first(auth, "x509_common_name"), "certificate"))
    if not transport.startswith(_LOOPBACK_PEERS):
        raise UnauthenticatedError("connections from other machines need TLS with a client certificate")
    claimed = next((value for key, value in metadata if key == PEER_METADATA_KEY), "")
    return Peer(LOCAL_PREFIX + _checked(claimed, f"metadata {PEER_METADATA_KEY}"))


def _first(auth: Mapping[str, Iterable[bytes]], key: str) -> str:
    value = next(iter(auth.get(key, ())), b"")
    return value.decode("utf-8", "replace")


def _checked(name: str | bytes, source: str) -> str:
    if not isinstance(name, str) or not name:
        raise UnauthenticatedError(f"the caller has no name: its {source} gives none")
    if (
        len(name) > _MAX_NAME_LENGTH
        or not name.isascii()
        or not name.isprintable()
        or ":" in name
        or " " in name
    ):
        raise UnauthenticatedError(f"the caller's name in its {source} is not a host name")
    return name
