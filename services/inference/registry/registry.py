"""Keeps what was last seen of every backend, looks again in time, and takes up servers that were started later."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import structlog

from services.inference.backend import (
    Backend,
    BackendFailure,
    ContextLengths,
    Kind,
    LoadState,
    ModelInfo,
    State,
    Status,
)
from services.inference.protection.guard import Guard, Limits
from services.inference.router import DEFAULT_CHAIN, View, chain_order

log: Final = structlog.get_logger()

UNSEEN: Final = Status(State.OFF, "was not looked at yet", reason="NOT_SEEN")

RECHECK_SECONDS: Final = 0.5
"""A request that finds nothing makes every backend be looked at again, but not more often than this."""

FIRST_ROUND_SECONDS: Final = 1.0
"""Servers of this machine and the search for them take half of it; only an unreachable host takes longer."""

TELLING_REASONS: Final = frozenset(
    {
        "CONNECTION_REFUSED",
        "CONNECT_TIMED_OUT",
        "UNREACHABLE",
        "DNS_FAILED",
        "MODEL_NOT_FOUND",
        "NO_MODEL_LOADED",
        "WRONG_MODEL",
    }
)
"""Failures of a request after which the last look is known to be out of date."""


class Finder(Protocol):
    """Finds servers that nobody configured."""

    async def find(self, known: Sequence[Backend]) -> list[Backend]:
        """Give a backend for every server that is not yet known; bounded in time."""
        ...


@dataclass(slots=True)
class Entry:
    """One backend, and what was last seen of it; times are of the registry's clocks."""

    backend: Backend
    status: Status = UNSEEN
    checked_at: float | None = None
    """Unix seconds."""
    latency_seconds: float | None = None
    guard: Guard = field(default_factory=Guard)

    @property
    def view(self) -> View:
        return View(self.backend.identity, self.status)


@dataclass(slots=True)
class Registry:
    """All backends of this process; `run` keeps it fresh."""

    configured: Sequence[Backend]
    finder: Finder | None = None
    refresh_seconds: float = 10.0
    chain: Sequence[Kind] = DEFAULT_CHAIN
    limits: Limits = field(default_factory=Limits)
    wall_clock: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    started: frozenset[str] = frozenset()
    """Names of servers that this process starts itself."""
    _entries: dict[str, Entry] = field(default_factory=dict)
    _retired: list[Backend] = field(default_factory=list)
    _first_round: asyncio.Event = field(default_factory=asyncio.Event)
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _round: asyncio.Task[None] | None = None
    _last_round_at: float = -1e9

    def __post_init__(self) -> None:
        for backend in self.configured:
            self._entries[backend.identity.name] = self._entry(backend)

    def entries(self) -> list[Entry]:
        """Give every backend in chain order."""
        # A list, because the thread that serves /metrics asks too.
        views = [entry.view for entry in list(self._entries.values())]
        order = [view.name for view in chain_order(views, self.chain)]
        return [self._entries[name] for name in order]

    def views(self) -> list[View]:
        """Give every backend as the router sees it."""
        return [entry.view for entry in self._entries.values()]

    def get(self, name: str) -> Entry | None:
        """Give one backend by its bare name."""
        return self._entries.get(name)

    async def ready(self) -> None:
        """Return once every backend was looked at, but do not let one that hangs hold up the first request."""
        if self._first_round.is_set():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ROUND_SECONDS):
                await self._first_round.wait()

    async def run(self) -> None:
        """Look at everything every `refresh_seconds`, or at once after `report`; ends when cancelled."""
        while True:
            await self.refresh()
            try:
                async with asyncio.timeout(self.refresh_seconds):
                    await self._hurry.wait()
                await asyncio.sleep(RECHECK_SECONDS)
            except TimeoutError:
                pass
            self._hurry.clear()

    async def recheck(self) -> bool:
        """Look again because a request found nothing; False when that was done a moment ago."""
        if self._round is None and self.clock() - self._last_round_at < RECHECK_SECONDS:
            return False
        await self.refresh()
        return True

    async def refresh(self) -> None:
        """Look at every backend and for new ones; callers that come meanwhile share the same round."""
        if self._round is None:
            self._round = asyncio.create_task(self._look_everywhere())
            self._round.add_done_callback(self._end_round)
        await asyncio.shield(self._round)

    async def look(self, entry: Entry) -> Status:
        """Look at one backend now."""
        started = self.clock()
        seen = _within_contexts(await entry.backend.look(), entry.backend.identity.preferences.contexts)
        status = _remembering(seen, entry.status)
        if status.state is not entry.status.state:
            log.info(
                "backend_state",
                backend=entry.backend.identity.name,
                state=status.state.name,
                reason=status.reason,
            )
        entry.status = status
        entry.latency_seconds = self.clock() - started
        entry.checked_at = self.wall_clock()
        entry.guard.looked(answers=entry.view.is_answering)
        return status

    def report(self, entry: Entry, failure: BackendFailure) -> None:
        """Take note of a request's failure: a refused connection means OFF from now on, not from the next round on."""
        if failure.reason not in TELLING_REASONS:
            return
        if failure.reason in {"CONNECTION_REFUSED", "UNREACHABLE", "DNS_FAILED"}:
            entry.status = Status(State.OFF, failure.detail, entry.status.models, reason=failure.reason)
        self._hurry.set()

    def replace_servers(
        self, servers: Sequence[Backend], *, finder: Finder | None, chain: Sequence[Kind]
    ) -> None:
        """Take these model servers in place of those that have an address; what is as before stays, with what was seen of it.

        One that is left out serves what it has begun, and is closed with the process.
        """
        wanted = {server.identity.name: server for server in servers}
        for name, entry in list(self._entries.items()):
            if not entry.backend.identity.url or entry.backend.identity.is_remote or name in self.started:
                continue
            server = wanted.get(name)
            if server is not None and server.identity == entry.backend.identity:
                self._retired.append(wanted.pop(name))
            else:
                self._retired.append(self._entries.pop(name).backend)
        for name, server in wanted.items():
            self._entries[name] = self._entry(server)
        self.finder, self.chain = finder, chain
        self.look_soon()

    def look_soon(self) -> None:
        """Look at everything soon, because a request has changed something: it made a backend load a model."""
        self._hurry.set()

    async def aclose(self) -> None:
        """Close every backend."""
        if self._round is not None:
            self._round.cancel()
            await asyncio.gather(self._round, return_exceptions=True)
        async with AsyncExitStack() as stack:
            for backend in (*self._retired, *(entry.backend for entry in self._entries.values())):
                stack.push_async_callback(backend.aclose)

    def _entry(self, backend: Backend) -> Entry:
        return Entry(backend, guard=Guard(self.limits))

    def _end_round(self, task: asyncio.Task[None]) -> None:
        self._round = None
        self._last_round_at = self.clock()
        if not task.cancelled() and task.exception() is None:
            self._first_round.set()

    async def _look_everywhere(self) -> None:
        looks = [self.look(entry) for entry in self._entries.values()]
        results = await asyncio.gather(self._look_for_new_ones(), *looks, return_exceptions=True)
        for result in results:
            # A backend's faults are statuses; this is a bug, and it must not end the looking at all others.
            if isinstance(result, Exception):
                log.error("look_failed", exc_info=result)

    async def _look_for_new_ones(self) -> None:
        if self.finder is None:
            return
        known = [entry.backend for entry in self._entries.values()]
        for backend in await self.finder.find(known):
            entry = self._entry(backend)
            self._entries[backend.identity.name] = entry
            log.info("backend_found", backend=backend.identity.name, url=backend.identity.url)
            await self.look(entry)


def _within_contexts(seen: Status, contexts: ContextLengths) -> Status:
    """Count on no more context than is configured, also where a server does not tell what it loaded a model with."""
    if contexts == _ANY_CONTEXT:
        return seen
    return replace(seen, models=tuple(_within(model, contexts.of(model.id)) for model in seen.models))


def _within(model: ModelInfo, most: int | None) -> ModelInfo:
    if most is None or model.state is LoadState.NOT_LOADED:
        return model
    return replace(model, context_tokens=min(most, model.context_tokens or most))


_ANY_CONTEXT: Final = ContextLengths()


def _remembering(seen: Status, before: Status) -> Status:
    """Keep the models of a backend that went away: asking for one is then "not now" and not "no such model"."""
    if seen.models or seen.state not in {State.OFF, State.ERROR}:
        return seen
    return Status(seen.state, seen.detail, before.models, reason=seen.reason)
