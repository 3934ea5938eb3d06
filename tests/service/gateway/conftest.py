"""A gateway over HTTP: one for all tests that only script its peers, and one of their own for tests that break it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fakes.gateway_suite import Suite, running_suite


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_suite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    async with running_suite(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def suite(shared_suite: Suite) -> Suite:
    """The shared suite, as new: peers unscripted, earlier leaves out of sight."""
    await shared_suite.reset()
    return shared_suite


@pytest_asyncio.fixture(loop_scope="session")
async def own_suite(tmp_path: Path) -> AsyncIterator[Suite]:
    """A suite that a test may break."""
    async with running_suite(tmp_path) as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_tool_suite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    async with running_suite(
        tmp_path_factory.mktemp("tools"), has_tools=True, tool_turns=4, tool_calls=3, tool_result_chars=1024
    ) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def tool_suite(shared_tool_suite: Suite) -> Suite:
    """A suite with a tools service, as new."""
    await shared_tool_suite.reset()
    return shared_tool_suite
