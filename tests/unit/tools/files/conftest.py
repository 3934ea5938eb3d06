"""A hostile directory, and what lies outside of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.tools.files.model import WorkspaceRules
from services.tools.files.volume import Account, Volume
from services.tools.files.workspaces import Workspaces
from services.tools.pages import PageTokens
from services.tools.policy.model import Zone
from services.tools.policy.zones import Zones
from tests.fakes.workspaces import RULES, Clock, Opening

EVERYTHING = Zones([Zone("", read=True, write=True, delete=True)])
SECRET = b"the secret of the host"


@dataclass(frozen=True)
class Place:
    """A directory with a descriptor of it."""

    path: Path
    descriptor: int


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "secret.txt").write_bytes(SECRET)
    return directory


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Place]:
    yield from _place(tmp_path / "inside")


@pytest.fixture
def run_directory(tmp_path: Path) -> Iterator[Place]:
    """Stands for a run's /workspace."""
    yield from _place(tmp_path / "run")


@pytest.fixture
def staging(tmp_path: Path) -> Iterator[Place]:
    yield from _place(tmp_path / "staging")


@pytest.fixture
def account() -> Account:
    return Account(quota_bytes=10_000, max_inodes=100)


@pytest.fixture
def volume(inside: Place, staging: Place, account: Account) -> Volume:
    return Volume(root=inside.descriptor, staging=staging.descriptor, account=account, rights=EVERYTHING)


def _place(path: Path) -> Iterator[Place]:
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield Place(path, descriptor)
    os.close(descriptor)


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
