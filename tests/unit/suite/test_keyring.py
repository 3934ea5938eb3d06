"""Keys are made once, kept private, and never exchanged unnoticed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kala.audit.note import Signer, Verifier
from kala.errors import FailedPreconditionError
from kala.suite.keyring import make_keyring


def test_every_secret_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    make_keyring(tmp_path / "private", tmp_path / "public")
    for path in (tmp_path / "private").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700


def test_public_files_hold_no_secret(tmp_path: Path) -> None:
    make_keyring(tmp_path / "private", tmp_path / "public")
    for path in (tmp_path / "public").iterdir():
        assert "PRIVATE" not in path.read_text()


def test_making_the_keys_again_changes_nothing(tmp_path: Path) -> None:
    keyring, made = make_keyring(tmp_path / "private", tmp_path / "public")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert set(made) == set(before)
    assert make_keyring(tmp_path / "private", tmp_path / "public") == (keyring, ())
    assert {path: path.read_bytes() for path in before} == before


def test_the_vkey_belongs_to_the_log_key_and_carries_the_log_name(tmp_path: Path) -> None:
    keyring, _ = make_keyring(tmp_path / "private", tmp_path / "public", log_name="audit.example.org/kala")
    verifier = Verifier.parse(keyring.audit_vkey.read_text())
    assert verifier.name == "audit.example.org/kala"
    assert Signer.parse(keyring.audit_log_key.read_text().strip()).verifier == verifier


@pytest.mark.parametrize("name", ["ethics.pub", "audit.vkey"])
def test_an_exchanged_public_key_stops_the_start(tmp_path: Path, name: str) -> None:
    make_keyring(tmp_path / "private", tmp_path / "public")
    make_keyring(tmp_path / "other", tmp_path / "foreign")
    (tmp_path / "public" / name).write_bytes((tmp_path / "foreign" / name).read_bytes())
    with pytest.raises(FailedPreconditionError, match=name):
        make_keyring(tmp_path / "private", tmp_path / "public")


def test_keys_are_random(tmp_path: Path) -> None:
    first, _ = make_keyring(tmp_path / "a", tmp_path / "a-public")
    second, _ = make_keyring(tmp_path / "b", tmp_path / "b-public")
    assert first.audit_kek.read_bytes() != second.audit_kek.read_bytes()
    assert len(first.audit_kek.read_bytes()) == 32
