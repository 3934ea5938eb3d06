"""The sequencer: every caller hears something, even when the writer breaks."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from kala.audit.database import verify_database
from kala.errors import (
    FailedPreconditionError,
    InternalError,
    KalaError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.audit import batch
from services.audit.batch import MAX_TRIES, Logged, Submission
from services.audit.entries import NewEntry, build
from services.audit.log import Log
from services.audit.own_records import OwnRecords
from services.audit.records import entry_of
from services.audit.storage.store import Commit, HeadMovedError
from tests.fakes.audit_log import NOW, LogFile, open_log, record


class BrokenWriter:
    """A batch writer that fails as told."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def write(self, submissions: Sequence[Submission]) -> list[Sequence[Logged] | KalaError]:
        raise self._error


def entries(*numbers: int) -> list[NewEntry]:
    return [entry_of(record(number), "local:gateway") for number in numbers]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(UnavailableError("full"), "full"), (RuntimeError("a bug"), "the log cannot write this")],
)
async def test_a_writer_that_fails_leaves_no_caller_waiting(error: Exception, expected: str) -> None:
    log = Log(BrokenWriter(error))  # type: ignore[arg-type] # a fake
    log.start()
    futures = [log.submit(entries(number), with_proof=False) for number in range(3)]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} == {expected}
    assert log.pending == 0
    await log.stop()


async def test_a_bug_that_one_record_brings_out_does_not_fail_those_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to fail its whole group with UNAVAILABLE, and every writer then sent it again for ever."""
    with open_log(tmp_path / "audit.db") as file:
        bad = entries(1)

        def broken(entry: NewEntry, *rest: object) -> object:
            if entry.key == bad[0].key:
                raise RuntimeError("a bug")
            return build(entry, *rest)  # type: ignore[arg-type] # as it was called

        monkeypatch.setattr(batch, "build", broken)
        log = Log(file.batches)
        log._loop = asyncio.get_running_loop()
        futures = [log.submit(submitted, with_proof=False) for submitted in (entries(0), bad, entries(2))]
        log._thread.start()
        first, failed, last = await asyncio.gather(*futures, return_exceptions=True)
        assert isinstance(failed, InternalError)
        assert [logged[0].index for logged in (first, last)] == [0, 1]  # type: ignore[index] # not errors
        await log.stop()


async def test_a_batch_larger_than_the_queue_goes_in_when_nothing_waits(tmp_path: Path) -> None:
    """A writer's spool drains in batches; one that is always turned away would block it for ever."""
    with open_log(tmp_path / "audit.db") as file:
        log = Log(file.batches, max_pending=2)
        log._loop = asyncio.get_running_loop()
        large = log.submit(entries(*range(5)), with_proof=False)
        with pytest.raises(ResourceExhaustedError):
            log.submit(entries(5), with_proof=False)
        log._thread.start()
        assert [logged.index for logged in await large] == list(range(5))
        await log.stop()


async def test_an_idle_log_is_whole_in_its_one_file(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit.db") as file:
        log = Log(file.batches, settle_seconds=0.01)
        log.start()
        await log.submit(entries(0, 1, 2), with_proof=False)
        wal = tmp_path / "audit.db-wal"
        async with asyncio.timeout(10):
            while wal.stat().st_size:  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.01)
        copy = shutil.copy(tmp_path / "audit.db", tmp_path / "copy.db")
        assert verify_database(Path(copy), [file.signer.verifier]).entries == 3
        await log.submit(entries(3), with_proof=False)
        await log.stop()
    assert verify_database(tmp_path / "audit.db", [file.signer.verifier]).entries == 4


async def test_stopping_writes_what_waits_and_refuses_what_comes_after(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit.db") as file:
        log = Log(file.batches)
        log.start()
        futures = [log.submit(entries(number), with_proof=False) for number in range(50)]
        await log.stop()
        assert [(await future)[0].index for future in futures] == list(range(50))
        with pytest.raises(UnavailableError, match="not running"):
            log.submit(entries(99), with_proof=False)


async def test_a_caller_that_went_away_is_passed_over(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit.db") as file:
        log = Log(file.batches)
        log.start()
        log.submit(entries(0), with_proof=False).cancel()
        assert (await log.submit(entries(1), with_proof=False))[0].index == 1
        await log.stop()


async def test_a_large_burst_is_written_in_bounded_groups(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit.db") as file:
        log = Log(file.batches)
        log.start()
        futures = [
            log.submit(entries(*range(start, start + 500)), with_proof=False)
            for start in range(0, 4_000, 500)
        ]
        answers = [one.index for future in futures for one in await future]
        assert answers == list(range(4_000))
        await log.stop()


async def test_the_log_s_own_records_never_fail_the_call_they_are_about(tmp_path: Path) -> None:
    log = Log(BrokenWriter(UnavailableError("full")))  # type: ignore[arg-type] # a fake
    log.start()
    own = OwnRecords(log, clock=lambda: NOW)
    await own.denied("/svc/Method", None, FailedPreconditionError("no"))
    with pytest.raises(UnavailableError):
        await own.started()
    await log.stop()


def test_a_head_that_keeps_moving_is_given_up_with_a_time_to_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def moved(batch: Commit) -> None:
        tries.append(batch.old_size)
        raise HeadMovedError("moved")

    with open_log(tmp_path / "audit.db") as file:
        monkeypatch.setattr(file.writer, "commit", moved)
        with pytest.raises(UnavailableError, match="moved too often") as caught:
            file.append(record(0))
        monkeypatch.undo()
        assert (len(tries), caught.value.retry_after_seconds) == (MAX_TRIES, 1.0)
        assert file.append(record(0))[0].index == 0


def test_a_failure_after_the_commit_does_not_bend_the_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong between building and answering, the next append starts from what is on disk."""
    with open_log(tmp_path / "audit.db") as file:
        file.append(record(0))
        for name in ("_answer", "_commit"):
            with monkeypatch.context() as patch:
                patch.setattr(file.batches, name, _fail)
                with pytest.raises(RuntimeError):
                    file.append(record(1))
        assert file.append(record(1), record(2))[1].index == file.reader.head().size - 1
    _reopen(tmp_path / "audit.db")


def _fail(*_arguments: object) -> None:
    raise RuntimeError("a bug")


def _reopen(path: Path) -> None:
    LogFile(path).close()
