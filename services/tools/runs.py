"""The book of runs: what ran for whom and how it ended, and the artifacts, for a day.

It lives as long as this process: a restart begins an empty book. The audit log is what lasts.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

import structlog

from kala.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from services.common.page_tokens import page_size_of
from services.tools.artifact_store import ArtifactStore
from services.tools.files.artifacts import Caps
from services.tools.files.model import Artifact, Collected, Owner
from services.tools.files.paths import Pattern
from services.tools.files.private_directory import PrivateDirectory
from services.tools.files.volume import MAX_PART_BYTES
from services.tools.names import Names
from services.tools.pages import PageTokens
from services.tools.sandbox.model import Isolation, Status, Usage

KEPT_SECONDS: Final = 24 * 3600.0
MAX_RUNS: Final = 10_000
# Artifacts of all runs together; the oldest runs go first.
MAX_BYTES: Final = 4 * 1024**3
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1_000
_ARTIFACTS: Final = "/artifacts/"
_KEY: Final = struct.Struct(">Q")

End = Callable[[], None]

log: Final = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run that was accepted."""

    owner: Owner
    tool: str
    # Of the arguments' exact JSON text; they themselves are not kept.
    arguments_sha256: bytes
    # "workspaces/<workspace>"; empty for a throw-away one.
    workspace: str = ""
    decision_id: str = ""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A finished, running or refused run; moments in Unix seconds."""

    # "runs/<replica>.<32 hex>".
    name: str
    run: NewRun
    started_at: float
    # None when it never began.
    isolation: Isolation | None = None
    # None while it runs.
    status: Status | None = None
    exit_code: int | None = None
    reason: str = ""
    usage: Usage = field(default_factory=Usage)
    artifacts: tuple[Artifact, ...] = ()
    finished_at: float | None = None


@dataclass(frozen=True, slots=True)
class RunPage:
    """A page of runs, the newest first; the token is empty on the last."""

    runs: tuple[RunRecord, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class ArtifactPart:
    """Bytes of an artifact from the asked place on; `next_offset` is None at its end."""

    artifact: Artifact
    data: bytes
    next_offset: int | None


@dataclass(slots=True)
class _Entry:
    """A run in the book."""

    number: str
    # Its place in the order of arrival.
    place: int
    record: RunRecord
    end: End
    # Held while its artifacts are collected.
    collecting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def whose(self) -> tuple[str, str]:
        return self.record.run.owner.tenant, self.record.run.owner.principal

    @property
    def stored_bytes(self) -> int:
        return sum(artifact.size for artifact in self.record.artifacts)


class Runs:
    """The runs of one replica; made by `open`, ended by `aclose`."""

    def __init__(
        self,
        *,
        store: ArtifactStore,
        replica: str,
        tokens: PageTokens,
        now: Callable[[], float],
        kept_seconds: float,
        max_runs: int,
        max_bytes: int,
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._now = now
        self._kept_seconds = kept_seconds
        self._max_runs = max_runs
        self._max_bytes = max_bytes
        self._names = Names("runs", replica)
        # In the order of arrival.
        self._entries: dict[str, _Entry] = {}
        # Erased before they ended.
        self._erased: set[str] = set()
        self._arrived = 0

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        replica: str,
        tokens: PageTokens,
        now: Callable[[], float] = time.time,
        kept_seconds: float = KEPT_SECONDS,
        max_runs: int = MAX_RUNS,
        max_bytes: int = MAX_BYTES,
    ) -> Self:
        """Take the directory for this process alone and delete what was left in it.

        Raises FailedPreconditionError when another process has it.
        """
        store = ArtifactStore(PrivateDirectory.open(directory))
        await store.clear()
        return cls(
            store=store,
            replica=replica,
            tokens=tokens,
            now=now,
            kept_seconds=kept_seconds,
            max_runs=max_runs,
            max_bytes=max_bytes,
        )

    async def aclose(self) -> None:
        """Give the directory up; no run may be collecting any more."""
        self._store.close()

    def begin(self, run: NewRun, *, end: End) -> str:
        """Enter a run and give its name; `end` is called, once and at any time, when it has to end because it is erased.

        Raises ResourceExhaustedError when the book is full of runs that have not ended.
        """
        while len(self._entries) >= self._max_runs:
            self._drop_oldest()
        name, number = self._names.new()
        self._arrived += 1
        self._entries[number] = _Entry(number, self._arrived, RunRecord(name, run, self._now()), end)
        return name

    def started(self, name: str, isolation: Isolation) -> None:
        """Note where it runs."""
        entry = self._entries.get(self._names.parse("run", name))
        if entry is not None:
            entry.record = replace(entry.record, isolation=isolation)

    def used(self, name: str, usage: Usage) -> None:
        """Note what it used so far."""
        entry = self._entries.get(self._names.parse("run", name))
        if entry is not None:
            entry.record = replace(entry.record, usage=usage)

    async def collect(
        self,
        name: str,
        workspace: int,
        *,
        patterns: Sequence[Pattern],
        known: Mapping[str, bytes],
        caps: Caps,
    ) -> Collected:
        """Take the artifacts of a run that has ended out of its workspace; once, before `finish`.

        `known` is what the run was given, path to SHA-256. Older runs give way where the store is full.
        """
        entry = self._entries.get(self._names.parse("run", name))
        if entry is None:
            return Collected()
        caps = Caps(caps.artifacts, min(caps.artifact_bytes, self._max_bytes))
        async with entry.collecting:
            collected = await self._store.collect(
                entry.number, workspace, run=entry.record.name, patterns=patterns, known=known, caps=caps
            )
        if entry.number not in self._entries:
            # Erased meanwhile.
            await self._forget([entry])
            return Collected()
        entry.record = replace(entry.record, artifacts=collected.artifacts)
        await self._make_room(entry)
        return collected

    def finish(
        self,
        name: str,
        *,
        status: Status,
        exit_code: int | None = None,
        reason: str = "",
        usage: Usage | None = None,
    ) -> bool:
        """Note how it ended, also for one that never began; True the first time, and nothing happens after that.

        One that was erased meanwhile is not entered again.
        """
        number = self._names.parse("run", name)
        if number in self._erased:
            self._erased.remove(number)
            return True
        entry = self._entries.get(number)
        if entry is None or entry.record.status is not None:
            return False
        entry.record = replace(
            entry.record,
            status=status,
            exit_code=exit_code,
            reason=reason,
            usage=usage or entry.record.usage,
            finished_at=self._now(),
        )
        return True

    def get(self, name: str, owner: Owner) -> RunRecord:
        """A run; NotFoundError when it is no longer listed or somebody else's."""
        return self._find(name, owner).record

    def page(
        self,
        owner: Owner,
        *,
        workspace: str = "",
        status: Status | None = None,
        tool: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> RunPage:
        """A page of the caller's runs, the newest first."""
        size = page_size_of(page_size, default=DEFAULT_PAGE, most=MAX_PAGE)
        question = f"ListRuns\0{owner.tenant}\0{owner.principal}\0{workspace}\0{status}\0{tool}"
        after = self._tokens.after(question, page_token)
        below = self._arrived + 1 if after is None else _KEY.unpack(after)[0]
        chosen: list[_Entry] = []
        for entry in self._newest_first():
            record = entry.record
            if (
                entry.place < below
                and record.run.owner.is_same(owner)
                and (not workspace or record.run.workspace == workspace)
                and (status is None or record.status is status)
                and (not tool or record.run.tool == tool)
            ):
                chosen.append(entry)
            if len(chosen) > size:
                token = self._tokens.make(question, _KEY.pack(chosen[size - 1].place))
                return RunPage(tuple(entry.record for entry in chosen[:size]), token)
        return RunPage(tuple(entry.record for entry in chosen), "")

    async def read_artifact(
        self, name: str, owner: Owner, *, offset: int = 0, max_bytes: int = 0
    ) -> ArtifactPart:
        """A part of an artifact; `max_bytes` 0 means the most, 2 MiB."""
        if not 0 <= max_bytes <= MAX_PART_BYTES:
            raise InvalidArgumentError("max_bytes", f"must be 1 to {MAX_PART_BYTES}")
        if offset < 0:
            raise InvalidArgumentError("offset", "must not be negative")
        run, separator, number = name.partition(_ARTIFACTS)
        if not separator or not (number.isascii() and number.isdecimal()):
            raise InvalidArgumentError(
                "name", "must be runs/<replica>.<32 hexadecimal digits>/artifacts/<number>"
            )
        entry = self._find(run, owner)
        artifact = next((one for one in entry.record.artifacts if one.name == name), None)
        if artifact is None:
            raise _not_found(name)
        data = await self._store.read(entry.number, number, offset=offset, most=max_bytes or MAX_PART_BYTES)
        end = offset + len(data)
        return ArtifactPart(artifact, data, end if data and end < artifact.size else None)

    async def sweep(self) -> int:
        """Forget the runs whose time is over, with their artifacts; gives how many."""
        over = [entry for entry in self._entries.values() if self._is_over(entry)]
        try:
            await self._forget(over)
        except OSError as error:
            # Nobody finds them any more; their artifacts go with the next start.
            log.warning("artifacts_not_deleted", problem=error.strerror)
        return len(over)

    async def erase(self, tenant: str, subject: str) -> tuple[int, int]:
        """End and forget every run of a person, with its artifacts; gives how many, and the bytes freed."""
        theirs = [
            entry for entry in self._entries.values() if entry.record.run.owner.concerns(tenant, subject)
        ]
        freed_bytes = sum(entry.stored_bytes for entry in theirs)
        for entry in theirs:
            del self._entries[entry.number]
            if entry.record.status is None:
                self._erased.add(entry.number)
                entry.end()
            if not entry.collecting.locked():
                self._discard(entry)
        for entry in theirs:
            # What is just being collected is taken away when it is.
            async with entry.collecting:
                pass
        await self._forget(theirs)
        return len(theirs), freed_bytes

    def _find(self, name: str, owner: Owner) -> _Entry:
        entry = self._entries.get(self._names.parse("name", name))
        if entry is None or self._is_over(entry) or not entry.record.run.owner.is_same(owner):
            raise _not_found(name)
        return entry

    def _is_over(self, entry: _Entry) -> bool:
        finished_at = entry.record.finished_at
        return finished_at is not None and finished_at + self._kept_seconds <= self._now()

    def _newest_first(self) -> Iterator[_Entry]:
        return (entry for entry in reversed(self._entries.values()) if not self._is_over(entry))

    def _drop_oldest(self) -> None:
        """Forget the oldest run that has ended, of whoever has most of them; its artifacts' space is freed by the next sweep."""
        ended = [entry for entry in self._entries.values() if entry.record.status is not None]
        if not ended:
            raise ResourceExhaustedError(
                f"{self._max_runs} runs have not ended yet; wait for one", reason="TOO_MANY_RUNS"
            )
        held = Counter(entry.whose for entry in ended)
        most = max(held.values())
        self._discard(next(entry for entry in ended if held[entry.whose] == most))

    async def _make_room(self, kept: _Entry) -> None:
        """Forget ended runs with artifacts until all artifacts fit: of whoever stores most, the oldest first."""
        stored: Counter[tuple[str, str]] = Counter()
        may_go: dict[tuple[str, str], deque[_Entry]] = {}
        for entry in self._entries.values():
            stored[entry.whose] += entry.stored_bytes
            if entry is not kept and entry.record.status is not None and entry.record.artifacts:
                may_go.setdefault(entry.whose, deque()).append(entry)
        gone = []
        while may_go and stored.total() > self._max_bytes:
            most = max(may_go, key=lambda whose: stored[whose])
            entry = may_go[most].popleft()
            gone.append(entry)
            stored[most] -= entry.stored_bytes
            if not may_go[most]:
                del may_go[most]
        await self._forget(gone)

    async def _forget(self, entries: Sequence[_Entry]) -> None:
        for entry in entries:
            self._discard(entry)
        if entries:
            await self._store.free()

    def _discard(self, entry: _Entry) -> None:
        self._entries.pop(entry.number, None)
        self._store.discard(entry.number)


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(f"there is no {name}, or it is not yours", reason="RUN_NOT_FOUND")
