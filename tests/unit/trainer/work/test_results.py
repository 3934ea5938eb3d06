"""How a process says that it ended, and what is made of a process that said nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError, InternalError, InvalidArgumentError
from services.trainer.work.ended import Ended
from services.trainer.work.results import (
    EXIT_DONE,
    EXIT_REFUSED,
    RESULT,
    clear_end,
    write_error,
    write_result,
)


def test_a_result_comes_back(tmp_path: Path) -> None:
    write_result(tmp_path, {"steps": 3})
    assert Ended(EXIT_DONE).result(tmp_path) == {"steps": 3}
    clear_end(tmp_path)
    with pytest.raises(InternalError, match="without a result"):
        Ended(EXIT_DONE).result(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_broken_result_is_no_result(tmp_path: Path, text: str) -> None:
    (tmp_path / RESULT).write_text(text)
    with pytest.raises(InternalError):
        Ended(EXIT_DONE).result(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        FailedPreconditionError("the disk is full", reason="DISK_FULL"),
        InvalidArgumentError("lora.target_modules", "matches nothing"),
    ],
)
def test_an_error_comes_back_as_it_was_raised(tmp_path: Path, error) -> None:
    write_error(tmp_path, error)
    with pytest.raises(type(error)) as caught:
        Ended(EXIT_REFUSED).result(tmp_path)
    assert (caught.value.message, caught.value.reason) == (error.message, error.reason)


def test_a_kill_is_told_with_its_likely_cause_and_the_last_words(tmp_path: Path) -> None:
    ended = Ended(-signal.SIGKILL, "loading weights")
    assert ended.crashed
    with pytest.raises(InternalError, match=r"SIGKILL.*out of memory.*loading weights"):
        ended.result(tmp_path)
    with pytest.raises(InternalError, match="status 2"):
        # It says that it told why, and did not.
        Ended(EXIT_REFUSED).result(tmp_path)
