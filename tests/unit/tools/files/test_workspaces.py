"""Workspaces belong to somebody, end in time, and serve one run at a time."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from kala.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.tools.files import workspaces as module
from services.tools.files.model import Removed, WriteMode
from services.tools.files.shelf import Shelf
from services.tools.files.workspaces import Workspaces
from tests.fakes.workspaces import ALICE, BOB, REQUEST, Clock, Ends, made


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
        name = await made(workspaces)
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
        name = await made(workspaces)
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
        name = await made(workspaces, a=b"secret")
        clock.now += 600
        with pytest.raises(NotFoundError):
            workspaces.get(name, ALICE)
        assert await workspaces.sweep() == 1
        assert await workspaces.sweep() == 0
        assert list((tmp_path / "state").rglob("a")) == []

    async def test_one_that_the_disk_does_not_give_up_does_not_stop_the_others(
        self, workspaces: Workspaces, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bad, good = await made(workspaces), await made(workspaces)
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
        name = await made(workspaces, a=b"x")
        clock.now += 599
        async with workspaces.files(name, ALICE) as files:
            await files.read("a")
        clock.now += 599
        assert workspaces.get(name, ALICE).expires_at == clock.now + 1

    async def test_one_in_use_does_not_end(self, workspaces: Workspaces, clock: Clock) -> None:
        name = await made(workspaces)
        async with workspaces.turn(name, ALICE, end=Ends()):
            clock.now += 10_000
            assert await workspaces.sweep() == 0
            assert workspaces.get(name, ALICE).expires_at == clock.now + 600
        assert workspaces.get(name, ALICE).expires_at == clock.now + 600


class TestUsing:
    async def test_files_are_counted(self, workspaces: Workspaces) -> None:
        name = await made(workspaces, a=b"12345", b=b"678")
        workspace = workspaces.get(name, ALICE)
        assert (workspace.used_bytes, workspace.inodes) == (8, 2)
        async with workspaces.files(name, ALICE) as files:
            assert await files.delete("a") == Removed(1, 5)
            assert files.workspace.used_bytes == 3

    async def test_a_listing_comes_in_pages(self, workspaces: Workspaces) -> None:
        name = await made(workspaces, a=b"1", b=b"2", c=b"3", d=b"4", e=b"5")
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
        name = await made(workspaces, a=b"12345")
        async with workspaces.files(name, ALICE) as files:
            [reference] = await files.references(["a"])
        assert (reference.path, reference.size) == ("a", 5)
        assert reference.sha256 == hashlib.sha256(b"12345").digest()

    async def test_writes_at_the_same_time_keep_the_quota(self, workspaces: Workspaces) -> None:
        name = await made(workspaces)

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
        name = await made(workspaces, a=b"x")
        before = _open_descriptors()
        async with workspaces.turn(name, ALICE, end=Ends()) as turn:
            await turn.files.read("a")
        assert _open_descriptors() == before
