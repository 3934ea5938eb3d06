"""Workspaces of two people under a clock of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from services.tools.files.model import Owner, WorkspaceRules, WriteMode
from services.tools.files.workspaces import Workspaces

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


async def made(workspaces: Workspaces, owner: Owner = ALICE, **files: bytes) -> str:
    workspace, _ = await workspaces.create(owner)
    async with workspaces.files(workspace.name, owner) as opened:
        for path, data in files.items():
            await opened.write(path, data, mode=WriteMode.CREATE)
    return workspace.name
