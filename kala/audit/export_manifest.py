"""The manifest of an export: what it holds, signed, and the proof that its lines are entries of the log.

services/audit/README.md lists the fields. Pure: the log builds manifests with this module, an outsider reads them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from kala.audit import canonical, shapes
from kala.audit.canonical import Json
from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.merkle import HASH_BYTES
from kala.audit.note import Verifier, open_note
from kala.errors import VerificationError

SCHEMA: Final = "kala.audit.export.v1"
JSONL: Final = "jsonl"
FORMATS: Final = frozenset({JSONL, "ocsf", "cef", "otlp"})
# What the log writes stays below it; a reader takes no more.
MAX_MANIFEST_BYTES: Final = 34 * 1024 * 1024
_RUN: Final = 2

Run = tuple[int, int]
"""The first index and how many entries follow each other from there."""


def _is_run(value: object) -> bool:
    return isinstance(value, list) and len(value) == _RUN and all(map(shapes.integer_up_to(), value))


def _is_filter(value: object) -> bool:
    return isinstance(value, dict)


_FIELDS: Final[Mapping[str, shapes.Check]] = {
    "schema": shapes.one_of(frozenset({SCHEMA})),
    "origin": shapes.filled,
    "format": shapes.one_of(FORMATS),
    "filter": _is_filter,
    "created_at": shapes.is_time,
    "receipt": shapes.matches("rcpt_[0-9a-f]{32}"),
    "count": shapes.integer_up_to(),
    "bytes": shapes.integer_up_to(),
    "sha256": shapes.hex32,
    "indexes": shapes.list_of(_is_run),
    "tree_size": shapes.integer_up_to(least=1),
    "checkpoint": shapes.filled,
    "proof": shapes.optional(shapes.is_text),
    "signature": shapes.filled,
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest whose signatures hold; whether the data is what it says is still to be checked.

    `hashes` are those of `gap_subtrees(runs, checkpoint.size)` in their order; None where the format carries no proof.
    """

    origin: str
    format: str
    filter: Mapping[str, Json]
    created_at: str
    receipt: str
    count: int
    size_bytes: int
    sha256: str
    runs: Sequence[Run]
    checkpoint: Checkpoint
    checkpoint_note: str
    hashes: Sequence[bytes] | None

    @property
    def is_whole(self) -> bool:
        """Whether the export holds every entry of the log at its size."""
        return tuple(self.runs) == ((0, self.checkpoint.size),)


def signed_text(fields: Mapping[str, Json]) -> str:
    """What the log signs: the schema and the digest of the manifest's canonical JSON without `signature`."""
    rest = {key: value for key, value in fields.items() if key != "signature"}
    return f"{SCHEMA}\n{sha256(canonical.encode(rest)).hexdigest()}\n"


def parse_manifest(data: bytes, trusted: Sequence[Verifier]) -> Manifest:
    """Returns the manifest that a trusted log signed, or raises `VerificationError` naming what is wrong with it."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise VerificationError(f"an export's manifest has at most {MAX_MANIFEST_BYTES} bytes")
    value = canonical.decode(data.removesuffix(b"\n"))
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise VerificationError(f"the manifest's schema is not {SCHEMA}")
    if value.keys() != _FIELDS.keys():
        names = ", ".join(sorted(value.keys() ^ _FIELDS.keys()))
        raise VerificationError(f"the manifest has missing or unknown fields: {names}")
    for name, check in _FIELDS.items():
        if not check(value[name]):
            raise VerificationError(f"the manifest's field {name} is malformed")
    return _opened(value, trusted)


def _opened(value: Mapping[str, Json], trusted: Sequence[Verifier]) -> Manifest:
    origin, note = str(value["origin"]), str(value["checkpoint"])
    text = open_note(str(value["signature"]), trusted, signed_by=origin)
    if text != signed_text(value):
        raise VerificationError("the manifest is not the one that was signed")
    checkpoint = open_checkpoint(note, trusted)
    if (checkpoint.origin, checkpoint.size) != (origin, value["tree_size"]):
        raise VerificationError("the manifest's checkpoint is of another log or size")
    runs = _runs(value["indexes"], checkpoint.size)
    count = sum(length for _, length in runs)
    if count != value["count"]:
        raise VerificationError(f"the manifest counts {value['count']} entries and lists {count}")
    proof = value["proof"]
    if (proof is None) != (value["format"] != JSONL):
        raise VerificationError("a proof belongs to JSONL and to nothing else")
    applied = value["filter"]
    return Manifest(
        origin=origin,
        format=str(value["format"]),
        filter=applied if isinstance(applied, dict) else {},
        created_at=str(value["created_at"]),
        receipt=str(value["receipt"]),
        count=count,
        size_bytes=int(str(value["bytes"])),
        sha256=str(value["sha256"]),
        runs=runs,
        checkpoint=checkpoint,
        checkpoint_note=note,
        hashes=None if proof is None else _hashes(str(proof), runs, checkpoint.size),
    )


def gap_subtrees(runs: Sequence[Run], size: int) -> Iterator[tuple[int, int]]:
    """The level and index of every subtree that covers what the runs leave out of a tree of `size`, left to right.

    Each is the largest complete one that starts where it stands and stays in its gap, so that a compact range which
    stands there can take it whole.
    """
    start = 0
    for first, length in (*runs, (size, 0)):
        while start < first:
            level = (first - start).bit_length() - 1
            if start:
                level = min(level, (start & -start).bit_length() - 1)
            yield level, start >> level
            start += 1 << level
        start = first + length


def _runs(value: Json, size: int) -> list[Run]:
    runs: list[Run] = []
    end = -1
    for run in value if isinstance(value, list) else ():
        first, length = (int(str(number)) for number in run) if isinstance(run, list) else (0, 0)
        if first <= end or length < 1 or first + length > size:
            raise VerificationError(
                "the manifest's runs of indexes do not ascend, are not apart, or leave the tree"
            )
        end = first + length
        runs.append((first, length))
    return runs


def _hashes(proof: str, runs: Sequence[Run], size: int) -> list[bytes]:
    try:
        data = base64.b64decode(proof, validate=True)
    except ValueError as error:
        raise VerificationError("the manifest's proof is not base64") from error
    needed = sum(1 for _ in gap_subtrees(runs, size))
    if len(data) != needed * HASH_BYTES:
        raise VerificationError(
            f"the manifest's proof has {len(data)} bytes; its runs need {needed} hashes of {HASH_BYTES}"
        )
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]
