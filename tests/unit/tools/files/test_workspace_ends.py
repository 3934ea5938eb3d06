"""Runs of a workspace take turns; it ends by its owner, its service's restart, or not at all where it shows a host's directory."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from kala.errors import (
    CancelledError,
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    ResourceExhaustedError,
)
from services.tools.files.model import Removed, WriteMode
from services.tools.files.workspaces import MAX_WAITING, Workspaces
from tests.fakes.workspaces import ALICE, BOB, REQUEST, RULES, Clock, Ends, Opening, made

from .conftest import Place


async def reopened(workspaces: Workspaces, opening: Opening, **changes: object) -> Workspaces:
    """As after a restart."""
    await workspaces.aclose()
    return await opening(**changes)


class TestTurns:
    async def test_a_run_gets_its_files_and_gives_its_changes_back(
        self, workspaces: Workspaces, run_directory: Place
    ) -> None:
        name = await made(workspaces, a=b"old")
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
        name = await made(workspaces)
        order: list[str] = []

        async def run(number: int) -> None:
            async with workspaces.turn(name, ALICE, end=Ends()):
                order.append(f"begin {number}")
                await asyncio.sleep(0)
                order.append(f"end {number}")

        await asyncio.gather(*(run(number) for number in range(4)))
        assert order == [f"{what} {number}" for number in range(4) for what in ("begin", "end")]

    async def test_runs_of_different_workspaces_do_not_wait(self, workspaces: Workspaces) -> None:
        first, second = await made(workspaces), await made(workspaces)
        async with (
            workspaces.turn(first, ALICE, end=Ends()),
            workspaces.turn(second, ALICE, end=Ends()),
        ):
            pass

    async def test_files_are_read_and_written_during_a_run(self, workspaces: Workspaces) -> None:
        name = await made(workspaces, a=b"x")
        async with workspaces.turn(name, ALICE, end=Ends()), workspaces.files(name, ALICE) as files:
            await files.write("b", b"y", mode=WriteMode.CREATE)
            assert (await files.read("a")).data == b"x"

    async def test_too_many_waiting_runs_are_turned_away_with_a_time(self, workspaces: Workspaces) -> None:
        name = await made(workspaces)

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
        name = await made(workspaces)

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
        name = await made(workspaces, a=b"x")
        async with workspaces.turn(name, ALICE, end=Ends()) as turn:
            prepare = turn.prepare(await turn.files.references(["a"]))
        with pytest.raises(CancelledError, match="given up"):
            prepare(run_directory.descriptor)
        assert list(run_directory.path.iterdir()) == []


class TestDeleting:
    async def test_its_files_are_gone(self, workspaces: Workspaces, tmp_path: Path) -> None:
        name = await made(workspaces, a=b"12345", b=b"678")
        assert await workspaces.delete(name, ALICE) == Removed(inodes=2, freed_bytes=8, runs=0)
        assert [path for path in (tmp_path / "state").rglob("*") if path.name in {"a", "b"}] == []
        with pytest.raises(NotFoundError):
            workspaces.get(name, ALICE)

    async def test_one_that_is_gone_is_no_error(self, workspaces: Workspaces) -> None:
        name = await made(workspaces)
        await workspaces.delete(name, ALICE)
        assert await workspaces.delete(name, ALICE) == Removed()

    async def test_its_runs_are_told_to_end_and_waited_for(self, workspaces: Workspaces) -> None:
        name = await made(workspaces, a=b"12345")
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
        name = await made(workspaces, a=b"secret")
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
        mine, theirs = await made(workspaces, a=b"12345"), await made(workspaces, BOB)
        await made(workspaces, b=b"678")
        assert await workspaces.erase("acme", ALICE.subject) == (2, 8)
        with pytest.raises(NotFoundError):
            workspaces.get(mine, ALICE)
        assert workspaces.get(theirs, BOB)

    async def test_nobody_else_is_erased(self, workspaces: Workspaces) -> None:
        service = replace(ALICE, principal="service", subject="")
        names = [await made(workspaces, service), await made(workspaces)]
        assert await workspaces.erase("acme", "") == (0, 0)
        assert await workspaces.erase("other", ALICE.subject) == (0, 0)
        assert workspaces.get(names[0], service)
        assert workspaces.get(names[1], ALICE)


class TestRestarting:
    async def test_what_lives_is_found_again(self, workspaces: Workspaces, opening: Opening) -> None:
        workspace, _ = await workspaces.create(ALICE, request_id=REQUEST, quota_bytes=500)
        async with workspaces.files(workspace.name, ALICE) as files:
            await files.write("a/b", b"12345", mode=WriteMode.CREATE)
        again = await reopened(workspaces, opening)
        found, created = await again.create(ALICE, request_id=REQUEST, quota_bytes=500)
        assert (found.name, created) == (workspace.name, False)
        assert (found.used_bytes, found.inodes, found.owner) == (5, 2, ALICE)
        async with again.files(found.name, ALICE) as files:
            assert (await files.read("a/b")).data == b"12345"

    @pytest.mark.parametrize("crash", [False, True], ids=["stop", "crash"])
    async def test_its_last_use_counts_after_a_restart(
        self, workspaces: Workspaces, opening: Opening, clock: Clock, crash: bool
    ) -> None:
        name = await made(workspaces)
        clock.now += 300
        async with workspaces.files(name, ALICE):
            pass
        used_at = clock.now
        clock.now += 59
        async with workspaces.files(name, ALICE):
            pass
        if crash:
            workspaces._held.clear()
        again = await reopened(workspaces, opening)
        assert again.get(name, ALICE).expires_at == used_at + 600 + (0 if crash else 59)

    async def test_what_expired_meanwhile_is_deleted(
        self, workspaces: Workspaces, opening: Opening, clock: Clock, tmp_path: Path
    ) -> None:
        await made(workspaces, a=b"secret")
        clock.now += 601
        await reopened(workspaces, opening)
        assert list((tmp_path / "state").rglob("a")) == []

    async def test_what_another_replica_held_is_deleted(
        self, workspaces: Workspaces, opening: Opening, tmp_path: Path
    ) -> None:
        await made(workspaces, a=b"secret")
        await reopened(workspaces, opening, replica="other")
        assert list((tmp_path / "state").rglob("a")) == []

    @pytest.mark.parametrize("record", [b"", b"{}", b"[]", b"null", b"\xff", b'{"replica": 1}'])
    async def test_a_damaged_one_is_deleted_and_the_others_are_not(
        self, workspaces: Workspaces, opening: Opening, tmp_path: Path, record: bytes
    ) -> None:
        damaged, whole = await made(workspaces, a=b"x"), await made(workspaces, b=b"y")
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
        await reopened(workspaces, opening)
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
        name = await made(workspaces, a=b"x")
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
