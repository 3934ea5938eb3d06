"""Asks tools and the trainer to erase a person: every replica of tools, because each has workspaces of its own."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kala.audit.v1 import audit_pb2
from kala.errors import UnavailableError
from kala.tools.v1 import tools_pb2
from kala.tools.v1.tools_pb2_grpc import ToolsServiceStub
from kala.trainer.v1 import trainer_pb2
from kala.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from services.common.addresses import TcpAddress, parse_address
from services.common.channel import open_channel
from services.common.peers import GATEWAY

if TYPE_CHECKING:
    import grpc

    from gateway.erasure import Eraser
    from services.common.tls import TlsFiles

TOOLS_SECONDS: Final = 60.0
TRAINER_SECONDS: Final = 900.0
"""The trainer writes every dataset again that has rows of the person."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives every address behind a host's name."""


@dataclass(frozen=True, slots=True)
class Server:
    """One replica: where it is, and what its certificate says; no name where the address says it."""

    address: str
    name: str | None = None


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system for every address of a host."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnavailableError(f"{host} has no address: {error.strerror}") from error
    return sorted({str(address[0]) for *_, address in found})


async def replicas_of(target: str, resolve: Resolve = resolve) -> list[Server]:
    """List every server that a channel to this target spreads its calls over."""
    if target.startswith(("ipv4:", "ipv6:")):
        scheme, _, servers = target.partition(":")
        return [Server(f"{scheme}:{server}") for server in servers.split(",")]
    text = target.rpartition("/")[2].removeprefix("dns:") if target.startswith("dns:") else target
    address = parse_address(text)
    if not isinstance(address, TcpAddress):
        return [Server(target)]
    found = await resolve(address.host, address.port)
    return [Server(str(TcpAddress(each, address.port)), name=address.host) for each in found]


def tools_eraser(target: str, tls: TlsFiles | None) -> Eraser:
    """Erases workspaces, runs and approvals on every replica; one that cannot be asked fails all."""

    async def erase(subject: str, tenant: str) -> Sequence[audit_pb2.ErasedStore]:
        request = tools_pb2.EraseSubjectRequest(subject=subject, tenant=tenant)
        counts: Counter[str] = Counter(workspaces=0, runs=0, approvals=0)
        for server in await replicas_of(target):
            async with channel_to(server, tls) as channel:
                erased = await ToolsServiceStub(channel).EraseSubject(request, timeout=TOOLS_SECONDS)
            counts.update(workspaces=erased.workspaces, runs=erased.runs, approvals=erased.approvals)
        return [audit_pb2.ErasedStore(store=f"tools.{name}", items=count) for name, count in counts.items()]

    return erase


def trainer_eraser(channel: grpc.aio.Channel) -> Eraser:
    """Erases rows of datasets and ends the jobs on them; adapters trained on them are named, not erased."""

    async def erase(subject: str, tenant: str) -> Sequence[audit_pb2.ErasedStore]:
        request = trainer_pb2.EraseSubjectRequest(subject=subject, tenant=tenant)
        erased = await TrainerServiceStub(channel).EraseSubject(request, timeout=TRAINER_SECONDS)
        return [
            audit_pb2.ErasedStore(store="trainer.datasets", items=len(erased.datasets)),
            audit_pb2.ErasedStore(store="trainer.rows", items=erased.rows),
            audit_pb2.ErasedStore(store="trainer.jobs", items=len(erased.jobs)),
            audit_pb2.ErasedStore(store="trainer.adapters", remaining=erased.adapters),
        ]

    return erase


@asynccontextmanager
async def channel_to(server: Server, tls: TlsFiles | None) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to one replica."""
    name = server.name if tls is not None else None
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(
            open_channel(server.address, peer_name=GATEWAY, tls=tls, server_name=name)
        )
