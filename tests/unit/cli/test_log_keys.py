"""The keys of logs and witnesses from the command line: made once, never lost, never overwritten."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from kala.audit.cosignature import CosignatureKind, Cosigner, Witness
from kala.audit.note import Signer, Verifier
from kala.cli.commands import command_line
from kala.errors import FailedPreconditionError
from kala.suite.keyring import Keyring, make_keyring
from kala.suite.layout import StateLayout
from services.audit.keys import load_signer
from services.audit.publishing.tile_api import load_token
from services.audit.witness.keys import load_cosigners
from tests.fakes.audit_log import ORIGIN, LogFile, record


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


def test_the_new_key_does_not_stand_alone_before_the_log_was_restarted_with_both(tmp_path: Path) -> None:
    layout = StateLayout.at(tmp_path)
    keyring, _ = make_keyring(layout.keys, layout.trust, log_name=ORIGIN)
    layout.data.mkdir()
    with closing(LogFile(layout.audit_database, keys=load_signer(keyring.audit_log_key))) as log:
        log.append(record(0))
    rotate = ["keys", "rotate-log", "--state", str(tmp_path)]
    assert command_line(rotate) == 0
    with pytest.raises(FailedPreconditionError, match="not signed by both keys yet"):
        command_line([*rotate, "--finish"])
    both = load_signer(keyring.audit_log_key, keyring.next_audit_log_key)
    with closing(LogFile(layout.audit_database, keys=both)) as log:
        log.append(record(1))
    assert command_line([*rotate, "--finish"]) == 0
    alone = load_signer(keyring.audit_log_key)
    assert alone.verifier == both.verifiers[1]
    with closing(LogFile(layout.audit_database, keys=alone)) as log:
        log.append(record(2))


def test_a_public_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    keyring, _ = make_keyring(tmp_path / "private", tmp_path / "public")
    keyring.audit_vkey.unlink()
    with pytest.raises(FailedPreconditionError, match=r"audit\.vkey cannot be read"):
        command_line(["keys", "rotate-log", "--out", str(tmp_path)])


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


def test_the_folder_of_a_witness_is_made_and_is_its_own(tmp_path: Path) -> None:
    file = tmp_path / "state" / "kala-witness" / "witness.key"
    assert command_line(["keys", "cosigner", "witness.test/w1", "--out", str(file)]) == 0
    assert load_cosigners(file)
    assert file.parent.stat().st_mode & 0o077 == 0


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
