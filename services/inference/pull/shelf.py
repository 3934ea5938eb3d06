"""The models directory: files arrive beside it, are held against their checksums, and move in whole.

What was fetched and verified stays for the next try when a pull ends early; a file that is not whole never does.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import AlreadyExistsError, ResourceExhaustedError, VerificationError
from services.inference.pull.plan import MANIFEST, RemoteFile, Source, gigabytes

ARRIVALS: Final = ".pulling"

SPARE_BYTES: Final = 1_000_000_000
"""A disk is not filled to its last byte by a model."""

KEPT_SECONDS: Final = 7 * 24 * 3600.0
"""How long the files of a pull that was not finished wait for its next try."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where one source's files arrive, and where they go."""

    models_dir: Path
    source: Source
    wall_clock: Callable[[], float] = time.time

    @property
    def directory(self) -> Path:
        return self.models_dir / self.source.name

    @contextmanager
    def arriving(self, commit: str) -> Iterator[Path]:
        """Give the folder where files arrive, to this process alone; AlreadyExistsError while another one pulls."""
        arrivals = self.models_dir / ARRIVALS
        arrivals.mkdir(parents=True, exist_ok=True)
        key = f"{self.source.owner}--{self.source.name}"
        with (arrivals / f"{key}.lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise AlreadyExistsError(f"{self.source} is being pulled already; wait for it") from error
            place = arrivals / f"{key}--{commit}"
            self._sweep(arrivals, key, keep=place)
            place.mkdir(exist_ok=True)
            yield place

    def require_ours(self) -> None:
        """Raise AlreadyExistsError where the folder holds something that was not pulled from this source."""
        if not self.directory.exists():
            return
        found = _manifest(self.directory).get("source")
        if found != self.source.repository:
            holds = f"files of {found}" if found else "files that were not pulled"
            raise AlreadyExistsError(
                f"{self.directory} holds {holds}; move it away, or set KALA_INFERENCE_MODELS_DIR to another directory"
            )

    def require_space(self, size: int) -> None:
        """Raise ResourceExhaustedError where the disk is too full for so many bytes."""
        self.models_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.models_dir).free
        if free < size + SPARE_BYTES:
            raise ResourceExhaustedError(
                f"{self.source} needs {gigabytes(size + SPARE_BYTES)} GB in {self.models_dir}, which has "
                f"{gigabytes(free)} GB left; make room, or set KALA_INFERENCE_MODELS_DIR to a larger disk",
                reason="DISK_FULL",
            )

    def install(self, arrived: Path, commit: str, files: Sequence[ContentReference]) -> None:
        """Move verified files in, and last the manifest that vouches for them; what it no longer names is removed."""
        before = _manifest(self.directory).get("files") or {}
        after = {file.name: {"sha256": file.sha256.hex(), "bytes": file.bytes} for file in files}
        # One more file of a repository of many models, and not a new state of it.
        kept = before if self.source.file is not None else {}
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in after:
            (arrived / name).replace(self.directory / name)
        for name in set(before) - set(after) - set(kept):
            (self.directory / Path(name).name).unlink(missing_ok=True)
        manifest = {
            "source": self.source.repository,
            "revision": commit,
            "files": dict(sorted({**kept, **after}.items())),
        }
        temporary = self.directory / f".{MANIFEST}.{os.getpid()}"
        temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.directory / MANIFEST)
        shutil.rmtree(arrived, ignore_errors=True)

    def present(self, commit: str, files: Sequence[RemoteFile]) -> list[ContentReference] | None:
        """Give the files if all of them are here from this commit, whole by their checksums; else None."""
        if _manifest(self.directory).get("revision") != commit:
            return None
        found: list[ContentReference] = []
        for file in files:
            path = self.directory / file.name
            if not is_whole(path, file):
                return None
            found.append(reference(path, file))
        return found

    def _sweep(self, arrivals: Path, key: str, *, keep: Path) -> None:
        """Remove what earlier pulls of this source left for another commit, and what nobody came back for."""
        oldest = self.wall_clock() - KEPT_SECONDS
        for path in arrivals.iterdir():
            if not path.is_dir() or path == keep:
                continue
            if path.name.startswith(f"{key}--") or path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True)


def is_whole(path: Path, file: RemoteFile) -> bool:
    """Tell whether a file is there with the size and the checksum that the hub gives."""
    try:
        if path.stat().st_size != file.size:
            return False
        return _digest(path, file) == _wanted(file)
    except OSError:
        return False


def require_whole(path: Path, file: RemoteFile) -> ContentReference:
    """Give a downloaded file's reference; a wrong one is removed, and VerificationError raised."""
    if not is_whole(path, file):
        path.unlink(missing_ok=True)
        raise VerificationError(
            f"{file.name} did not arrive as the hub lists it (size or checksum); pull again",
            reason="CHECKSUM_MISMATCH",
        )
    return reference(path, file)


def reference(path: Path, file: RemoteFile) -> ContentReference:
    """Name a file with its SHA-256 and size."""
    digest = file.sha256
    if digest is None:
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").digest()
    return ContentReference(name=file.name, sha256=digest, bytes=file.size)


def _digest(path: Path, file: RemoteFile) -> str:
    if file.sha256 is not None:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    # git's digest of a blob (git-hash-object): small files of a repository have no other.
    git = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    git.update(path.read_bytes())
    return git.hexdigest()


def _wanted(file: RemoteFile) -> str:
    return file.git_sha1 if file.sha256 is None else file.sha256.hex()


def _manifest(directory: Path) -> dict[str, Any]:  # Any: JSON of a file
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}
