"""What the tests of the shared runtime need: a directory for sockets and throwaway certificates."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.fakes.certificates import TestAuthority


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A directory that only its owner may enter, as sockets need."""
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def undone_logging() -> Iterator[None]:
    """Put logging back as it was, after a test that configures it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    """An authority that exists for one test run."""
    return TestAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def stranger_authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    """Another authority, which the suite does not trust."""
    return TestAuthority(tmp_path_factory.mktemp("stranger"))
