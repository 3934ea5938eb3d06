"""The workspaces of one replica: whose they are, how long they live, and whose turn it is in them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import structlog

from kala.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    ResourceExhaustedError,
)
from services.tools.files.failures import explained
from services.tools.files.host_directory import checked_host_directory
from services.tools.files.model import Owner, Removed, Rights, Workspace, WorkspaceRules
from services.tools.files.shelf import Shelf
from services.tools.files.turn import Turn
from services.tools.files.volume import Account, Volume
from services.tools.files.workspace_files import WorkspaceFiles
from services.tools.files.workspace_records import Asked, Record
from services.tools.names import Names
from services.tools.pages import PageTokens
from services.tools.threads import in_thread

MAX_WORKSPACES: Final = 1_024
# Of one principal, so that nobody takes all of them.
MAX_WORKSPACES_OF_ONE: Final = 64
# Files and directories of one workspace: empty files would cost the disk and not the quota.
MAX_INODES: Final = 65_536
# Runs that wait for their turn in one workspace.
MAX_WAITING: Final = 16
MIN_REQUEST_ID_CHARS: Final = 16
MAX_REQUEST_ID_CHARS: Final = 64
MIN_TTL_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
# A crash may forget uses of the last tenth of a workspace's life, so that not every reading of a file writes to the disk.
SAVED_SHARE: Final = 0.1

End = Callable[[], None]

log: Final = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Held:
    """A workspace in this process."""

    number: str
    record: Record
    account: Account
    # One run at a time; one change at a time.
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    uses: int = 0
    waiting: int = 0
    ends: list[End] = field(default_factory=list)
    closed: bool = False
    # When its record was written last, by its moment of use.
    saved_at: float = 0.0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class Workspaces:
    """Holds the workspaces; made by `open`, ended by `aclose`."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        replica: str,
        rules: WorkspaceRules,
        rights: Rights,
        tokens: PageTokens,
        now: Callable[[], float],
    ) -> None:
        self._shelf = shelf
        self._replica = replica
        self._rules = rules
        self._rights = rights
        self._tokens = tokens
        self._now = now
        self._names = Names("workspaces", replica)
        self._held: dict[str, _Held] = {}
        self._removing: set[asyncio.Task[Removed]] = set()

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        replica: str,
        rules: WorkspaceRules,
        rights: Rights,
        tokens: PageTokens,
        now: Callable[[], float] = time.time,
    ) -> Self:
        """Take the directory for this process alone and find the workspaces that a restart left; others are deleted.

        Raises FailedPreconditionError when another process has it.
        """
        shelf = Shelf.open(directory)
        self = cls(shelf=shelf, replica=replica, rules=rules, rights=rights, tokens=tokens, now=now)
        kept = await in_thread(shelf.load, lambda left: left.replica == replica and left.expires_at > now())
        for number, found in kept.items():
            account = Account(found.record.quota_bytes, MAX_INODES, found.used_bytes, found.inodes)
            self._held[number] = _Held(number, found.record, account, saved_at=found.record.used_at)
        return self

    async def aclose(self) -> None:
        """End every run's turn and give the directory up; the workspaces stay for the next start."""
        for held in list(self._held.values()):
            await self._shut(held)
            self._save(held)
        if self._removing:
            await asyncio.wait(self._removing)
        self._shelf.close()

    async def create(
        self,
        owner: Owner,
        *,
        request_id: str = "",
        quota_bytes: int = 0,
        ttl_seconds: float | None = None,
        host_directory: str = "",
    ) -> tuple[Workspace, bool]:
        """Make a workspace, or give the one that this principal made with the same request_id (then False)."""
        asked = Asked(request_id, quota_bytes, ttl_seconds, host_directory)
        record = self._record(owner, asked)
        if len(self._held) >= MAX_WORKSPACES:
            await self.sweep()
        # From here on nothing waits: two calls with one request_id make one workspace.
        known = self._made_with(owner, request_id)
        if known is not None:
            if known.record.asked != asked:
                raise AlreadyExistsError(
                    "request_id: was used with other parameters; choose a new one", reason="REQUEST_ID_USED"
                )
            return self._describe(known), False
        self._require_room(owner)
        _, number = self._names.new()
        with explained("workspace"):
            self._shelf.make(number, record)
        account = Account(record.quota_bytes, MAX_INODES)
        held = self._held[number] = _Held(number, record, account, saved_at=record.used_at)
        return self._describe(held), True

    def get(self, name: str, owner: Owner) -> Workspace:
        """The workspace as it is now; NotFoundError when it is gone or somebody else's."""
        return self._describe(self._find(name, owner))

    async def delete(self, name: str, owner: Owner) -> Removed:
        """End its runs, wait for them and delete its files; one that is gone is no error."""
        held = self._held.get(self._names.parse("name", name))
        if held is None:
            return Removed()
        if not held.record.owner.is_same(owner):
            raise _not_found(name)
        return await self._remove(held)

    @asynccontextmanager
    async def files(self, name: str, owner: Owner) -> AsyncIterator[WorkspaceFiles]:
        """The files of a workspace; needs no turn. A host directory that is gone is left out."""
        held = self._find(name, owner)
        host = None
        with suppress(KalaError):
            host = self._host_directory(held)
        async with self._used(held):
            with self._opened(held, host) as (_, files):
                yield files

    @asynccontextmanager
    async def turn(self, name: str, owner: Owner, *, end: End) -> AsyncIterator[Turn]:
        """Wait for the turn of a run and hold it; in the order of asking.

        `end` is called once, at any time, when the run has to end because the workspace is being deleted: it must not block.
        Raises ResourceExhaustedError when too many wait already, NotFoundError when the workspace goes while waiting.
        """
        held = self._find(name, owner)
        if held.waiting >= MAX_WAITING:
            raise ResourceExhaustedError(
                f"{MAX_WAITING} runs wait for their turn in {name}; wait for one to end",
                reason="WORKSPACE_BUSY",
                retry_after_seconds=RETRY_SECONDS,
            )
        async with self._used(held, end), self._in_turn(held, name):
            host = self._host_directory(held)
            with self._opened(held, host) as (volume, files):
                turn = Turn(volume=volume, changing=held.changing, files=files, host_directory=host)
                try:
                    yield turn
                finally:
                    await in_thread(turn.end)

    async def sweep(self) -> int:
        """Delete the workspaces whose time is over and that nothing uses; gives how many."""
        expired = [held for held in self._held.values() if self._is_over(held)]
        for held in expired:
            try:
                await self._remove(held)
            except OSError as error:
                # Nobody finds it any more; its files go with the next start.
                log.warning("workspace_not_deleted", problem=error.strerror)
        return len(expired)

    async def erase(self, tenant: str, subject: str) -> tuple[int, int]:
        """Delete every workspace that was made for a person; gives how many, and the bytes freed."""
        theirs = [held for held in self._held.values() if held.record.owner.concerns(tenant, subject)]
        removed = [await self._remove(held) for held in theirs]
        if self._removing:
            await asyncio.wait(self._removing)
        return len(removed), sum(one.freed_bytes for one in removed)

    def _find(self, name: str, owner: Owner) -> _Held:
        held = self._held.get(self._names.parse("workspace", name))
        if held is None or self._is_over(held) or not held.record.owner.is_same(owner):
            raise _not_found(name)
        return held

    def _is_over(self, held: _Held) -> bool:
        return not held.uses and held.record.expires_at <= self._now()

    def _describe(self, held: _Held) -> Workspace:
        record = held.record.used(self._now()) if held.uses else held.record
        return Workspace(
            name=self._names.of(held.number),
            owner=record.owner,
            quota_bytes=record.quota_bytes,
            used_bytes=held.account.used_bytes,
            inodes=held.account.inodes,
            ttl_seconds=record.ttl_seconds,
            created_at=record.created_at,
            expires_at=record.expires_at,
            host_directory=record.host_directory,
        )

    def _record(self, owner: Owner, asked: Asked) -> Record:
        """What the creator gets; raises for what the rules do not give."""
        rules = self._rules
        length = len(asked.request_id)
        if length and not MIN_REQUEST_ID_CHARS <= length <= MAX_REQUEST_ID_CHARS:
            raise InvalidArgumentError(
                "request_id", f"must be {MIN_REQUEST_ID_CHARS} to {MAX_REQUEST_ID_CHARS} characters, or empty"
            )
        if not 0 <= asked.quota_bytes <= rules.max_bytes:
            raise InvalidArgumentError(
                "quota_bytes", f"is {asked.quota_bytes}, the policy's maximum is {rules.max_bytes}"
            )
        ttl = rules.default_ttl_seconds if asked.ttl_seconds is None else asked.ttl_seconds
        if not MIN_TTL_SECONDS <= ttl <= rules.max_ttl_seconds:
            raise InvalidArgumentError(
                "ttl", f"is {ttl:g} s, it must be {MIN_TTL_SECONDS:g} to {rules.max_ttl_seconds:g} s"
            )
        host = checked_host_directory(asked.host_directory, rules) if asked.host_directory else ""
        now = self._now()
        quota = asked.quota_bytes or rules.default_bytes
        return Record(
            self._replica, owner, asked, quota, ttl, created_at=now, used_at=now, host_directory=host
        )

    def _made_with(self, owner: Owner, request_id: str) -> _Held | None:
        for held in self._held.values():
            record = held.record
            if request_id and record.asked.request_id == request_id and record.owner.is_same(owner):
                return None if self._is_over(held) else held
        return None

    def _require_room(self, owner: Owner) -> None:
        of_one = sum(held.record.owner.is_same(owner) for held in self._held.values())
        if of_one >= MAX_WORKSPACES_OF_ONE or len(self._held) >= MAX_WORKSPACES:
            most = MAX_WORKSPACES_OF_ONE if of_one >= MAX_WORKSPACES_OF_ONE else MAX_WORKSPACES
            raise ResourceExhaustedError(
                f"there are {most} workspaces already; delete one that is no longer needed",
                reason="TOO_MANY_WORKSPACES",
            )

    def _host_directory(self, held: _Held) -> str | None:
        """The host directory, looked at again: it may have been replaced since the workspace was made."""
        directory = held.record.host_directory
        return checked_host_directory(directory, self._rules) if directory else None

    @asynccontextmanager
    async def _used(self, held: _Held, end: End | None = None) -> AsyncIterator[None]:
        held.uses += 1
        held.idle.clear()
        if end is not None:
            held.ends.append(end)
        try:
            yield
        finally:
            if end is not None:
                held.ends.remove(end)
            held.uses -= 1
            held.record = held.record.used(self._now())
            if held.record.used_at - held.saved_at > held.record.ttl_seconds * SAVED_SHARE:
                self._save(held)
            if not held.uses:
                held.idle.set()

    def _save(self, held: _Held) -> None:
        """Write the moment of use; only that is lost when the disk does not take it."""
        with suppress(OSError):
            self._shelf.save(held.number, held.record)
            held.saved_at = held.record.used_at

    @asynccontextmanager
    async def _in_turn(self, held: _Held, name: str) -> AsyncIterator[None]:
        held.waiting += 1
        try:
            await held.turn.acquire()
        finally:
            held.waiting -= 1
        try:
            if held.closed:
                raise _not_found(name)
            yield
        finally:
            held.turn.release()

    @contextmanager
    def _opened(self, held: _Held, host: str | None) -> Iterator[tuple[Volume, WorkspaceFiles]]:
        opened = self._shelf.opened(held.number, host)
        try:
            volume = Volume(
                root=opened.root,
                staging=opened.staging,
                account=held.account,
                rights=self._rights,
                host=opened.host,
            )
            yield (
                volume,
                WorkspaceFiles(
                    volume=volume,
                    changing=held.changing,
                    tokens=self._tokens,
                    describe=lambda: self._describe(held),
                ),
            )
        finally:
            opened.close()

    async def _remove(self, held: _Held) -> Removed:
        """Delete a workspace to the end, also when the caller goes away meanwhile."""
        if held.closed:
            return Removed()
        task = asyncio.create_task(self._removal(held))
        self._removing.add(task)
        task.add_done_callback(self._removing.discard)
        return await asyncio.shield(task)

    async def _removal(self, held: _Held) -> Removed:
        runs = await self._shut(held)
        inodes, freed_bytes = await in_thread(self._shelf.remove, held.number)
        return Removed(inodes, freed_bytes, runs)

    async def _shut(self, held: _Held) -> int:
        """Let nobody use it any more, end its runs and wait until nobody does; gives how many runs there were."""
        held.closed = True
        self._held.pop(held.number, None)
        ends = list(held.ends)
        for end in ends:
            end()
        while held.uses:
            await held.idle.wait()
        return len(ends)


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(f"there is no {name}, or it is not yours", reason="WORKSPACE_NOT_FOUND")
