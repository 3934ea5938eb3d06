"""Mirrors of logs for the offline verifier: the files of tiled logs, and exports with their manifests."""

from __future__ import annotations

import base64
import functools
import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kala.audit import canonical
from kala.audit.checkpoint import Checkpoint
from kala.audit.export_manifest import gap_subtrees, signed_text
from kala.audit.merkle import leaf_hash, root_of
from kala.audit.note import Signer
from kala.audit.tile_nodes import TileReader
from kala.audit.tile_paths import CHECKPOINT_PATH, TilePath, bundle, bundles_of, tiles_of
from tests.fakes.audit_log import ORIGIN, open_log, record, signer


@functools.cache
def real_leaves(count: int) -> tuple[bytes, ...]:
    """Leaves as the log writes them."""
    with tempfile.TemporaryDirectory() as directory, open_log(Path(directory) / "audit.db") as log:
        log.append(*(record(number) for number in range(count)), with_proof=False)
        return tuple(entry.leaf for entry in map(log.reader.entry, range(count)) if entry is not None)


@dataclass
class Mirror:
    """The files of a tiled log in memory; it is also a source for the verifier."""

    leaves: Sequence[bytes]
    key: Signer = field(default_factory=signer)
    files: dict[str, bytes] = field(init=False)
    asked: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        hashes = [leaf_hash(leaf) for leaf in self.leaves]
        self.rows: list[list[bytes]] = [hashes]
        while len(self.rows[-1]) > 255:
            row = self.rows[-1]
            self.rows.append([root_of(row[i : i + 256]) for i in range(0, len(row) - 255, 256)])
        size = len(hashes)
        self.files = {str(path): b"".join(self.hashes(path)) for path in tiles_of(size)}
        self.files |= {
            str(path): bundle(self.leaves[path.number * 256 : path.number * 256 + path.width])
            for path in bundles_of(size)
        }
        self.files[CHECKPOINT_PATH] = self.note(size).encode()

    def hashes(self, path: TilePath) -> list[bytes]:
        assert path.level is not None
        return self.rows[path.level][path.number * 256 : path.number * 256 + path.width]

    def note(self, size: int) -> str:
        """The signed checkpoint of this size."""
        return self.key.sign(Checkpoint(self.key.verifier.name, size, root_of(self.rows[0][:size])).text())

    def read(self, path: str) -> bytes | None:
        """Be a source."""
        self.asked.append(path)
        return self.files.get(path)

    def expect(self, path: str) -> None:
        """Nothing to fetch."""

    def write(self, root: Path) -> Path:
        """The same as a directory."""
        for path, data in self.files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        return root


def export_of(
    leaves: Sequence[bytes],
    data: Path,
    chosen: Iterable[int] | None = None,
    *,
    key: Signer | None = None,
    **changes: Any,
) -> Path:
    """Writes a JSONL export of the entries `chosen` (all, when None) and its manifest; `changes` go into the manifest."""
    key = key or signer()
    mirror = Mirror(leaves, key)
    size = len(leaves)
    indexes = list(range(size)) if chosen is None else sorted(chosen)
    runs: list[list[int]] = []
    for index in indexes:
        if runs and sum(runs[-1]) == index:
            runs[-1][1] += 1
        else:
            runs.append([index, 1])
    lines = b"".join(leaves[index] + b"\n" for index in indexes)
    reader = TileReader(size, lambda level, first, last: mirror.rows[level][first:last])
    gaps = gap_subtrees([(first, length) for first, length in runs], size)
    manifest: dict[str, Any] = {
        "schema": "kala.audit.export.v1",
        "origin": ORIGIN,
        "format": "jsonl",
        "filter": {},
        "created_at": "2026-11-21T00:00:00.000000Z",
        "receipt": "rcpt_" + "0f" * 16,
        "count": len(indexes),
        "bytes": len(lines),
        "sha256": hashlib.sha256(lines).hexdigest(),
        "indexes": runs,
        "tree_size": size,
        "checkpoint": mirror.note(size),
        "proof": base64.b64encode(b"".join(reader.node(level, index) for level, index in gaps)).decode(),
        **changes,
    }
    manifest["signature"] = key.sign(signed_text(manifest))
    data.write_bytes(lines)
    data.with_name(f"{data.name}.manifest.json").write_bytes(canonical.encode(manifest))
    return data
