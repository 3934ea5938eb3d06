"""A witness cosigns only what follows from all it cosigned, and only after it is on disk."""

from __future__ import annotations

import base64
import json
import os
import threading
from http import HTTPStatus
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.cosignature import CosignatureKind, Cosigner, cosignatures
from kala.audit.merkle import EMPTY_ROOT
from kala.audit.note import Signer
from kala.errors import FailedPreconditionError, UnavailableError
from services.audit.witness.add_checkpoint import AddCheckpoint, Reply
from services.audit.witness.state import Cosigned, WitnessState
from tests.fakes.small_log import SmallLog

SIGNER = Signer.of("kala.test/log", b"l" * 32)
LOG = SmallLog(SIGNER)
FORK = SmallLog(SIGNER, salt="other ")
STRANGER = SmallLog(Signer.of("stranger.test/log", b"s" * 32))
COSIGNERS = [Cosigner.of("witness.test/w1", kind, b"w" * 32) for kind in CosignatureKind]
NOW = 1_790_000_000


class Witness:
    """A witness over one state file, to be killed and started again."""

    def __init__(self, path: Path, *keys: Signer) -> None:
        self.path = path
        self.logs = [signer.verifier for signer in keys or (SIGNER,)]
        self.start()

    def start(self) -> None:
        self.state = WitnessState(self.path)
        self.act = AddCheckpoint(logs=self.logs, cosigners=COSIGNERS, state=self.state, clock=lambda: NOW)

    def ask(self, body: bytes) -> Reply:
        return self.act.answer(body)

    def kill_and_start(self) -> None:
        self.state.close()
        self.start()


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "state.json")


def assert_cosigned(reply: Reply, note: str) -> None:
    assert reply.status is HTTPStatus.OK, reply
    found = cosignatures(note + reply.body, [one.witness for one in COSIGNERS])
    assert found == {one.witness: NOW for one in COSIGNERS}


def test_a_log_that_grows_is_cosigned_with_every_key_and_remembered(witness: Witness) -> None:
    for old, new in ((0, 1), (1, 5), (5, 300), (300, 300)):
        assert_cosigned(witness.ask(LOG.request(old, new)), LOG.note(new))
    witness.kill_and_start()
    assert_cosigned(witness.ask(LOG.request(300, 301)), LOG.note(301))


def test_an_empty_log_is_cosigned_too(witness: Witness) -> None:
    note = SIGNER.sign(Checkpoint("kala.test/log", 0, EMPTY_ROOT).text())
    assert_cosigned(witness.ask(f"old 0\n\n{note}".encode()), note)
    assert_cosigned(witness.ask(LOG.request(0, 3)), LOG.note(3))


def test_who_does_not_know_the_last_size_is_told_it(witness: Witness) -> None:
    witness.ask(LOG.request(0, 7))
    for old in (0, 6, 8):
        reply = witness.ask(LOG.request(old, 9))
        assert (reply.status, reply.body, reply.content_type) == (
            HTTPStatus.CONFLICT,
            "7\n",
            "text/x.tlog.size",
        )
    assert_cosigned(witness.ask(LOG.request(7, 9)), LOG.note(9))


def test_another_history_is_never_cosigned(witness: Witness) -> None:
    witness.ask(LOG.request(0, 7))
    assert witness.ask(FORK.request(7, 7)).status is HTTPStatus.CONFLICT
    assert witness.ask(FORK.request(7, 9)).status is HTTPStatus.UNPROCESSABLE_ENTITY
    assert witness.ask(FORK.request(7, 9, proof=LOG.proof(7, 9))).status is HTTPStatus.UNPROCESSABLE_ENTITY
    assert witness.ask(FORK.request(0, 9)).status is HTTPStatus.CONFLICT
    assert witness.ask(LOG.request(5, 6)).status is HTTPStatus.CONFLICT
    assert_cosigned(witness.ask(LOG.request(7, 9)), LOG.note(9))


def test_a_second_tree_of_one_size_is_written_down_with_both_signed_notes(witness: Witness) -> None:
    witness.ask(LOG.request(0, 7))
    stranger = Signer.of(SIGNER.verifier.name, b"s" * 32)
    body = FORK.request(7, 7).decode()
    noise = stranger.line(body.rpartition("\n\n")[0] + "\n")
    with capture_logs() as lines:
        assert witness.ask(f"{body}{noise}".encode()).status is HTTPStatus.CONFLICT
    (line,) = lines
    assert line["log_level"] == "error"
    two = [open_checkpoint(line[name], [SIGNER.verifier]) for name in ("note", "cosigned")]
    assert [one.size for one in two] == [7, 7]
    assert two[0].root != two[1].root
    assert noise not in line["note"]


def test_a_stranger_who_sends_a_wrong_proof_accuses_nobody(witness: Witness) -> None:
    """Checkpoints are public: whoever has a newer one can send it with any proof."""
    witness.ask(LOG.request(0, 7))
    with capture_logs() as lines:
        assert witness.ask(LOG.request(7, 9, proof=[])).status is HTTPStatus.UNPROCESSABLE_ENTITY
    assert [line["log_level"] for line in lines] == ["warning"]


@pytest.mark.parametrize(
    "proof",
    [[], [b"x" * 32], [b"x" * 31], [*LOG.proof(7, 9), b"x" * 32], LOG.proof(7, 9)[:-1]],
    ids=["none", "wrong", "short hash", "too long", "too short"],
)
def test_a_proof_that_does_not_hold_is_unprocessable(witness: Witness, proof: list[bytes]) -> None:
    witness.ask(LOG.request(0, 7))
    assert witness.ask(LOG.request(7, 9, proof=proof)).status is HTTPStatus.UNPROCESSABLE_ENTITY


def test_a_proof_from_nothing_must_be_empty(witness: Witness) -> None:
    reply = witness.ask(LOG.request(0, 7, proof=[b"x" * 32]))
    assert reply.status is HTTPStatus.UNPROCESSABLE_ENTITY


def test_a_log_that_the_witness_does_not_know_is_not_found(witness: Witness) -> None:
    assert witness.ask(STRANGER.request(0, 1)).status is HTTPStatus.NOT_FOUND


def test_a_checkpoint_that_its_log_did_not_sign_is_forbidden(witness: Witness) -> None:
    thief = SmallLog(Signer.of("kala.test/log", b"t" * 32))
    assert witness.ask(thief.request(0, 1)).status is HTTPStatus.FORBIDDEN
    changed = LOG.note(2).replace("\n2\n", "\n3\n", 1)
    assert witness.ask(LOG.request(0, 2, note=changed)).status is HTTPStatus.FORBIDDEN


def test_a_log_is_known_by_either_key_while_its_key_is_replaced(tmp_path: Path) -> None:
    following = Signer.of("kala.test/log", b"n" * 32)
    witness = Witness(tmp_path / "state.json", SIGNER, following)
    assert witness.ask(LOG.request(0, 1)).status is HTTPStatus.OK
    assert witness.ask(SmallLog(SIGNER.followed_by(following)).request(1, 2)).status is HTTPStatus.OK
    assert witness.ask(SmallLog(following).request(2, 3)).status is HTTPStatus.OK


def test_an_old_size_above_the_checkpoints_is_a_bad_request(witness: Witness) -> None:
    assert witness.ask(LOG.request(3, 2)).status is HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        b"old 0",
        b"old 00\n\n" + LOG.note(1).encode(),
        b"old -1\n\n" + LOG.note(1).encode(),
        b"old 0\r\n\n" + LOG.note(1).encode(),
        b"old 1\n!\n\n" + LOG.note(1).encode(),
        b"size 0\n\n" + LOG.note(1).encode(),
        b"old 0\n\n\xff" + LOG.note(1).encode(),
        b"old 1\n" + (base64.b64encode(b"x" * 32) + b"\n") * 64 + b"\n" + LOG.note(1).encode(),
    ],
    ids=[
        "nothing",
        "no line",
        "no note",
        "zeroes",
        "minus",
        "crlf",
        "no base64",
        "word",
        "no text",
        "64 hashes",
    ],
)
def test_what_is_no_request_is_a_bad_one(witness: Witness, body: bytes) -> None:
    assert witness.ask(body).status is HTTPStatus.BAD_REQUEST
    assert witness.state.newest("kala.test/log") is None


def test_nothing_is_cosigned_that_is_not_on_disk(witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_cosigned: Cosigned) -> None:
        raise UnavailableError("no space", reason="WITNESS_STATE")

    with monkeypatch.context() as patch:
        patch.setattr(WitnessState, "keep", lambda _self, cosigned: full(cosigned))
        reply = witness.ask(LOG.request(0, 7))
    assert reply.status is HTTPStatus.SERVICE_UNAVAILABLE
    assert "\u2014" not in reply.body
    assert witness.state.newest("kala.test/log") is None


def test_the_disk_is_asked_to_keep_it_before_the_answer(
    witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    witness.ask(LOG.request(0, 7))
    assert synced == [witness.path.stat().st_ino, witness.path.parent.stat().st_ino]


def test_two_requests_that_race_never_roll_the_size_back(witness: Witness) -> None:
    """The race that the specification describes: N+K is answered before the slower N."""
    witness.ask(LOG.request(0, 1))
    bodies = [LOG.request(1, new) for new in range(2, 34)]
    start = threading.Barrier(len(bodies))
    replies: list[Reply] = []

    def ask(body: bytes) -> None:
        start.wait()
        replies.append(witness.ask(body))

    threads = [threading.Thread(target=ask, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.status for reply in replies].count(HTTPStatus.OK) == 1
    won = witness.state.newest("kala.test/log")
    assert won is not None
    assert all(
        reply.body == f"{won.checkpoint.size}\n" for reply in replies if reply.status is HTTPStatus.CONFLICT
    )


def test_a_second_witness_may_not_use_the_same_state(witness: Witness) -> None:
    with pytest.raises(FailedPreconditionError, match="another witness"):
        WitnessState(witness.path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"version": 2, "notes": {}}',
        '{"version": 1, "notes": {"kala.test/log": "nonsense"}}',
        '{"version": 1, "notes": []}',
        json.dumps({"version": 1, "notes": {"another.test": LOG.note(1)}}),
    ],
)
def test_a_damaged_state_stops_the_witness_instead_of_beginning_anew(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    for _ in range(2):
        with pytest.raises(FailedPreconditionError, match="restore it from a backup"):
            WitnessState(path)


@pytest.mark.parametrize("requests", [0, 1], ids=["before the first checkpoint", "after it"])
def test_a_state_that_is_gone_stops_the_witness_instead_of_beginning_anew(
    witness: Witness, requests: int
) -> None:
    for _ in range(requests):
        assert_cosigned(witness.ask(LOG.request(0, 7)), LOG.note(7))
    witness.state.close()
    witness.path.unlink()
    with pytest.raises(FailedPreconditionError, match="was there and is gone"):
        witness.start()


def test_a_log_with_a_history_of_its_own_does_not_disturb_another(tmp_path: Path) -> None:
    witness = Witness(tmp_path / "state.json", SIGNER, STRANGER.signer)
    assert witness.ask(LOG.request(0, 7)).status is HTTPStatus.OK
    assert witness.ask(STRANGER.request(0, 3)).status is HTTPStatus.OK
    witness.kill_and_start()
    assert witness.ask(STRANGER.request(3, 4)).status is HTTPStatus.OK
    assert witness.ask(LOG.request(7, 8)).status is HTTPStatus.OK
