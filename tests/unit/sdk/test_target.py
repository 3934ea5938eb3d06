"""Which suite a client finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from kala.suite.layout import StateLayout
from kala.suite.processes import ProcessId
from kala.suite.record import Phase, SuiteRecord, write_record
from kala.target import Target, checked_url, find_target


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """A state directory whose suite runs: its supervisor is this very process."""
    layout = StateLayout.at(tmp_path / "state")
    layout.create()
    me = ProcessId.of(os.getpid())
    assert me is not None
    write_record(layout, SuiteRecord(Phase.READY, me, "http://127.0.0.1:9999", layout.run, "2026-01-01"))
    layout.cli_key_file.write_text("kala_secret\n")
    return layout.root


def test_a_url_and_a_key_are_taken_as_they_are() -> None:
    assert find_target(url="http://h:1/v1/", key="k", environ={}) == Target("http://h:1", "k")


def test_the_environment_names_a_suite_too() -> None:
    found = find_target(environ={"KALA_URL": "https://kala.example.org", "KALA_API_KEY": "k"})
    assert found == Target("https://kala.example.org", "k")


def test_a_url_without_a_key_says_what_is_missing() -> None:
    with pytest.raises(FailedPreconditionError, match="KALA_API_KEY"):
        find_target(url="http://h:1", environ={})


def test_the_suite_of_a_state_directory_is_found_with_its_own_key(running: Path) -> None:
    assert find_target(state=running, environ={}) == Target("http://127.0.0.1:9999", "kala_secret")


def test_a_state_directory_that_is_asked_for_wins_over_the_environment(running: Path) -> None:
    assert find_target(state=running, environ={"KALA_URL": "http://other"}).url == "http://127.0.0.1:9999"


def test_no_suite_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="kala up"):
        find_target(state=tmp_path, environ={})


@pytest.mark.parametrize("url", ["", "localhost:8800", "ftp://x", "http://", "http://a b"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError):
        checked_url(url)


def test_a_key_is_never_printed() -> None:
    assert "secret" not in repr(Target("http://h", "secret"))
