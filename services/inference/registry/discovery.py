"""Finds model servers on their usual ports of this machine by what they answer, and passes over other KALA suites."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.inference.backend import Backend, BackendFailure, Identity, Kind
from services.inference.backends.http import ModelServerClient, Reply, TimeLimits
from services.inference.backends.llamacpp import is_llama_cpp_python, is_llama_server
from services.inference.backends.lmstudio import GREETING_PATH, is_greeting
from services.inference.backends.mlx import HEALTH_PATH, is_mlx
from services.inference.backends.ollama import VERSION_PATH, is_ollama
from services.inference.backends.openai_compatible import MODELS_PATH
from services.inference.base_url import BaseUrl, parse_base_url

PROBE_SECONDS: Final = 0.5
"""A server of this machine answers in milliseconds; the first answer of the suite waits for this."""

STRANGER_ROUNDS: Final = 6
"""How many rounds a port with something else on it is left alone, so that its log stays readable."""

KALA_HEADER_PREFIX: Final = "x-kala-"

LOOPBACK: Final = "127.0.0.1"

Factory = Callable[[Identity, BaseUrl], Backend]


@dataclass(slots=True)
class PortScanner:
    """Looks at ports of 127.0.0.1; kinds that are configured or switched off are not taken up."""

    ports: Sequence[int]
    kinds: frozenset[Kind]
    make: Factory
    probe_seconds: float = PROBE_SECONDS
    _left_alone: dict[int, int] = field(default_factory=dict)

    async def find(self, known: Sequence[Backend]) -> list[Backend]:
        """Give a backend for each port that answers as a server of a wanted kind; all ports at once."""
        taken = {parse_base_url(backend.identity.url).endpoint for backend in known if backend.identity.url}
        free = [port for port in self.ports if (LOOPBACK, port) not in taken and self._is_due(port)]
        kinds = await asyncio.gather(*(self._identify(port) for port in free))
        names = {backend.identity.name for backend in known}
        found: list[Backend] = []
        for port, kind in zip(free, kinds, strict=True):
            if kind is None or kind not in self.kinds:
                continue
            base = BaseUrl("http", LOOPBACK, port)
            identity = Identity(_free_name(kind.value, names), kind, url=str(base), is_discovered=True)
            names.add(identity.name)
            found.append(self.make(identity, base))
        return found

    def _is_due(self, port: int) -> bool:
        rounds = self._left_alone.get(port, 0)
        self._left_alone[port] = max(0, rounds - 1)
        return rounds == 0

    async def _identify(self, port: int) -> Kind | None:
        try:
            kind = await identify_at(BaseUrl("http", LOOPBACK, port), self.probe_seconds)
        except BackendFailure:
            return None
        if kind is None or kind not in self.kinds:
            self._left_alone[port] = STRANGER_ROUNDS
        return kind


def recogniser(wanted: Kind) -> Callable[[BaseUrl], Awaitable[bool]]:
    """Give what tells whether a server of this kind answers at an address; it raises BackendFailure when nobody does."""

    async def recognise(base: BaseUrl) -> bool:
        return await identify_at(base, PROBE_SECONDS) is wanted

    return recognise


async def identify_at(base: BaseUrl, within_seconds: float) -> Kind | None:
    """Say what answers at an address, without any key; raises BackendFailure when nothing does in time."""
    limit = within_seconds
    limits = TimeLimits(connect=limit, first_byte=limit, idle=limit, total=limit)
    client = ModelServerClient(base, limits=limits)
    try:
        async with asyncio.timeout(limit):
            return await identify(client)
    except TimeoutError:
        raise BackendFailure("LOOK_TIMED_OUT", f"did not answer within {limit:g} s") from None
    finally:
        await client.aclose()


async def identify(client: ModelServerClient) -> Kind | None:
    """Say what answers at a server's address, or None for a stranger; raises BackendFailure when nothing answers.

    Only content and the server's own name count: LM Studio answers 200 to every path.
    """
    models = await client.get(MODELS_PATH)
    if _is_kala(models):
        return None
    if is_llama_server(models) or is_llama_cpp_python(models):
        return Kind.LLAMACPP
    greeting, version, health = await asyncio.gather(
        client.get(GREETING_PATH), client.get(VERSION_PATH), client.get(HEALTH_PATH)
    )
    if any(_is_kala(reply) for reply in (greeting, version, health)):
        return None
    if is_greeting(greeting):
        return Kind.LMSTUDIO
    if is_ollama(version):
        return Kind.OLLAMA
    return Kind.MLX if is_mlx(health, models) else None


def _is_kala(reply: Reply) -> bool:
    return any(name.lower().startswith(KALA_HEADER_PREFIX) for name in reply.headers)


def _free_name(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name
