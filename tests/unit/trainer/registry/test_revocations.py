"""The list of revocations: signed, growing, and never lost unnoticed."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1.adapter_pb2 import SignedRevocationList
from kala.errors import FailedPreconditionError
from services.common.adapter_manifest import verify_revocations
from services.trainer.registry.revocations import Revocations
from tests.fakes.adapters import ETHICS, TRAINER, public

ONE, OTHER = sha256(b"one").digest(), sha256(b"other").digest()


def opened(path: Path, key=TRAINER, trusted=None) -> Revocations:
    trusted = public(TRAINER) if trusted is None else trusted
    return Revocations(path, key, trusted, now=lambda: Timestamp(seconds=1_700_000_000))


def read(path: Path):
    return verify_revocations(SignedRevocationList.FromString(path.read_bytes()), public(TRAINER))


def test_a_list_is_there_before_anything_is_revoked(tmp_path: Path) -> None:
    opened(tmp_path / "list")
    assert list(read(tmp_path / "list").revocations) == []


def test_a_revocation_is_on_disk_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "list"
    opened(path).add({ONE: "it lies"})
    again = opened(path)
    before = read(path).serial
    signed = again.add({OTHER: "so does this", ONE: "a second reason"})
    found = read(path)
    assert again.revoked == {ONE, OTHER}
    assert [item.reason for item in found.revocations] == ["it lies", "so does this"]
    assert found.serial == before + 1
    assert signed == again.signed


def test_revoking_twice_changes_nothing(tmp_path: Path) -> None:
    revocations = opened(tmp_path / "list")
    first = revocations.add({ONE: "it lies"})
    assert revocations.add({ONE: "it still lies"}) == first


@pytest.mark.parametrize("damage", [b"", b"\x00", b"x" * 100], ids=["empty", "zero", "noise"])
def test_a_damaged_list_stops_the_start(tmp_path: Path, damage: bytes) -> None:
    opened(tmp_path / "list").add({ONE: "it lies"})
    (tmp_path / "list").write_bytes(damage)
    with pytest.raises(FailedPreconditionError, match="restore it from a backup"):
        opened(tmp_path / "list")


def test_a_list_of_another_key_stops_the_start(tmp_path: Path) -> None:
    opened(tmp_path / "list", key=ETHICS, trusted=public(ETHICS))
    with pytest.raises(FailedPreconditionError, match="no trusted key"):
        opened(tmp_path / "list")


def test_a_lost_or_older_file_gives_way_to_what_the_database_knows(tmp_path: Path) -> None:
    path = tmp_path / "list"
    first = opened(path)
    older = path.read_bytes()
    stored = first.add({ONE: "it lies"})
    for damage in (path.unlink, lambda: path.write_bytes(older)):
        damage()
        again = Revocations(path, TRAINER, public(TRAINER), now=Timestamp, stored=stored)
        assert again.revoked == {ONE}
        assert [item.adapter_digest for item in read(path).revocations] == [ONE]
