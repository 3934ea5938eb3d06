"""Workspaces belong to somebody, end in time, and serve one run at a time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from kala.errors import (
    AlreadyExistsError,
    CancelledError,
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.tools.files import workspaces as module
from services.tools.files.model import Owner, Removed, WorkspaceRules, WriteMode
from services.tools.files.shelf import Shelf
from services.tools.files.workspaces import MAX_WAITING, Workspaces
from services.tools.pages import PageTokens

from .conftest import EVERYTHING, Place

ALICE = Owner("acme", "key-alice", "a" * 64)
BOB = Owner("acme", "key-bob", "b" * 64)
REQUEST = "request-0123456789"
RULES = WorkspaceRules(
    default_bytes=10_000, max_bytes=100_000, default_ttl_seconds=600.0, max_ttl_seconds=3_600.0
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Ends:
    """Counts how often a run was told to end."""

    def __init__(self) -> None:
        self.count = 0
        self.told = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.told.set()


Opening = Callable[..., Awaitable[Workspaces]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def opening(tmp_path: Path, clock: Clock) -> AsyncIterator[Opening]:
    """Opens the same directory, each time as a process that starts would."""
    async with AsyncExitStack() as stack:

        async def open_workspaces(
            *, replica: str = "local", rules: WorkspaceRules = RULES, directory: str = "workspaces"
        ) -> Workspaces:
            opened = await Workspaces.open(
                tmp_path / "state" / directory,
                replica=replica,
                rules=rules,
                rights=EVERYTHING,
                tokens=PageTokens(key=b"k" * 32, now=clock),
                now=clock,
            )
            stack.push_async_callback(opened.aclose)
            return opened

        yield open_workspaces


@pytest.fixture
async def workspaces(opening: Opening) -> Workspaces:
    return await opening()


async def _reopened(workspaces: Workspaces, opening: Opening, **changes: object) -> Workspaces:
    """As after a restart."""
    await workspaces.aclose()
    return await opening(**changes)


async def _made(workspaces: Workspaces, owner: Owner = ALICE, **files: bytes) -> str:
    workspace, _ = await workspaces.create(owner)
    async with workspaces.files(workspace.name, owner) as opened:
        for path, data in files.items():
            await opened.write(path, data, mode=WriteMode.CREATE)
    return workspace.name


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestMaking:
    async def test_a_new_one_is_empty_and_has_the_defaults(
        self, workspaces: Workspaces, clock: Clock
    ) -> None:
        workspace, created = await workspaces.create(ALICE)
        assert created
        assert workspace.name.startswith("workspaces/local.")
        assert (workspace.quota_bytes, workspace.ttl_seconds) == (10_000, 600.0)
        assert (workspace.used_bytes, workspace.inodes, workspace.host_directory) == (0, 0, "")
        assert workspace.expires_at == clock.now + 600

    async def test_the_same_request_gives_the_same_one(self, workspaces: Workspaces) -> None:
        first, created = await workspaces.create(ALICE, request_id=REQUEST)
        second, again = await workspaces.create(ALICE, request_id=REQUEST)
        assert (first.name, created, again) == (second.name, True, False)

    async def test_many_at_once_with_one_request_give_one(self, workspaces: Workspaces) -> None:
        made = await asyncio.gather(*(workspaces.create(ALICE, request_id=REQUEST) for _ in range(8)))
        assert len({workspace.name for workspace, _ in made}) == 1
        assert [created for _, created in made].count(True) == 1

    async def test_the_same_request_of_another_principal_is_another(self, workspaces: Workspaces) -> None:
        first, _ = await workspaces.create(ALICE, request_id=REQUEST)
        second, created = await workspaces.create(BOB, request_id=REQUEST)
        assert created
        assert first.name != second.name

    async def test_the_same_request_for_something_else_is_refused(self, workspaces: Workspaces) -> None:
        await workspaces.create(ALICE, request_id=REQUEST)
        with pytest.raises(AlreadyExistsError, match="request_id: was used with other parameters"):
            await workspaces.create(ALICE, request_id=REQUEST, quota_bytes=5)

    @pytest.mark.parametrize("request_id", ["short", "x" * 65])
    async def test_a_request_id_of_another_length_names_the_limits(
        self, workspaces: Workspaces, request_id: str
    ) -> None:
        with pytest.raises(InvalidArgumentError, match="request_id: must be 16 to 64 characters"):
            await workspaces.create(ALICE, request_id=request_id)

    async def test_more_than_the_largest_quota_names_both(self, workspaces: Workspaces) -> None:
        with pytest.raises(
            InvalidArgumentError, match="quota_bytes: is 100001, the policy's maximum is 100000"
        ):
            await workspaces.create(ALICE, quota_bytes=100_001)

    @pytest.mark.parametrize("ttl", [0.0, -1.0, 3_601.0, float("nan"), float("inf")])
    async def test_a_life_out_of_bounds_names_them(self, workspaces: Workspaces, ttl: float) -> None:
        with pytest.raises(InvalidArgumentError, match=r"ttl: is .* s, it must be 1 to 3600 s"):
            await workspaces.create(ALICE, ttl_seconds=ttl)

    async def test_one_principal_cannot_take_all(
        self, workspaces: Workspaces, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_WORKSPACES_OF_ONE", 2)
        for _ in range(2):
            await workspaces.create(ALICE)
        with pytest.raises(ResourceExhaustedError, match="there are 2 workspaces already"):
            await workspaces.create(ALICE)
        await workspaces.create(BOB)

    async def test_expired_ones_give_way_when_there_are_too_many(
        self, workspaces: Workspaces, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_WORKSPACES", 1)
        await workspaces.create(ALICE)
        with pytest.raises(ResourceExhaustedError, match="there are 1 workspaces already"):
            await workspaces.create(BOB)
        clock.now += 601
        await workspaces.create(BOB)


class TestOwning:
    async def test_somebody_elses_is_not_there(self, workspaces: Workspaces) -> None:
        name = await _made(workspaces)
        for stranger in (BOB, replace(ALICE, tenant="other")):
            with pytest.raises(NotFoundError, match="or it is not yours"):
                workspaces.get(name, stranger)
            with pytest.raises(NotFoundError):
                await workspaces.delete(name, stranger)
            with pytest.raises(NotFoundError):
                async with workspaces.files(name, stranger):
                    raise AssertionError
            with pytest.raises(NotFoundError):
                async with workspaces.turn(name, stranger, end=Ends()):
                    raise AssertionError
        assert workspaces.get(name, ALICE).name == name

    async def test_another_person_behind_the_same_key_may_use_it(self, workspaces: Workspaces) -> None:
        name = await _made(workspaces)
        assert workspaces.get(name, replace(ALICE, subject="c" * 64)).owner.subject == ALICE.subject

    async def test_another_replicas_is_gone_with_it(self, workspaces: Workspaces) -> None:
        with pytest.raises(UnavailableError, match="held by the replica 'tools-7'"):
            workspaces.get(f"workspaces/tools-7.{'0' * 32}", ALICE)

    @pytest.mark.parametrize(
        "name",
        ["", "workspaces/", f"workspaces/{'0' * 32}", "workspaces/local.0", f"runs/local.{'0' * 32}",
         f"workspaces/local.{'0' * 31}/", "workspaces/local.../../../../../../../../etc"],
    )  # fmt: skip
    async def test_what_is_no_name_says_what_one_is(self, workspaces: Workspaces, name: str) -> None:
        with pytest.raises(
            InvalidArgumentError, match=r"must be workspaces/<replica>\.<32 hexadecimal digits>"
        ):
            workspaces.get(name, ALICE)


class TestLiving:
    async def test_an_unused_one_ends(self, workspaces: Workspaces, clock: Clock, tmp_path: Path) -> None:
        name = await _made(workspaces, a=b"secret")
        clock.now += 600
        with pytest.raises(NotFoundError):
            workspaces.get(name, ALICE)
        assert await workspaces.sweep() == 1
        assert await workspaces.sweep() == 0
        assert list((tmp_path / "state").rglob("a")) == []

    async def test_one_that_the_disk_does_not_give_up_does_not_stop_the_others(
        self, workspaces: Workspaces, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bad, good = await _made(workspaces), await _made(workspaces)
        remove = Shelf.remove

        def failing(shelf: Shelf, number: str) -> tuple[int, int]:
            if number in bad:
                raise OSError(5, "Input/output error")
            return remove(shelf, number)

        monkeypatch.setattr(Shelf, "remove", failing)
        clock.now += 601
        assert await workspaces.sweep() == 2
        for name in (bad, good):
            with pytest.raises(NotFoundError):
                workspaces.get(name, ALICE)

    async def test_using_it_keeps_it(self, workspaces: Workspaces, clock: Clock) -> None:
        name = await _made(workspaces, a=b"x")
        clock.now += 599
        async with workspaces.files(name, ALICE) as files:
            await files.read("a")
        clock.now += 599
        assert workspaces.get(name, ALICE).expires_at == clock.now + 1

    async def test_one_in_use_does_not_end(self, workspaces: Workspaces, clock: Clock) -> None:
        name = await _made(workspaces)
        async with workspaces.turn(name, ALICE, end=Ends()):
            clock.now += 10_000
            assert await workspaces.sweep() == 0
            assert workspaces.get(name, ALICE).expires_at == clock.now + 600
        assert workspaces.get(name, ALICE).expires_at == clock.now + 600


class TestUsing:
    async def test_files_are_counted(self, workspaces: Workspaces) -> None:
        name = await _made(workspaces, a=b"12345", b=b"678")
        workspace = workspaces.get(name, ALICE)
        assert (workspace.used_bytes, workspace.inodes) == (8, 2)
        async with workspaces.files(name, ALICE) as files:
            assert await files.delete("a") == Removed(1, 5)
            assert files.workspace.used_bytes == 3

    async def test_a_listing_comes_in_pages(self, workspaces: Workspaces) -> None:
        name = await _made(workspaces, a=b"1", b=b"2", c=b"3", d=b"4", e=b"5")
        async with workspaces.files(name, ALICE) as files:
            first = await files.list(page_size=2, with_digests=True)
            assert [info.path for info in first.files] == ["a", "b"]
            assert first.files[0].sha256 == hashlib.sha256(b"1").digest()
            await files.delete("b")
            await files.delete("c")
            second = await files.list(page_size=2, with_digests=True, page_token=first.next_page_token)
            assert ([info.path for info in second.files], second.next_page_token) == (["d", "e"], "")
            with pytest.raises(InvalidArgumentError, match="page_token: belongs to another list"):
                await files.list(page_size=2, page_token=first.next_page_token)

    async def test_references_are_what_a_run_is_cleared_for(self, workspaces: Workspaces) -> None:
        name = await _made(workspaces, a=b"12345")
        async with workspaces.files(name, ALICE) as files:
            [reference] = await files.references(["a"])
        assert (reference.path, reference.size) == ("a", 5)
        assert reference.sha256 == hashlib.sha256(b"12345").digest()

    async def test_writes_at_the_same_time_keep_the_quota(self, workspaces: Workspaces) -> None:
        name = await _made(workspaces)

        async def write(number: int) -> bool:
            async with workspaces.files(name, ALICE) as files:
                try:
                    await files.write(str(number), b"x" * 3_000, mode=WriteMode.CREATE)
                except ResourceExhaustedError:
                    return False
                return True

        assert (await asyncio.gather(*(write(number) for number in range(12)))).count(True) == 3
        assert workspaces.get(name, ALICE).used_bytes == 9_000

    async def test_nothing_stays_open(self, workspaces: Workspaces) -> None:
        name = await _made(workspaces, a=b"x")
        before = _open_descriptors()
        async with workspaces.turn(name, ALICE, end=Ends()) as turn:
            await turn.files.read("a")
        assert _open_descriptors() == before


class TestTurns:
    async def test_a_run_gets_its_files_and_gives_its_changes_back(
        self, workspaces: Workspaces, run_directory: Place
    ) -> None:
        name = await _made(workspaces, a=b"old")
        async with workspaces.turn(name, ALICE, end=Ends()) as turn:
            references = await turn.files.references(["a"])
            await asyncio.to_thread(turn.prepare(references), run_directory.descriptor)
            assert turn.known == {"a": hashlib.sha256(b"old").digest()}
            (run_directory.path / "a").write_bytes(b"new!")
            changes = await turn.take_back(run_directory.descriptor)
            assert [one.path for one in changes.written] == ["a"]
            assert turn.workspace.used_bytes == 4
            assert (await turn.files.read("a")).data == b"new!"

    async def test_runs_of_one_workspace_follow_one_another(self, workspaces: Workspaces) -> None:
        name = await _made(workspaces)
        order: list[str] = []

        async def run(number: int) -> None:
            async with workspaces.turn(name, ALICE, end=Ends()):
                order.append(f"begin {number}")
                await asyncio.sleep(0)
                order.append(f"end {number}")

        await asyncio.gather(*(run(number) for number in range(4)))
        assert order == [f"{what} {number}" for number in range(4) for what in ("begin", "end")]

    async def test_runs_of_different_workspaces_do_not_wait(self, workspaces: Workspaces) -> None:
        first, second = await _made(workspaces), await _made(workspaces)
        async with (
            workspaces.turn(first, ALICE, end=Ends()),
            workspaces.turn(second, ALICE, end=Ends()),
        ):
            pass

    async def test_files_are_read_and_written_during_a_run(self, workspaces: Workspaces) -> None:
        name = await _made(workspaces, a=b"x")
        async with workspaces.turn(name, ALICE, end=Ends()), workspaces.files(name, ALICE) as files:
            await files.write("b", b"y", mode=WriteMode.CREATE)
            assert (await files.read("a")).data == b"x"

    async def test_too_many_waiting_runs_are_turned_away_with_a_time(self, workspaces: Workspaces) -> None:
        name = await _made(workspaces)

        async def run() -> None:
            async with workspaces.turn(name, ALICE, end=Ends()):
                await held.wait()

        held = asyncio.Event()
        runs = [asyncio.create_task(run()) for _ in range(MAX_WAITING + 1)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError, match="16 runs wait for their turn") as failure:
            async with workspaces.turn(name, ALICE, end=Ends()):
                raise AssertionError
        assert failure.value.retry_after_seconds
        held.set()
        await asyncio.gather(*runs)

    async def test_a_run_that_gives_up_waiting_leaves_the_queue(self, workspaces: Workspaces) -> None:
        name = await _made(workspaces)

        async def wait() -> None:
            async with workspaces.turn(name, ALICE, end=Ends()):
                raise AssertionError

        async with workspaces.turn(name, ALICE, end=Ends()):
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        async with workspaces.turn(name, ALICE, end=Ends()):
            pass
        assert await workspaces.delete(name, ALICE) == Removed()

    async def test_what_prepares_after_the_turn_touches_nothing(
        self, workspaces: Workspaces, run_directory: Place
    ) -> None:
        name = await _made(workspaces, a=b"x")
        async with workspaces.turn(name, ALICE, end=Ends()) as turn:
            prepare = turn.prepare(await turn.files.references(["a"]))
        with pytest.raises(CancelledError, match="given up"):
            prepare(run_directory.descriptor)
        assert list(run_directory.path.iterdir()) == []


class TestDeleting:
    async def test_its_files_are_gone(self, workspaces: Workspaces, tmp_path: Path) -> None:
        name = await _made(workspaces, a=b"12345", b=b"678")
        assert await workspaces.delete(name, ALICE) == Removed(inodes=2, freed_bytes=8, runs=0)
        assert [path for path in (tmp_path / "state").rglob("*") if path.name in {"a", "b"}] == []
        with pytest.raises(NotFoundError):
            workspaces.get(name, ALICE)

    async def test_one_that_is_gone_is_no_error(self, workspaces: Workspaces) -> None:
        name = await _made(workspaces)
        await workspaces.delete(name, ALICE)
        assert await workspaces.delete(name, ALICE) == Removed()

    async def test_its_runs_are_told_to_end_and_waited_for(self, workspaces: Workspaces) -> None:
        name = await _made(workspaces, a=b"12345")
        running, waiting = Ends(), Ends()
        begun = asyncio.Event()

        async def run() -> bytes:
            async with workspaces.turn(name, ALICE, end=running) as turn:
                begun.set()
                await running.told.wait()
                return (await turn.files.read("a")).data

        async def wait() -> None:
            async with workspaces.turn(name, ALICE, end=waiting):
                raise AssertionError

        first = asyncio.create_task(run())
        await begun.wait()
        second = asyncio.create_task(wait())
        await asyncio.sleep(0)
        assert await workspaces.delete(name, ALICE) == Removed(inodes=1, freed_bytes=5, runs=2)
        assert (await first, running.count, waiting.count) == (b"12345", 1, 1)
        with pytest.raises(NotFoundError):
            await second

    async def test_a_caller_who_goes_away_does_not_stop_it(
        self, workspaces: Workspaces, tmp_path: Path
    ) -> None:
        name = await _made(workspaces, a=b"secret")
        ends = Ends()
        async with workspaces.turn(name, ALICE, end=ends):
            deleting = asyncio.create_task(workspaces.delete(name, ALICE))
            await ends.told.wait()
            deleting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await deleting
        await workspaces.aclose()
        assert list((tmp_path / "state").rglob("a")) == []

    async def test_a_person_is_erased(self, workspaces: Workspaces) -> None:
        mine, theirs = await _made(workspaces, a=b"12345"), await _made(workspaces, BOB)
        await _made(workspaces, b=b"678")
        assert await workspaces.erase("acme", ALICE.subject) == (2, 8)
        with pytest.raises(NotFoundError):
            workspaces.get(mine, ALICE)
        assert workspaces.get(theirs, BOB)

    async def test_nobody_else_is_erased(self, workspaces: Workspaces) -> None:
        service = replace(ALICE, principal="service", subject="")
        names = [await _made(workspaces, service), await _made(workspaces)]
        assert await workspaces.erase("acme", "") == (0, 0)
        assert await workspaces.erase("other", ALICE.subject) == (0, 0)
        assert workspaces.get(names[0], service)
        assert workspaces.get(names[1], ALICE)


class TestRestarting:
    async def test_what_lives_is_found_again(self, workspaces: Workspaces, opening: Opening) -> None:
        workspace, _ = await workspaces.create(ALICE, request_id=REQUEST, quota_bytes=500)
        async with workspaces.files(workspace.name, ALICE) as files:
            await files.write("a/b", b"12345", mode=WriteMode.CREATE)
        again = await _reopened(workspaces, opening)
        found, created = await again.create(ALICE, request_id=REQUEST, quota_bytes=500)
        assert (found.name, created) == (workspace.name, False)
        assert (found.used_bytes, found.inodes, found.owner) == (5, 2, ALICE)
        async with again.files(found.name, ALICE) as files:
            assert (await files.read("a/b")).data == b"12345"

    @pytest.mark.parametrize("crash", [False, True], ids=["stop", "crash"])
    async def test_its_last_use_counts_after_a_restart(
        self, workspaces: Workspaces, opening: Opening, clock: Clock, crash: bool
    ) -> None:
        name = await _made(workspaces)
        clock.now += 300
        async with workspaces.files(name, ALICE):
            pass
        used_at = clock.now
        clock.now += 59
        async with workspaces.files(name, ALICE):
            pass
        if crash:
            workspaces._held.clear()
        again = await _reopened(workspaces, opening)
        assert again.get(name, ALICE).expires_at == used_at + 600 + (0 if crash else 59)

    async def test_what_expired_meanwhile_is_deleted(
        self, workspaces: Workspaces, opening: Opening, clock: Clock, tmp_path: Path
    ) -> None:
        await _made(workspaces, a=b"secret")
        clock.now += 601
        await _reopened(workspaces, opening)
        assert list((tmp_path / "state").rglob("a")) == []

    async def test_what_another_replica_held_is_deleted(
        self, workspaces: Workspaces, opening: Opening, tmp_path: Path
    ) -> None:
        await _made(workspaces, a=b"secret")
        await _reopened(workspaces, opening, replica="other")
        assert list((tmp_path / "state").rglob("a")) == []

    @pytest.mark.parametrize("record", [b"", b"{}", b"[]", b"null", b"\xff", b'{"replica": 1}'])
    async def test_a_damaged_one_is_deleted_and_the_others_are_not(
        self, workspaces: Workspaces, opening: Opening, tmp_path: Path, record: bytes
    ) -> None:
        damaged, whole = await _made(workspaces, a=b"x"), await _made(workspaces, b=b"y")
        await workspaces.aclose()
        directory = tmp_path / "state/workspaces" / damaged.rpartition(".")[2]
        (directory / "record.json").write_bytes(record)
        again = await opening()
        assert not directory.exists()
        assert again.get(whole, ALICE)

    async def test_a_half_made_deletion_is_finished(
        self, workspaces: Workspaces, opening: Opening, tmp_path: Path
    ) -> None:
        trash = tmp_path / "state/workspaces/trash/left"
        trash.mkdir()
        (trash / "a").write_bytes(b"secret")
        await _reopened(workspaces, opening)
        assert not trash.exists()

    async def test_two_processes_never_share_a_directory(
        self, workspaces: Workspaces, opening: Opening
    ) -> None:
        with pytest.raises(FailedPreconditionError, match="is used by another process"):
            await opening()

    async def test_a_place_that_is_no_directory_of_ours_says_so(
        self, opening: Opening, tmp_path: Path
    ) -> None:
        (tmp_path / "state").mkdir()
        (tmp_path / "state/file").touch()
        with pytest.raises(FailedPreconditionError, match=r"cannot hold this service's state .*user"):
            await opening(directory="file")
        (tmp_path / "state/linked").mkdir()
        (tmp_path / "state/linked/lock").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FailedPreconditionError, match="cannot hold this service's state"):
            await opening(directory="linked")

    async def test_the_directory_is_private(self, workspaces: Workspaces, tmp_path: Path) -> None:
        name = await _made(workspaces, a=b"x")
        directory = tmp_path / "state/workspaces"
        assert directory.stat().st_mode & 0o7777 == 0o700
        assert (directory / name.rpartition(".")[2] / "files/a").stat().st_mode & 0o077 == 0


class TestHostDirectory:
    @pytest.fixture
    async def private(self, opening: Opening, tmp_path: Path) -> Workspaces:
        rules = replace(RULES, allow_host_directory=True, protected=(str(tmp_path / "state"), "/run/kala"))
        return await opening(rules=rules, directory="private")

    async def test_it_is_shown_and_read(self, private: Workspaces, tmp_path: Path) -> None:
        work = tmp_path / "work"
        work.mkdir()
        (work / "a").write_bytes(b"hello")
        workspace, _ = await private.create(ALICE, host_directory=str(work))
        async with private.turn(workspace.name, ALICE, end=Ends()) as turn:
            assert turn.host_directory == workspace.host_directory == str(work)
            assert (await turn.files.read("host/a")).data == b"hello"

    async def test_elsewhere_it_is_refused(self, workspaces: Workspaces, tmp_path: Path) -> None:
        with pytest.raises(FailedPreconditionError, match="only by a private suite"):
            await workspaces.create(ALICE, host_directory=str(tmp_path))

    @pytest.mark.parametrize("where", ["/", "state", "state/private", ".", "/run", "link"])
    async def test_no_protected_place_is_shown(self, private: Workspaces, tmp_path: Path, where: str) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "state")
        with pytest.raises(FailedPreconditionError, match="no sandbox may see"):
            await private.create(ALICE, host_directory=str(tmp_path / where))

    async def test_a_relative_one_names_the_field(self, private: Workspaces) -> None:
        with pytest.raises(InvalidArgumentError, match="host_directory: must be an absolute path"):
            await private.create(ALICE, host_directory="work")

    @pytest.mark.parametrize("where", ["nothing", "file"])
    async def test_what_is_no_directory_is_refused(
        self, private: Workspaces, tmp_path: Path, where: str
    ) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(FailedPreconditionError):
            await private.create(ALICE, host_directory=str(tmp_path / where))

    async def test_one_that_was_replaced_since_is_looked_at_again(
        self, private: Workspaces, tmp_path: Path
    ) -> None:
        work = tmp_path / "work"
        work.mkdir()
        workspace, _ = await private.create(ALICE, host_directory=str(work))
        work.rmdir()
        work.symlink_to(tmp_path / "state")
        with pytest.raises(FailedPreconditionError, match="no sandbox may see"):
            async with private.turn(workspace.name, ALICE, end=Ends()):
                raise AssertionError
        async with private.files(workspace.name, ALICE) as files:
            with pytest.raises(KalaError):
                await files.list("host")
