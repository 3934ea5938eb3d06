from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from kala.errors import ConstitutionError
from kala.ethics.constitution import Trust
from kala.ethics.manifest import build_manifest
from kala.ethics.signatures import sign_manifest
from services.common.keys import load_private_key
from services.ethics.watch import ConstitutionWatch
from tests.unit.ethics.conftest import CONSTITUTION


class Clock:
    """A clock whose sleeps end when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.rounds = asyncio.Semaphore(0)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.rounds.acquire()
        self.now += seconds


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CONSTITUTION, tmp_path / "constitution"))


def watch_over(directory: Path, clock: Clock) -> ConstitutionWatch:
    return ConstitutionWatch(
        directory, Trust.development(), interval_seconds=300, clock=clock, sleep=clock.sleep
    )


async def changed_during_watch(watch: ConstitutionWatch, clock: Clock) -> tuple[str, list[str]]:
    told: list[str] = []

    async def on_change() -> None:
        told.append("changed")

    clock.rounds.release()
    with pytest.raises(ConstitutionError) as caught:
        await watch.run(on_change)
    return caught.value.message, told


async def test_a_change_on_disk_is_told_and_names_the_file(directory: Path) -> None:
    clock = Clock()
    watch = watch_over(directory, clock)
    (directory / "laws.yaml").write_text("laws: []\n")
    message, told = await changed_during_watch(watch, clock)
    assert message.startswith("laws.yaml: its bytes are not the ones")
    assert told == ["changed"]


async def test_another_version_signed_as_it_should_be_ends_the_watch_too(directory: Path) -> None:
    clock = Clock()
    watch = watch_over(directory, clock)
    files = dict(watch.in_force.files)
    (directory / "manifest.json").write_bytes(build_manifest(files, "9.9"))
    key_file = directory / "dev" / "development.key"
    key_file.chmod(0o600)
    signature = sign_manifest(build_manifest(files, "9.9"), load_private_key(key_file))
    (directory / "manifest.sig").write_bytes(signature)
    message, told = await changed_during_watch(watch, clock)
    assert "version 9.9 replaced version" in message
    assert told == ["changed"]


async def test_an_unchanged_constitution_is_verified_again_every_interval(directory: Path) -> None:
    clock = Clock()
    watch = watch_over(directory, clock)
    assert watch.verified_at() == 1000.0

    async def never() -> None:
        raise AssertionError("nothing changed")

    task = asyncio.create_task(watch.run(never))
    clock.rounds.release()
    async with asyncio.timeout(5):
        while len(clock.slept) < 2:  # noqa: ASYNC110 - the verification runs on a thread, which has no event
            await asyncio.sleep(0.001)
    assert watch.verified_at() == 1300.0
    assert clock.slept == [300, 300]
    task.cancel()


async def test_the_watch_goes_on_without_the_bytes_once_the_judges_have_them(directory: Path) -> None:
    clock = Clock()
    watch = watch_over(directory, clock)
    digest = watch.in_force.digest
    watch.forget_files()
    assert watch.in_force.digest == digest
    assert dict(watch.in_force.files) == {}
    (directory / "laws.yaml").write_text("laws: []\n")
    message, _ = await changed_during_watch(watch, clock)
    assert message.startswith("laws.yaml")


def test_a_changed_constitution_is_not_even_loaded(directory: Path) -> None:
    (directory / "texts" / "en.yaml").write_text("language: en\n")
    with pytest.raises(ConstitutionError, match=r"texts/en\.yaml"):
        watch_over(directory, Clock())
