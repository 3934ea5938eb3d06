"""Earlier versions of the constitution with judges of their own, so that what they decided can be decided again."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kala.errors import ConstitutionError, FailedPreconditionError
from kala.ethics.constitution import Trust, VerifiedConstitution, read_manifest, verify_constitution
from services.ethics.bench import Bench

VERSIONS_KEPT: Final = 1
"""A version's automata and weights take some 100 MB, and an auditor replays one version after the other."""


class Archive:
    """Finds versions by digest in the folders of one directory, and verifies each with the same trust as the one in force."""

    def __init__(
        self,
        directory: Path | None,
        trust: Trust,
        seat: Callable[[VerifiedConstitution], Bench],
        *,
        kept: int = VERSIONS_KEPT,
    ) -> None:
        self._directory = directory
        self._trust = trust
        self._seat = seat
        self._kept = kept
        self._benches: OrderedDict[bytes, Bench] = OrderedDict()
        self._loading = asyncio.Lock()

    async def bench(self, digest: bytes) -> Bench:
        """The judges of that version; FailedPreconditionError names it when it is missing or not what was signed."""
        async with self._loading:
            bench = self._benches.get(digest)
            if bench is None:
                # First look for it, so that asking for what is not there costs no version that is loaded.
                folder = await asyncio.to_thread(self._find, digest)
                while len(self._benches) >= self._kept:
                    self._benches.popitem(last=False)
                bench = self._benches[digest] = await asyncio.to_thread(self._load, digest, folder)
            self._benches.move_to_end(digest)
            return bench

    def _find(self, digest: bytes) -> Path:
        name = _name(digest)
        if self._directory is None:
            raise FailedPreconditionError(f"constitution {name} is not at hand, and there is no archive")
        folder = self._folder_of(digest)
        if folder is None:
            raise FailedPreconditionError(f"constitution {name} is not at hand, and not in the archive")
        return folder

    def _load(self, digest: bytes, folder: Path) -> Bench:
        name = _name(digest)
        try:
            bench = self._seat(verify_constitution(folder, self._trust))
        except ConstitutionError as error:
            raise FailedPreconditionError(
                f"constitution {name} is not at hand: in the archive's folder {folder.name}, {error.message}"
            ) from error
        if bench.constitution.digest != digest:
            raise FailedPreconditionError(f"constitution {name} changed in the archive while it was read")
        return bench

    def _folder_of(self, digest: bytes) -> Path | None:
        """The folder whose manifest has this digest; folders that hold no constitution are passed over."""
        if self._directory is None or not self._directory.is_dir():
            return None
        for folder in sorted(path for path in self._directory.iterdir() if path.is_dir()):
            try:
                manifest, _ = read_manifest(folder)
            except ConstitutionError:
                continue
            if hashlib.sha256(manifest).digest() == digest:
                return folder
        return None


def _name(digest: bytes) -> str:
    return digest.hex()[:16] or "of no digest"
