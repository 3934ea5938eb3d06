"""The keys of logs and witnesses from the command line: made once, never lost, never overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from kala.audit.cosignature import CosignatureKind, Cosigner, Witness
from kala.audit.note import Signer, Verifier
from kala.cli.commands import command_line
from kala.errors import FailedPreconditionError
from kala.suite.keyring import Keyring, make_keyring
from services.audit.keys import load_signer
from services.audit.tile_api import load_token
from services.audit.witness.keys import load_cosigners


def vkeys(keyring: Keyring) -> list[Verifier]:
    return [Verifier.parse(line) for line in keyring.audit_vkey.read_text().split()]


def test_a_logs_key_is_replaced_in_two_steps_and_the_old_one_stays_pinned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keyring, _ = make_keyring(tmp_path / "private", tmp_path / "public")
    old = load_signer(keyring.audit_log_key).verifier
    for _ in range(2):
        assert command_line(["keys", "rotate-log", "--out", str(tmp_path)]) == 0
    both = load_signer(keyring.audit_log_key, keyring.next_audit_log_key)
    assert list(both.verifiers) == vkeys(keyring)
    assert both.verifier == old
    new = both.verifiers[1]
    assert capsys.readouterr().out == f"{new}\n" * 2
    make_keyring(tmp_path / "private", tmp_path / "public")

    assert command_line(["keys", "rotate-log", "--finish", "--out", str(tmp_path)]) == 0
    assert load_signer(keyring.audit_log_key).verifier == new
    assert not keyring.next_audit_log_key.exists()
    assert vkeys(keyring) == [old, new]
    former = keyring.private / f"audit-log-{old.key_id.hex()}.key"
    assert Signer.parse(former.read_text().strip()).verifier == old
    assert former.stat().st_mode & 0o077 == 0
    make_keyring(tmp_path / "private", tmp_path / "public")


def test_there_is_nothing_to_finish_before_it_was_begun(tmp_path: Path) -> None:
    keyring, _ = make_keyring(tmp_path / "private", tmp_path / "public")
    before = keyring.audit_log_key.read_text()
    with pytest.raises(FailedPreconditionError, match="rotate-log"):
        command_line(["keys", "rotate-log", "--finish", "--out", str(tmp_path)])
    assert keyring.audit_log_key.read_text() == before


def test_where_there_is_no_log_key_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="no signing key"):
        command_line(["keys", "rotate-log", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_witness_gets_keys_that_its_process_and_the_log_can_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "witness.key"
    assert command_line(["keys", "cosigner", "witness.test/w1", "--out", str(file)]) == 0
    shown = capsys.readouterr().out.split()
    assert [str(one.witness) for one in load_cosigners(file)] == shown
    assert {Witness.parse(line).kind for line in shown} == set(CosignatureKind)
    assert (tmp_path / "witness.key.vkey").read_text().split() == shown
    assert file.stat().st_mode & 0o077 == 0
    assert "PRIVATE" not in "".join(shown)


def test_a_log_gets_a_second_key_of_one_kind(tmp_path: Path) -> None:
    file = tmp_path / "second.key"
    command_line(["keys", "cosigner", "kala.test/log", "--kind", "ml-dsa-44", "--out", str(file)])
    assert Cosigner.parse(file.read_text()).witness.kind is CosignatureKind.ML_DSA_44


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "witness.key"
    file.write_text("mine")
    with pytest.raises(FailedPreconditionError, match="File exists"):
        command_line(["keys", "cosigner", "witness.test", "--out", str(file)])
    assert file.read_text() == "mine"


def test_a_suite_has_a_token_for_its_tiles(tmp_path: Path) -> None:
    first, _ = make_keyring(tmp_path / "a", tmp_path / "a-public")
    second, _ = make_keyring(tmp_path / "b", tmp_path / "b-public")
    assert load_token(first.audit_tile_token) != load_token(second.audit_tile_token)
