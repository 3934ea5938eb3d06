"""An outsider with the public key and an address: the log is verified, followed and compared over its own tile API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest

from kala.cli import main
from services.audit.publishing.published import NoCosignatures, PublishedLog
from services.audit.publishing.tile_api import TileApi
from tests.fakes.audit_log import LogFile, record, signer

TOKEN = "t" * 43
KEY = ("--vkey", str(signer().verifier))
Captured = pytest.CaptureFixture[str]


class Server(ThreadingMixIn, WSGIServer):
    """As prometheus_client serves the pages beside /metrics."""

    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        pass


@contextmanager
def tile_api(log: LogFile) -> Iterator[str]:
    reader = log.open_reader()
    api = TileApi(PublishedLog(reader, NoCosignatures()), token=TOKEN, note_reader=lambda _: None)
    with make_server("127.0.0.1", 0, api, Server, Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://reader:{TOKEN}@127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            reader.close()


@pytest.fixture
def log(log_database: str) -> Iterator[LogFile]:
    file = LogFile(log_database)
    yield file
    file.close()


def grow(log: LogFile, start: int, stop: int) -> str:
    """Appends records and gives the newest checkpoint."""
    return log.append(*(record(number) for number in range(start, stop)))[-1].note


def test_a_log_in_use_is_verified_and_followed_by_its_address(
    log: LogFile, tmp_path: Path, capsys: Captured
) -> None:
    grow(log, 0, 300)
    pin = ["--remember", str(tmp_path / "pin"), *KEY]
    with tile_api(log) as address:
        assert main(["audit", "verify", address, "--leaves", *pin]) == 0
        assert "good: 300 entries" in capsys.readouterr().out
        grow(log, 300, 600)
        assert main(["audit", "monitor", address, "--once", "--json", *pin]) == 0
        assert json.loads(capsys.readouterr().out)["relation"] == "consistent"
        grow(log, 600, 601)
        assert main(["audit", "verify", address, "--resume", "--json", *pin]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["entries"], facts["resumed_from"]) == (601, 512)


def test_checkpoints_of_two_days_are_compared_by_the_address(
    log: LogFile, tmp_path: Path, capsys: Captured
) -> None:
    older, newer = tmp_path / "older", tmp_path / "newer"
    older.write_text(grow(log, 0, 256))
    newer.write_text(grow(log, 256, 300))
    grow(log, 300, 700)
    with tile_api(log) as address:
        assert main(["audit", "diff", str(older), str(newer), "--log", address, *KEY]) == 0
        assert "consistent: the 300 entries begin with the 256" in capsys.readouterr().out


def test_without_the_token_nothing_is_told(log: LogFile, capsys: Captured) -> None:
    grow(log, 0, 3)
    with tile_api(log) as address:
        assert main(["audit", "verify", address.replace(f"reader:{TOKEN}@", ""), *KEY]) == 2
        assert "give the token" in capsys.readouterr().err


def test_another_log_in_the_same_place_is_a_fork(tmp_path: Path, capsys: Captured) -> None:
    pin = ["--remember", str(tmp_path / "pin"), *KEY]
    for name, start, code in (("ours", 0, 0), ("fork", 1, 1)):
        file = LogFile(tmp_path / f"{name}.db")
        grow(file, start, start + 300)
        with tile_api(file) as address:
            assert main(["audit", "monitor", address, "--once", *pin]) == code
            assert main(["audit", "verify", address, *pin]) == code
        file.close()
    assert "forked" in capsys.readouterr().err
