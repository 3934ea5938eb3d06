"""The book of runs: the caller's own, the newest first, with artifacts, for a day."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, ResourceExhaustedError
from services.tools import artifact_store as module
from services.tools.files.artifacts import Caps
from services.tools.files.beneath import closing
from services.tools.files.model import Collected, Owner
from services.tools.files.private_directory import PrivateDirectory
from services.tools.pages import PageTokens
from services.tools.runs import KEPT_SECONDS, NewRun, Runs
from services.tools.sandbox.model import Isolation, Status, Strength, Tier, Usage

ALICE = Owner("acme", "key-alice", "a" * 64)
BOB = Owner("acme", "key-bob", "b" * 64)
WORKSPACE = "workspaces/local." + "0" * 32
CAPS = Caps(8, 1_000)
ISOLATION = Isolation(Tier.BUBBLEWRAP, Strength.STANDARD, "bubblewrap 0.8.0", ("seccomp",))


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Ends:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> PageTokens:
    return PageTokens(key=b"k" * 32, now=clock)


@pytest.fixture
async def runs(tmp_path: Path, clock: Clock, tokens: PageTokens) -> AsyncIterator[Runs]:
    opened = await Runs.open(
        tmp_path / "runs", replica="local", tokens=tokens, now=clock, max_runs=8, max_bytes=100
    )
    yield opened
    await opened.aclose()


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What the next run leaves under out/."""
    directory = tmp_path / "left/out"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def workspace(left: Path) -> Iterator[int]:
    with closing(os.open(left.parent, os.O_RDONLY | os.O_DIRECTORY)) as descriptor:
        yield descriptor


def _new(owner: Owner = ALICE, *, tool: str = "shell", workspace: str = "") -> NewRun:
    return NewRun(owner, tool, b"\1" * 32, workspace, "d" * 32)


def _done(runs: Runs, new: NewRun | None = None, status: Status = Status.OK) -> str:
    name = runs.begin(new or _new(), end=Ends())
    runs.finish(name, status=status)
    return name


async def _leaving(runs: Runs, workspace: int, new: NewRun | None = None) -> str:
    name = runs.begin(new or _new(), end=Ends())
    await runs.collect(name, workspace, patterns=(), known={}, caps=CAPS)
    runs.finish(name, status=Status.OK)
    return name


def _stored(tmp_path: Path) -> list[str]:
    return sorted(
        path.name for path in (tmp_path / "runs").rglob("*") if path.is_file() and path.name != "lock"
    )


class TestEntering:
    async def test_a_run_is_there_from_its_beginning_to_its_end(self, runs: Runs, clock: Clock) -> None:
        name = runs.begin(_new(workspace=WORKSPACE), end=Ends())
        record = runs.get(name, ALICE)
        assert name.startswith("runs/local.")
        assert (record.status, record.isolation, record.started_at) == (None, None, clock.now)
        runs.started(name, ISOLATION)
        runs.used(name, Usage(wall_seconds=1.0))
        assert (runs.get(name, ALICE).isolation, runs.get(name, ALICE).usage.wall_seconds) == (ISOLATION, 1.0)
        clock.now += 5
        assert runs.finish(name, status=Status.ERROR, exit_code=3, reason="exit code 3")
        record = runs.get(name, ALICE)
        assert (record.status, record.exit_code, record.reason) == (Status.ERROR, 3, "exit code 3")
        assert (record.finished_at, record.usage.wall_seconds) == (clock.now, 1.0)

    async def test_a_run_ends_once(self, runs: Runs) -> None:
        name = runs.begin(_new(), end=Ends())
        assert runs.finish(name, status=Status.TIMEOUT)
        assert not runs.finish(name, status=Status.OK)
        assert runs.get(name, ALICE).status is Status.TIMEOUT

    async def test_a_full_book_forgets_the_oldest_that_ended(self, runs: Runs) -> None:
        running = runs.begin(_new(), end=Ends())
        ended = [_done(runs) for _ in range(8)]
        assert runs.get(running, ALICE)
        with pytest.raises(NotFoundError):
            runs.get(ended[0], ALICE)
        assert runs.get(ended[1], ALICE)

    async def test_whoever_runs_most_gives_way_first(self, runs: Runs) -> None:
        """Ten thousand quick calls of one principal made the service forget everybody's runs."""
        bobs = _done(runs, _new(BOB))
        alices = [_done(runs) for _ in range(12)]
        assert runs.get(bobs, BOB)
        with pytest.raises(NotFoundError):
            runs.get(alices[0], ALICE)

    async def test_a_book_full_of_running_ones_takes_no_more(self, runs: Runs) -> None:
        for _ in range(8):
            runs.begin(_new(), end=Ends())
        with pytest.raises(ResourceExhaustedError, match="8 runs have not ended yet"):
            runs.begin(_new(), end=Ends())


class TestListing:
    async def test_the_newest_come_first(self, runs: Runs) -> None:
        names = [_done(runs) for _ in range(3)]
        page = runs.page(ALICE)
        assert [run.name for run in page.runs] == names[::-1]
        assert page.next_page_token == ""

    async def test_only_the_callers_own_are_listed(self, runs: Runs) -> None:
        _done(runs, _new(BOB))
        _done(runs, _new(replace(ALICE, tenant="other")))
        assert runs.page(ALICE).runs == ()

    @pytest.mark.parametrize(
        "filters",
        [{"tool": "filesystem"}, {"workspace": WORKSPACE}, {"status": Status.TIMEOUT}],
        ids=["tool", "workspace", "status"],
    )
    async def test_each_filter_chooses(self, runs: Runs, filters: dict[str, str]) -> None:
        _done(runs)
        wanted = _done(runs, _new(tool="filesystem", workspace=WORKSPACE), Status.TIMEOUT)
        _done(runs)
        assert [run.name for run in runs.page(ALICE, **filters).runs] == [wanted]

    async def test_pages_follow_although_runs_come_and_go(self, runs: Runs, clock: Clock) -> None:
        names = [_done(runs) for _ in range(5)]
        first = runs.page(ALICE, page_size=2)
        assert [run.name for run in first.runs] == [names[4], names[3]]
        _done(runs)
        second = runs.page(ALICE, page_size=2, page_token=first.next_page_token)
        assert [run.name for run in second.runs] == [names[2], names[1]]
        third = runs.page(ALICE, page_size=2, page_token=second.next_page_token)
        assert ([run.name for run in third.runs], third.next_page_token) == ([names[0]], "")

    async def test_a_token_of_other_filters_or_callers_is_refused(self, runs: Runs) -> None:
        for owner in (ALICE, ALICE, BOB, BOB):
            _done(runs, _new(owner))
        token = runs.page(ALICE, page_size=1).next_page_token
        with pytest.raises(InvalidArgumentError, match="page_token"):
            runs.page(ALICE, page_size=1, page_token=token, tool="shell")
        with pytest.raises(InvalidArgumentError, match="page_token"):
            runs.page(BOB, page_size=1, page_token=token)

    async def test_too_large_a_page_names_the_limit(self, runs: Runs) -> None:
        with pytest.raises(InvalidArgumentError, match="page_size: must be 1 to 1000"):
            runs.page(ALICE, page_size=1001)


class TestArtifacts:
    async def test_they_are_read_in_parts(self, runs: Runs, left: Path, workspace: int) -> None:
        (left / "a.txt").write_bytes(b"hello")
        name = await _leaving(runs, workspace)
        [artifact] = runs.get(name, ALICE).artifacts
        assert artifact.name == f"{name}/artifacts/0"
        first = await runs.read_artifact(artifact.name, ALICE, max_bytes=3)
        assert (first.data, first.next_offset, first.artifact) == (b"hel", 3, artifact)
        second = await runs.read_artifact(artifact.name, ALICE, offset=3)
        assert (second.data, second.next_offset) == (b"lo", None)
        beyond = await runs.read_artifact(artifact.name, ALICE, offset=9)
        assert (beyond.data, beyond.next_offset) == (b"", None)

    async def test_they_outlive_what_the_run_left(self, runs: Runs, left: Path, workspace: int) -> None:
        (left / "a.txt").write_bytes(b"hello")
        name = await _leaving(runs, workspace)
        (left / "a.txt").write_bytes(b"other")
        assert (await runs.read_artifact(f"{name}/artifacts/0", ALICE)).data == b"hello"

    async def test_somebody_elses_are_not_there(self, runs: Runs, left: Path, workspace: int) -> None:
        (left / "a.txt").write_bytes(b"hello")
        name = await _leaving(runs, workspace)
        with pytest.raises(NotFoundError, match="or it is not yours"):
            await runs.read_artifact(f"{name}/artifacts/0", BOB)

    @pytest.mark.parametrize(
        "tail", ["", "/artifacts/", "/artifacts/x", "/artifacts/../0", "/artifacts/²", "/artifacts/-1"]
    )
    async def test_what_is_no_name_says_what_one_is(self, runs: Runs, tail: str) -> None:
        with pytest.raises(InvalidArgumentError, match="name: must be runs/"):
            await runs.read_artifact(_done(runs) + tail, ALICE)

    async def test_a_number_that_was_not_collected_is_not_there(self, runs: Runs) -> None:
        with pytest.raises(NotFoundError):
            await runs.read_artifact(_done(runs) + "/artifacts/0", ALICE)

    @pytest.mark.parametrize(("field", "value"), [("max_bytes", 2_097_153), ("offset", -1)])
    async def test_a_part_out_of_bounds_names_the_field(self, runs: Runs, field: str, value: int) -> None:
        with pytest.raises(InvalidArgumentError, match=field):
            await runs.read_artifact(_done(runs) + "/artifacts/0", ALICE, **{field: value})

    async def test_older_runs_give_way_where_the_store_is_full(
        self, runs: Runs, left: Path, workspace: int, tmp_path: Path
    ) -> None:
        (left / "a").write_bytes(b"x" * 60)
        plain = _done(runs)
        first = await _leaving(runs, workspace)
        second = await _leaving(runs, workspace)
        with pytest.raises(NotFoundError):
            runs.get(first, ALICE)
        assert runs.get(plain, ALICE)
        assert (await runs.read_artifact(f"{second}/artifacts/0", ALICE)).data == b"x" * 60
        assert _stored(tmp_path) == ["0"]

    async def test_whoever_stores_most_gives_way_first(self, runs: Runs, left: Path, workspace: int) -> None:
        (left / "a").write_bytes(b"x" * 30)
        bobs = await _leaving(runs, workspace, _new(BOB))
        (left / "a").write_bytes(b"x" * 60)
        alices = [await _leaving(runs, workspace) for _ in range(3)]
        assert (await runs.read_artifact(f"{bobs}/artifacts/0", BOB)).data == b"x" * 30
        with pytest.raises(NotFoundError):
            runs.get(alices[1], ALICE)
        assert (await runs.read_artifact(f"{alices[2]}/artifacts/0", ALICE)).data == b"x" * 60

    async def test_one_run_never_gets_more_than_the_store(
        self, runs: Runs, left: Path, workspace: int
    ) -> None:
        (left / "a").write_bytes(b"x" * 101)
        name = runs.begin(_new(), end=Ends())
        collected = await runs.collect(name, workspace, patterns=(), known={}, caps=CAPS)
        assert (collected.artifacts, collected.skipped[0].path) == ((), "out/a")

    async def test_they_are_private(self, runs: Runs, left: Path, workspace: int, tmp_path: Path) -> None:
        (left / "a").write_bytes(b"x")
        (left / "a").chmod(0o777)
        name = await _leaving(runs, workspace)
        assert (tmp_path / "runs").stat().st_mode & 0o7777 == 0o700
        assert (tmp_path / "runs" / name[-32:] / "0").stat().st_mode & 0o7777 == 0o600


class TestForgetting:
    async def test_after_a_day_a_run_is_gone_with_its_artifacts(
        self, runs: Runs, left: Path, workspace: int, clock: Clock, tmp_path: Path
    ) -> None:
        (left / "a").write_bytes(b"x")
        name = await _leaving(runs, workspace)
        running = runs.begin(_new(), end=Ends())
        clock.now += KEPT_SECONDS
        with pytest.raises(NotFoundError):
            runs.get(name, ALICE)
        assert [run.name for run in runs.page(ALICE).runs] == [running]
        assert await runs.sweep() == 1
        assert _stored(tmp_path) == []

    async def test_artifacts_that_the_disk_does_not_give_up_are_forgotten_all_the_same(
        self, runs: Runs, left: Path, workspace: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (left / "a").write_bytes(b"x")
        name = await _leaving(runs, workspace)

        def fail(self: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(PrivateDirectory, "empty_trash", fail)
        clock.now += KEPT_SECONDS
        assert await runs.sweep() == 1
        with pytest.raises(NotFoundError):
            runs.get(name, ALICE)

    async def test_a_person_is_erased_and_their_running_runs_end(
        self, runs: Runs, left: Path, workspace: int, tmp_path: Path
    ) -> None:
        (left / "a").write_bytes(b"12345")
        ended = await _leaving(runs, workspace)
        theirs = _done(runs, _new(BOB))
        ends = Ends()
        running = runs.begin(_new(), end=ends)
        assert await runs.erase("acme", ALICE.subject) == (2, 5)
        assert ends.count == 1
        assert _stored(tmp_path) == []
        for name in (ended, running):
            with pytest.raises(NotFoundError):
                runs.get(name, ALICE)
        assert runs.get(theirs, BOB)
        assert await runs.erase("acme", "") == (0, 0)

    async def test_a_run_that_was_erased_still_ends_once_and_leaves_nothing(
        self, runs: Runs, left: Path, workspace: int, tmp_path: Path
    ) -> None:
        (left / "a").write_bytes(b"12345")
        name = runs.begin(_new(), end=Ends())
        await runs.erase("acme", ALICE.subject)
        assert await runs.collect(name, workspace, patterns=(), known={}, caps=CAPS) == Collected()
        runs.used(name, Usage())
        runs.started(name, ISOLATION)
        assert runs.finish(name, status=Status.CANCELLED)
        assert not runs.finish(name, status=Status.CANCELLED)
        assert (runs.page(ALICE).runs, _stored(tmp_path)) == ((), [])

    async def test_what_is_collected_while_it_is_erased_goes_too(
        self, runs: Runs, left: Path, workspace: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (left / "a").write_bytes(b"12345")
        name = runs.begin(_new(), end=Ends())
        loop, began, may_end = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        collect = module.collect

        def slowly(*arguments: int, **options: object) -> Collected:
            loop.call_soon_threadsafe(began.set)
            may_end.wait()
            return collect(*arguments, **options)

        monkeypatch.setattr(module, "collect", slowly)
        collecting = asyncio.create_task(runs.collect(name, workspace, patterns=(), known={}, caps=CAPS))
        await began.wait()
        erasing = asyncio.create_task(runs.erase("acme", ALICE.subject))
        await asyncio.sleep(0)
        may_end.set()
        assert await erasing == (1, 0)
        assert await collecting == Collected()
        assert _stored(tmp_path) == []

    async def test_a_restart_begins_an_empty_book(
        self, runs: Runs, left: Path, workspace: int, tmp_path: Path, tokens: PageTokens
    ) -> None:
        (left / "a").write_bytes(b"12345")
        await _leaving(runs, workspace)
        await runs.aclose()
        again = await Runs.open(tmp_path / "runs", replica="local", tokens=tokens)
        assert (again.page(ALICE).runs, _stored(tmp_path)) == ((), [])
        await again.aclose()

    async def test_two_processes_never_share_a_directory(
        self, runs: Runs, tmp_path: Path, tokens: PageTokens
    ) -> None:
        with pytest.raises(FailedPreconditionError, match="is used by another process"):
            await Runs.open(tmp_path / "runs", replica="local", tokens=tokens)
