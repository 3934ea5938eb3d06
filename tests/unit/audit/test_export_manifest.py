"""The manifest of an export: what it may say, and the subtrees that stand for what was left out."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kala.audit import canonical
from kala.audit.checkpoint import Checkpoint
from kala.audit.export_manifest import SCHEMA, Run, gap_subtrees, parse_manifest, signed_text
from kala.audit.merkle import CompactRange, leaf_hash, node_hash
from kala.audit.note import Signer
from kala.errors import VerificationError

SIGNER = Signer.of("kala.test/audit", b"s" * 32)
OTHER = Signer.of("kala.test/audit", b"o" * 32)
SIZE = 10


def root_of(level: int, index: int) -> bytes:
    """The root of a complete subtree over leaves that are their own indexes."""
    if level == 0:
        return leaf_hash(str(index).encode())
    return node_hash(root_of(level - 1, 2 * index), root_of(level - 1, 2 * index + 1))


def tree(size: int) -> CompactRange:
    made = CompactRange()
    for index in range(size):
        made.append(root_of(0, index))
    return made


def fields(runs: list[list[int]]) -> dict[str, Any]:
    checkpoint = SIGNER.sign(Checkpoint(SIGNER.verifier.name, SIZE, tree(SIZE).root()).text())
    gaps = gap_subtrees([(first, length) for first, length in runs], SIZE)
    return {
        "schema": SCHEMA,
        "origin": SIGNER.verifier.name,
        "format": "jsonl",
        "filter": {"tenant": "default"},
        "created_at": "2026-09-21T14:13:20.000000Z",
        "receipt": f"rcpt_{'0' * 32}",
        "count": sum(length for _, length in runs),
        "bytes": 0,
        "sha256": sha256(b"").hexdigest(),
        "indexes": runs,
        "tree_size": SIZE,
        "checkpoint": checkpoint,
        "proof": base64.b64encode(b"".join(root_of(*place) for place in gaps)).decode(),
    }


def signed(value: dict[str, Any], signer: Signer = SIGNER) -> bytes:
    return canonical.encode({**value, "signature": signer.sign(signed_text(value))})


def test_a_signed_manifest_is_read_as_it_was_written() -> None:
    value = fields([[0, 2], [5, 1]])
    manifest = parse_manifest(signed(value) + b"\n", [SIGNER.verifier])
    assert (manifest.runs, manifest.count, manifest.is_whole) == ([(0, 2), (5, 1)], 3, False)
    assert manifest.hashes is not None
    assert len(manifest.hashes) == 4  # over entries 2 and 3, 4, 6 and 7, 8 and 9


def test_an_export_of_everything_needs_no_hash() -> None:
    manifest = parse_manifest(signed(fields([[0, SIZE]])), [SIGNER.verifier])
    assert manifest.is_whole
    assert manifest.hashes == []


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another schema": lambda v: v.update(schema="kala.audit.export.v2"),
    "a missing field": lambda v: v.pop("bytes"),
    "a further field": lambda v: v.update(more=1),
    "another count": lambda v: v.update(count=4),
    "a run that is empty": lambda v: v.update(indexes=[[0, 3], [5, 0]]),
    "runs that touch": lambda v: v.update(indexes=[[0, 2], [2, 1]]),
    "runs that overlap": lambda v: v.update(indexes=[[0, 2], [1, 1]]),
    "runs out of order": lambda v: v.update(indexes=[[5, 1], [0, 2]]),
    "a run beyond the tree": lambda v: v.update(indexes=[[0, 2], [10, 1]]),
    "a run that is none": lambda v: v.update(indexes=[[0, 2, 1]]),
    "a negative run": lambda v: v.update(indexes=[[-1, 3]]),
    "a proof that is too short": lambda v: v.update(proof=v["proof"][:-44]),
    "a proof that is no base64": lambda v: v.update(proof="&" + v["proof"][1:]),
    "no proof for lines": lambda v: v.update(proof=None),
    "a proof for what has none": lambda v: v.update(format="cef"),
    "an unknown format": lambda v: v.update(format="xml"),
    "another size": lambda v: v.update(tree_size=SIZE - 1),
    "an empty tree": lambda v: v.update(tree_size=0),
    "another log": lambda v: v.update(origin="another.log"),
    "a checkpoint of another key": lambda v: v.update(
        checkpoint=OTHER.sign(Checkpoint("kala.test/audit", SIZE, tree(SIZE).root()).text())
    ),
    "a receipt that is none": lambda v: v.update(receipt="rcpt_1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_manifest_that_contradicts_itself_is_refused_though_it_is_signed(change: str) -> None:
    value = copy.deepcopy(fields([[0, 2], [5, 1]]))
    CHANGES[change](value)
    with pytest.raises(VerificationError):
        parse_manifest(signed(value), [SIGNER.verifier])


def test_a_manifest_that_was_changed_or_signed_by_another_is_refused() -> None:
    data = signed(fields([[0, SIZE]]))
    with pytest.raises(VerificationError, match="not the one that was signed"):
        parse_manifest(data.replace(b'"count":10', b'"count":11'), [SIGNER.verifier])
    with pytest.raises(VerificationError):
        parse_manifest(signed(fields([[0, SIZE]]), OTHER), [SIGNER.verifier])
    with pytest.raises(VerificationError, match="canonical"):
        parse_manifest(data.replace(b":", b": ", 1), [SIGNER.verifier])
    with pytest.raises(VerificationError):
        parse_manifest(data, [])


def test_a_checkpoint_is_no_signature_of_a_manifest() -> None:
    value = fields([[0, SIZE]])
    forged = canonical.encode({**value, "signature": value["checkpoint"]})
    with pytest.raises(VerificationError):
        parse_manifest(forged, [SIGNER.verifier])


@given(st.integers(1, 200), st.data())
def test_entries_and_the_subtrees_between_them_make_the_whole_tree(size: int, data: st.DataObject) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, size - 1))))
    runs: list[Run] = []
    for index in chosen:
        if runs and sum(runs[-1]) == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    covered = set(chosen)
    for level, index in gap_subtrees(runs, size):
        leaves = set(range(index << level, index + 1 << level))
        assert not leaves & covered
        covered |= leaves
    assert covered == set(range(size))
