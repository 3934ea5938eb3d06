"""Logs are bounded, ports are free, one lock holds one state directory."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kala.suite import logfiles
from kala.suite.layout import StateLayout
from kala.suite.lock import SuiteRunningError, is_locked, suite_lock
from kala.suite.logfiles import KEPT_LOGS, last_lines, open_log
from kala.suite.ports import PortClaims, is_free


@pytest.fixture
def claims(tmp_path: Path) -> Iterator[PortClaims]:
    claims = PortClaims(tmp_path / "ports")
    yield claims
    claims.close()


def test_a_large_log_is_moved_aside_and_only_a_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logfiles, "MAX_LOG_BYTES", 10)
    path = tmp_path / "part.log"
    for number in range(KEPT_LOGS + 3):
        with open_log(path) as log:
            log.write(f"start {number} with many words\n".encode())
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["part.log", *(f"part.log.{n}" for n in range(1, KEPT_LOGS + 1))]
    assert "start 5" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_last_lines_are_those_of_the_newest_start(tmp_path: Path) -> None:
    path = tmp_path / "part.log"
    path.write_text("old\n")
    offset = path.stat().st_size
    with path.open("a") as file:
        file.write("new 1\n\nnew 2\n")
    assert last_lines(path, since=offset) == ["new 1", "new 2"]
    assert last_lines(path, count=1) == ["new 2"]
    assert last_lines(tmp_path / "none.log") == []


def test_a_taken_port_is_replaced_by_a_free_one(claims: PortClaims) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        other = claims.claim(port)
        assert other != port
        assert is_free(other)


def test_two_suites_that_start_together_never_get_one_port(claims: PortClaims) -> None:
    rival = PortClaims(claims.folder)
    port = claims.claim(0)
    assert port > 0
    assert is_free(port), "nobody listens yet; only the claim keeps the rival away"
    assert rival.claim(port) != port
    rival.close()
    claims.close()
    assert rival.claim(port) == port
    rival.close()


def test_one_state_directory_has_one_supervisor(tmp_path: Path) -> None:
    layout = StateLayout.at(tmp_path)
    layout.create()
    with suite_lock(layout):
        assert is_locked(layout)
        with pytest.raises(SuiteRunningError, match=str(tmp_path)), suite_lock(layout):
            pass
    assert not is_locked(layout)
