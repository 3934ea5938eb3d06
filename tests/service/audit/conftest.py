"""Databases for tests that hold on both."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from services.audit.migrate import migrate_sqlite


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of the current schema that holds no log yet; made once."""
    path = tmp_path_factory.mktemp("empty") / "empty.db"
    migrate_sqlite(path)
    return path


@pytest.fixture
def audit_database(tmp_path: Path, empty_database: Path) -> str:
    """Where a log may live."""
    path = tmp_path / "audit.db"
    shutil.copyfile(empty_database, path)
    return str(path)
