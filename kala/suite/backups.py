"""A copy of each database from before a release changes its shape."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError

_REVISION: Final = re.compile(r"^(down_)?revision\b[^=\n]*=\s*(.+)$", re.MULTILINE)
_QUOTED: Final = re.compile(r"[\"']([^\"']+)[\"']")


@dataclass(frozen=True, slots=True)
class Database:
    """A SQLite file and the package whose `migrations/versions` shape it."""

    path: Path
    package: str


def back_up_before_migration(databases: Iterable[Database], into: Path, *, stamp: str) -> list[Path]:
    """Copy every database whose schema is not the newest one; returns the copies.

    A copy is made with SQLite's own backup, so it is whole even when a write-ahead log lies beside the file.
    """
    return [
        _copy(database.path, into / f"{database.path.stem}-{present}-{stamp}.db")
        for database in databases
        if (present := schema_of(database.path)) is not None and present not in heads_of(database.package)
    ]


def back_up_before_release(path: Path, into: Path, *, release: str, stamp: str) -> list[Path]:
    """Copy a small database whose schema only its owner can tell, whenever another release last ran here."""
    marker = into / f"{path.stem}.release"
    last = marker.read_text(encoding="utf-8") if marker.exists() else ""
    if last == release:
        return []
    copies = [_copy(path, into / f"{path.stem}-{last}-{stamp}.db")] if last and path.exists() else []
    marker.write_text(release, encoding="utf-8")
    return copies


def schema_of(path: Path) -> str | None:
    """The alembic revision of a database; None when there is no database yet, or none with a version."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError:
        return None
    except sqlite3.DatabaseError as error:
        raise FailedPreconditionError(f"{path} is damaged: {error}; restore it from a backup") from error
    return None if row is None else str(row[0])


def heads_of(package: str) -> frozenset[str]:
    """The newest revisions that a package's migrations know, read without importing the package's code."""
    found = importlib.util.find_spec(package)
    folders = [] if found is None else [Path(place) for place in found.submodule_search_locations or ()]
    revisions: set[str] = set()
    replaced: set[str] = set()
    for folder in folders:
        for file in (folder / "migrations" / "versions").glob("*.py"):
            for down, value in _REVISION.findall(file.read_text(encoding="utf-8")):
                (replaced if down else revisions).update(_QUOTED.findall(value))
    return frozenset(revisions - replaced)


def _copy(source: Path, target: Path) -> Path:
    with (
        contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as live,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        live.backup(copy)
    target.chmod(0o600)
    return target
