"""A session's log: private, bounded, one line per request, and each line's receipt verifies offline."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from kala.audit.note import Signer
from kala.audit.receipt import verify_receipt
from kala.cli import main
from kala.client import KalaClient
from kala.errors import InvalidArgumentError, UnavailableError
from kala.replies import ChatReply, DecisionView, ReceiptView
from kala.session_log import SessionLog
from kala.target import Target
from tests.fakes.audit_log import open_log, record, signer


class LogGateway:
    """Gives the receipts of a real log; those in `spooled` are not there yet."""

    def __init__(self, directory: Path, count: int) -> None:
        self.spooled: set[str] = set()
        self.asked: list[str] = []
        self._proofs: dict[str, str] = {}
        with open_log(directory / "log.db") as log:
            for logged in log.append(*(record(number) for number in range(count))):
                self._proofs[f"rcpt_{logged.key.hex()}"] = logged.proof
        self.ids = list(self._proofs)
        self.client = KalaClient(
            Target("http://127.0.0.1:8800", "kala_x"), httpx.MockTransport(self._answer), lambda _: None
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        if request.url.path.endswith("/checkpoint"):
            return httpx.Response(200, json={"verifier_key": str(signer().verifier)})
        receipt = request.url.path.rpartition("/")[2]
        if receipt in self.spooled:
            error = {"code": 404, "status": "NOT_FOUND", "message": "spooled", "details": []}
            return httpx.Response(404, json={"error": error})
        return httpx.Response(200, json={"receipt": {"proof": self._proofs[receipt]}})


def reply(receipt: str, *, outcome: str = "ALLOW", law: int | None = 0) -> ChatReply:
    return ChatReply(
        "An answer.",
        "stop",
        "tiny",
        DecisionView(outcome, law=law),
        ReceiptView(receipt, "LOGGED", 7, {"released": "ab" * 32}),
        3,
        5,
    )


@pytest.fixture
def gateway(tmp_path: Path) -> LogGateway:
    return LogGateway(tmp_path, 4)


def write(log: SessionLog, gateway: LogGateway, numbers: Sequence[int]) -> None:
    """One line per number; the test record of that number is ALLOW under law `number`, but for 1 to 3."""
    outcomes = ("ALLOW", "REFUSE", "REDIRECT", "ASK_CLARIFICATION")
    for number in numbers:
        answer = reply(gateway.ids[number], outcome=outcomes[number % 4], law=number % 5)
        log.write(gateway.client, "A question?", answer, latency_ms=1.0)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def verify(log: SessionLog, key: Signer | None = None) -> int:
    vkey = str(log.directory / "audit.vkey") if key is None else str(key.verifier)
    return main(["audit", "receipt", str(log.path), "--vkey", vkey])


def test_each_line_carries_its_receipt_which_verifies_alone_and_by_the_command(
    tmp_path: Path, gateway: LogGateway
) -> None:
    log = SessionLog(tmp_path / "logs", "s1")
    write(log, gateway, range(4))
    written = lines(log.path)
    assert [line["receipt"] for line in written] == gateway.ids
    for line in written:
        assert verify_receipt(line["proof"], [signer().verifier]).leaf.receipt_id == line["receipt"]
        assert line["opening"] == "ab" * 32
    assert verify(log) == 0
    assert verify(log, Signer.of("kala.test/audit", b"another seed of 32 bytes, at all")) == 1


def test_nobody_else_may_read_what_is_written(tmp_path: Path, gateway: LogGateway) -> None:
    log = SessionLog(tmp_path / "new" / "logs", "s1")
    write(log, gateway, [0])
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (log.directory, log.path)]
    assert [f"{mode:o}" for mode in modes] == ["700", "600"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("receipt", "rcpt_" + "ff" * 16),
        ("outcome", "REFUSE"),
        ("law", 3),
        ("proof", "c2sp.org/tlog-proof@v1\n"),
    ],
)
def test_a_line_that_was_changed_is_named(
    tmp_path: Path, gateway: LogGateway, capsys: pytest.CaptureFixture[str], name: str, value: object
) -> None:
    log = SessionLog(tmp_path, "s1")
    write(log, gateway, [0, 0])
    first, second = lines(log.path)
    second[name] = value
    log.path.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    assert verify(log) == 1
    assert "line 2" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["[]", "{", "null", '{"receipt": "x", "proof": 3}', "[" * 100_000])
def test_a_line_that_is_none_is_named(tmp_path: Path, gateway: LogGateway, line: str) -> None:
    log = SessionLog(tmp_path, "s1")
    write(log, gateway, [0])
    with log.path.open("a") as file:
        file.write(f"{line}\n")
    assert verify(log) == 1


def test_a_record_that_was_only_spooled_is_proved_by_a_later_line(
    tmp_path: Path, gateway: LogGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.spooled = {gateway.ids[0], gateway.ids[1]}
    log = SessionLog(tmp_path, "s1")
    write(log, gateway, [0, 1])
    assert [line["proof"] for line in lines(log.path)] == [None, None]
    assert main(["audit", "receipt", str(log.path), "--vkey", str(signer().verifier)]) == 2
    assert gateway.ids[0] in capsys.readouterr().err
    gateway.spooled = set()
    write(log, gateway, [2])
    assert [line["receipt"] for line in lines(log.path)][3:] == gateway.ids[:2]
    assert verify(log) == 0


def test_what_is_still_spooled_at_the_end_is_asked_for_once_more(tmp_path: Path, gateway: LogGateway) -> None:
    gateway.spooled = {gateway.ids[0]}
    log = SessionLog(tmp_path, "s1")
    write(log, gateway, [0])
    gateway.spooled = set()
    log.settle(gateway.client)
    log.settle(gateway.client)
    assert [line["receipt"] for line in lines(log.path)] == [gateway.ids[0]] * 2
    assert verify(log) == 0


def test_a_session_s_files_stay_bounded_and_the_newest_stay(tmp_path: Path, gateway: LogGateway) -> None:
    log = SessionLog(tmp_path, "s1", max_file_bytes=8_000, max_files=3)
    write(log, gateway, [0] * 40)
    files = sorted(tmp_path.glob("session_*.jsonl"))
    assert [path.name for path in files] == ["session_s1.1.jsonl", "session_s1.2.jsonl", "session_s1.jsonl"]
    assert all(path.stat().st_size <= 8_000 for path in files)
    times = [line["time"] for number in (2, 1, 0) for line in lines(_numbered(log, number))]
    assert times == sorted(times)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


def _numbered(log: SessionLog, number: int) -> Path:
    return log.directory / f"session_s1{f'.{number}' if number else ''}.jsonl"


def test_the_keys_of_several_private_suites_stand_side_by_side(tmp_path: Path, gateway: LogGateway) -> None:
    (tmp_path / "audit.vkey").write_text("kala.local/audit+00000000+older\n")
    for session in ("s1", "s2"):
        write(SessionLog(tmp_path, session), gateway, [0, 1])
    assert (tmp_path / "audit.vkey").read_text().splitlines() == [
        "kala.local/audit+00000000+older",
        str(signer().verifier),
    ]
    assert sum(path.endswith("/checkpoint") for path in gateway.asked) == 2


@pytest.mark.parametrize("name", ["../s1", "a/b", "", ".", "s\n", "s" * 129, "é"])
def test_a_session_id_that_cannot_name_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="session_id"):
        SessionLog(tmp_path, name)


def test_a_directory_that_cannot_be_written_says_so_and_what_was_done(
    tmp_path: Path, gateway: LogGateway
) -> None:
    (tmp_path / "file").write_text("")
    log = SessionLog(tmp_path / "file", "s1")
    with pytest.raises(UnavailableError, match="what was asked was carried out"):
        write(log, gateway, [0])
