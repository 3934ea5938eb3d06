"""Keeps responses while they come to be: each is stored before its first word is asked for, and renewed until its last.

A response on which nobody works any more, its gateway killed, is found out within half a minute and reported as failed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog

from gateway.conversations.records import FAILED, IN_PROGRESS, Json, Owner, StoredResponse
from kala.errors import KalaError, NotFoundError

if TYPE_CHECKING:
    from gateway.background import Background
    from gateway.conversations.store import ResponseStore

LEASE_SECONDS: Final = 30.0
RENEW_SECONDS: Final = 8.0
"""Three renewals may be missed, and clocks may differ by a few seconds."""

MICROS: Final = 1_000_000

ABANDONED: Final = (
    "the gateway that worked on this response stopped before it was whole; send the request again"
)


class Keeper:
    """Knows what is being worked on here; one per process."""

    def __init__(
        self,
        store: ResponseStore,
        *,
        background: Background,
        ttl_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._background = background
        self._ttl = int(ttl_seconds * MICROS)
        self._clock = clock
        self._working: dict[str, Callable[[], object] | None] = {}

    @property
    def now(self) -> int:
        """Give the time as the store has it."""
        return int(self._clock() * MICROS)

    async def begin(
        self,
        response_id: str,
        owner: Owner,
        *,
        items: list[Json],
        body: Json,
        previous_id: str | None,
        stop: Callable[[], object] | None = None,
    ) -> None:
        """Store a response that begins; `stop` ends the work on it when somebody cancels or deletes it."""
        now = self.now
        stored = StoredResponse(
            id=response_id,
            owner=owner,
            previous_id=previous_id,
            status=body["status"],
            is_refused=False,
            created_at=now,
            expires_at=now + self._ttl,
            lease_until=self._lease(),
            items=items,
            body=body,
        )
        await asyncio.to_thread(self.store.insert, stored)
        self._working[response_id] = stop

    async def change(self, response_id: str, owner: Owner, body: Json) -> bool:
        """Store how far an unfinished response is; False where it was cancelled, deleted or erased."""
        return await asyncio.to_thread(
            lambda: self.store.update(response_id, owner, body, lease_until=self._lease())
        )

    async def finish(self, response_id: str, owner: Owner, body: Json, *, is_refused: bool = False) -> bool:
        """Store the end; False where the response was cancelled, deleted or erased meanwhile."""
        self._working.pop(response_id, None)
        return await asyncio.to_thread(
            lambda: self.store.update(response_id, owner, body, is_refused=is_refused)
        )

    def finish_later(self, response_id: str, owner: Owner, body: Json) -> None:
        """Store the end although the request is gone."""
        self._background.spawn(self.finish(response_id, owner, body))

    async def drop(self, response_id: str, owner: Owner) -> None:
        """Forget a response that never came to be."""
        self._working.pop(response_id, None)
        await asyncio.to_thread(self.store.delete, owner, response_id)

    def stop(self, response_id: str) -> None:
        """End the work on a response, where that is done here."""
        stop = self._working.pop(response_id, None)
        if stop is not None:
            stop()

    async def find(self, owner: Owner, response_id: str) -> StoredResponse:
        """Give a caller's response; NotFoundError where there is none."""
        now = self.now
        stored = await asyncio.to_thread(self.store.find, owner, response_id, now)
        if stored is None:
            raise NotFoundError(
                f"there is no response {response_id[:64]!r}: it was not stored, has expired, was deleted or erased, or "
                "belongs to another key",
                reason="RESPONSE_NOT_FOUND",
            )
        if not stored.is_finished and (stored.lease_until or 0) < now:
            await self._give_up(stored)
            return await self.find(owner, response_id)
        return stored

    async def renew(self) -> None:
        """Say of all work that it goes on, and end what somebody cancelled or deleted through another gateway."""
        ids = list(self._working)
        if not ids:
            return
        alive = await asyncio.to_thread(self.store.renew, ids, self._lease())
        for response_id in set(ids) - set(alive):
            self.stop(response_id)

    async def sweep(self) -> None:
        """Give up what nobody works on, and delete what has expired."""
        for stored in await asyncio.to_thread(self.store.abandoned, self.now):
            await self._give_up(stored)
        await asyncio.to_thread(self.store.sweep, self.now)

    async def keep_renewing(self) -> None:
        """Renew for ever; a database that is away is waited for."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            await _tried(self.renew)

    async def keep_sweeping(self) -> None:
        """Sweep for ever, as above."""
        while True:
            await _tried(self.sweep)
            await asyncio.sleep(LEASE_SECONDS)

    async def _give_up(self, stored: StoredResponse) -> None:
        error = {"code": "server_error", "message": ABANDONED}
        body = {**stored.body, "status": FAILED, "error": error}
        await asyncio.to_thread(lambda: self.store.update(stored.id, stored.owner, body))

    def _lease(self) -> int:
        return self.now + int(LEASE_SECONDS * MICROS)


class Kept:
    """One response while it comes to be; one that is not to be stored is not."""

    def __init__(self, keeper: Keeper, response_id: str, owner: Owner, *, is_stored: bool) -> None:
        self._keeper = keeper
        self._id = response_id
        self._owner = owner
        self._is_stored = is_stored

    async def begin(self, items: list[Json], body: Json, previous_id: str | None) -> None:
        """Store it before anything is asked of a model."""
        if self._is_stored:
            body = {**body, "status": IN_PROGRESS}
            await self._keeper.begin(self._id, self._owner, items=items, body=body, previous_id=previous_id)

    async def finish(self, body: Mapping[str, Any], *, is_refused: bool) -> None:  # Any: JSON
        """Store its end before anybody is told of it."""
        if self._is_stored:
            await self._keeper.finish(self._id, self._owner, dict(body), is_refused=is_refused)

    async def drop(self) -> None:
        """Forget it; where the database is away too, it is found out later that nobody works on it."""
        if self._is_stored:
            with suppress(KalaError):
                await self._keeper.drop(self._id, self._owner)

    def cancelled(self, body: Mapping[str, Any]) -> None:  # Any: JSON
        """Store that its client went away."""
        if self._is_stored:
            self._keeper.finish_later(self._id, self._owner, dict(body))


async def _tried(work: Callable[[], Any]) -> None:  # Any: a coroutine
    try:
        await work()
    except KalaError as error:
        structlog.get_logger().warning("stored responses could not be looked after", reason=error.reason)
