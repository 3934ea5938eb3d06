"""The log's key is replaced without a checkpoint that some reader cannot trust, and never by who holds one key alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.database import verify_database
from kala.audit.note import Signer
from kala.audit.receipt import verify_receipt
from kala.errors import FailedPreconditionError, VerificationError
from services.audit.keys import key_change, load_signer
from tests.fakes.audit_log import ORIGIN, LogFile, is_url, record

OLD = Signer.of(ORIGIN, b"o" * 32)
NEW = Signer.of(ORIGIN, b"n" * 32)
BOTH = OLD.followed_by(NEW)
TEXT = Checkpoint(ORIGIN, 1, b"r" * 32).text()


def opened(database: str, signer: Signer) -> LogFile:
    return LogFile(database, keys=signer)


def append(database: str, signer: Signer, number: int) -> str:
    """One more entry by this key; the proof of it."""
    log = opened(database, signer)
    try:
        return log.append(record(number))[0].proof
    finally:
        log.close()


def test_while_both_sign_each_reader_trusts_the_checkpoint_by_the_key_it_knows() -> None:
    note = BOTH.sign(TEXT)
    for trusted in ([OLD.verifier], [NEW.verifier], [OLD.verifier, NEW.verifier]):
        assert open_checkpoint(note, trusted).size == 1
    with pytest.raises(VerificationError):
        open_checkpoint(NEW.sign(TEXT), [OLD.verifier])


def test_a_key_is_replaced_in_three_steps_and_every_receipt_still_holds(log_database: str) -> None:
    receipts = [
        append(log_database, signer, number) for number, signer in enumerate((OLD, BOTH, BOTH, NEW, NEW))
    ]
    trusted = [OLD.verifier, NEW.verifier]
    assert [verify_receipt(text, trusted).index for text in receipts] == [0, 1, 2, 3, 4]
    assert [verify_receipt(text, [NEW.verifier]).index for text in receipts[1:]] == [1, 2, 3, 4]
    if not is_url(log_database):
        assert verify_database(Path(log_database), trusted).entries == 5


def test_a_new_key_that_never_signed_beside_the_old_one_is_refused_with_the_cure(log_database: str) -> None:
    append(log_database, OLD, 0)
    with pytest.raises(FailedPreconditionError, match="KALA_AUDIT_NEXT_LOG_KEY_FILE"):
        opened(log_database, NEW)
    append(log_database, OLD, 1)


def test_the_way_back_is_open_while_both_sign_and_shut_afterwards(log_database: str) -> None:
    append(log_database, BOTH, 0)
    append(log_database, OLD, 1)
    with pytest.raises(FailedPreconditionError, match="is signed by"):
        opened(log_database, NEW)
    append(log_database, BOTH, 2)
    append(log_database, NEW, 3)
    with pytest.raises(FailedPreconditionError, match="is signed by"):
        opened(log_database, OLD)


def test_replicas_restart_one_after_the_other_and_all_write_in_between(postgres_log_url: str) -> None:
    """Each step meets replicas of the step before: none may take the other's checkpoint for a stranger's."""
    replicas = [opened(postgres_log_url, OLD), opened(postgres_log_url, OLD)]
    number = 0
    for signer in (BOTH, NEW):
        for place in range(len(replicas)):
            replicas[place].close()
            replicas[place] = opened(postgres_log_url, signer)
            for replica in replicas * 2:
                (logged,) = replica.append(record(number))
                number += 1
                assert logged.index == number - 1
    for replica in replicas:
        replica.close()


def test_the_log_says_that_a_key_follows_and_that_one_is_retired() -> None:
    assert key_change(OLD, None) is None
    assert key_change(OLD, OLD.sign(TEXT)) is None
    announced = key_change(BOTH, OLD.sign(TEXT))
    assert announced is not None
    assert (announced.rpc, announced.facts) == (
        "/audit/key-announced",
        {"current": str(OLD.verifier), "next": str(NEW.verifier)},
    )
    assert key_change(BOTH, BOTH.sign(TEXT)) is None
    retired = key_change(NEW, BOTH.sign(TEXT))
    assert retired is not None
    assert (retired.rpc, retired.facts["retired"]) == ("/audit/key-retired", OLD.verifier.key_id.hex())
    assert key_change(NEW, NEW.sign(TEXT)) is None


def test_only_another_key_of_the_same_name_may_follow(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="same name"):
        OLD.followed_by(Signer.of("another.test/log", b"n" * 32))
    with pytest.raises(VerificationError, match="same name"):
        OLD.followed_by(OLD)
    for name, key in (("now", OLD), ("next", OLD)):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(key.private_text())
    with pytest.raises(FailedPreconditionError, match="next"):
        load_signer(tmp_path / "now", tmp_path / "next")
