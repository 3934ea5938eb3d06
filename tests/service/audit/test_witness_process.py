"""The witness process: strict at start, bounded towards strangers, and true to its word when it is killed."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kala.audit.cosignature import cosignatures
from kala.audit.note import Signer
from tests.fakes.certificates import TestAuthority
from tests.fakes.small_log import SmallLog
from tests.fakes.witness_process import WitnessProcess

LOG = SmallLog(Signer.of("kala.test/log", b"l" * 32))
FORK = SmallLog(LOG.signer, salt="other ")


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[WitnessProcess]:
    process = WitnessProcess(tmp_path / "witness", [LOG.signer.verifier])
    process.start()
    yield process
    if process.process is not None:
        process.kill()


def test_a_connection_serves_several_checkpoints_and_is_told_what_is_wrong(witness: WitnessProcess) -> None:
    with httpx.Client(base_url=witness.url) as client:
        first = client.post("/add-checkpoint", content=LOG.request(0, 3))
        conflict = client.post("/add-checkpoint", content=LOG.request(0, 4))
        fork = client.post("/add-checkpoint", content=FORK.request(3, 4))
        second = client.post("/add-checkpoint", content=LOG.request(3, 4))
    assert [reply.status_code for reply in (first, conflict, fork, second)] == [200, 409, 422, 200]
    assert (conflict.text, conflict.headers["content-type"]) == ("3\n", "text/x.tlog.size")
    assert len(cosignatures(LOG.note(3) + first.text, witness.witnesses)) == 2
    assert len(cosignatures(LOG.note(4) + second.text, witness.witnesses)) == 2
    assert "connection" not in first.headers
    assert witness.stop() == 0, witness.output()


def test_what_strangers_send_is_bounded(witness: WitnessProcess) -> None:
    with httpx.Client(base_url=witness.url) as client:
        large = client.post("/add-checkpoint", content=b"x" * (256 * 1024 + 1))
        chunked = client.post("/add-checkpoint", content=iter([LOG.request(0, 1)]))
        elsewhere = client.post("/other", content=b"x")
        read = client.get("/add-checkpoint")
        fine = client.post("/add-checkpoint", content=LOG.request(0, 1))
    statuses = [reply.status_code for reply in (large, chunked, elsewhere, read, fine)]
    assert statuses == [413, 411, 404, 404, 200]
    assert "Python" not in fine.headers["server"]


def test_no_cosignature_that_was_given_is_forgotten_by_a_kill(witness: WitnessProcess) -> None:
    """Five kills while it cosigns: it never again cosigns from a size below one that it gave out."""
    given = 0
    for _ in range(5):
        sizes: list[int] = []
        stopped = threading.Event()

        def grow(old: int, sizes: list[int] = sizes, stopped: threading.Event = stopped) -> None:
            with httpx.Client(base_url=witness.url) as client:
                while not stopped.is_set():
                    try:
                        reply = client.post("/add-checkpoint", content=LOG.request(old, old + 1))
                    except httpx.TransportError:
                        return
                    if reply.status_code == 409:
                        old = int(reply.text)
                        continue
                    assert reply.status_code == 200
                    sizes.append(old := old + 1)

        writer = threading.Thread(target=grow, args=(given,))
        writer.start()
        while len(sizes) < 3 and writer.is_alive():
            stopped.wait(0.001)
        witness.kill()
        stopped.set()
        writer.join()
        given = max([given, *sizes])
        witness.start()
        reply = httpx.post(f"{witness.url}/add-checkpoint", content=FORK.request(0, given + 100))
        assert reply.status_code == 409
        assert int(reply.text) >= given
    assert given >= 5


def test_a_witness_with_tls_files_speaks_tls_and_waits_for_nobodys_handshake(tmp_path: Path) -> None:
    tls = TestAuthority(tmp_path).issue("witness", dns_names=("localhost",))
    witness = WitnessProcess(tmp_path / "witness", [LOG.signer.verifier], tls=tls)
    witness.start()
    try:
        # A client that connects and says nothing.
        with (
            socket.create_connection(("127.0.0.1", witness.port)),
            httpx.Client(
                base_url=witness.url, verify=ssl.create_default_context(cafile=tls.ca_file)
            ) as client,
        ):
            replies = [client.post("/add-checkpoint", content=LOG.request(n, n + 1)) for n in range(2)]
        assert [reply.status_code for reply in replies] == [200, 200]
        with pytest.raises(httpx.TransportError):
            httpx.get(witness.url.replace("https:", "http:"))
        assert witness.stop() == 0, witness.output()
    finally:
        if witness.process is not None:
            witness.kill()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda at: (at / "witness.key").write_text("nonsense"), "no keys of a witness"),
        (lambda at: (at / "witness.key").chmod(0o644), "chmod 600"),
        (lambda at: (at / "witness.key").unlink(), "make it with `kala keys cosigner`"),
        (lambda at: (at / "logs.vkey").unlink(), "put the public key of each log there"),
        (lambda at: (at / "logs.vkey").write_text(""), "no log is named"),
        (lambda at: (at / "logs.vkey").write_text("nonsense"), "no verifier keys"),
        (lambda at: (at / "state.json").write_text("nonsense"), "restore it"),
    ],
    ids=["key", "open key", "no key", "no file of logs", "no logs", "bad logs", "state"],
)
def test_a_witness_that_cannot_keep_its_word_does_not_start(
    tmp_path: Path, damage: object, problem: str
) -> None:
    witness = WitnessProcess(tmp_path / "witness", [LOG.signer.verifier])
    damage(witness.directory)  # type: ignore[operator] # a function of a path
    witness.start(is_awaited=False)
    assert witness.process is not None
    assert witness.process.wait(20) == 2
    assert problem in witness.output()
    assert "Traceback" not in witness.output()


def test_the_state_names_each_log_with_its_signed_checkpoint(witness: WitnessProcess) -> None:
    httpx.post(f"{witness.url}/add-checkpoint", content=LOG.request(0, 3))
    state = json.loads(witness.state_file.read_text())
    assert state == {"version": 1, "notes": {"kala.test/log": LOG.note(3)}}
    assert witness.state_file.stat().st_mode & 0o077 == 0
