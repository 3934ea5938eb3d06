"""One sandbox's watchdog, with a plain program in the place of a sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from services.tools.sandbox.launcher.plan import Shape, SpawnPlan
from services.tools.sandbox.launcher.slot import Slot
from services.tools.sandbox.launcher.verdict import Verdict
from services.tools.sandbox.model import Language, Status
from tests.sandbox_runs import LIMITS

LOOKS = 40


@pytest.fixture
def slot() -> Iterator[Slot]:
    found = Slot(Shape(Language.SHELL, 1), SpawnPlan(argv=("/bin/sleep", "60")))
    found.limits = replace(LIMITS, cpu_seconds=1)
    found.begin()
    yield found
    found.kill()
    found.close()


def unreadable() -> None:
    raise PermissionError


def watched(slot: Slot, times: int) -> list[Verdict | None]:
    return [slot.watch() for _ in range(times)]


def test_a_run_that_cannot_be_measured_is_ended(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that kept its files from being counted was never looked at again, and only the wall time ended it."""
    monkeypatch.setattr(slot, "_measure", unreadable)
    *before, last = watched(slot, LOOKS)
    assert before == [None] * (LOOKS - 1)
    assert last is not None
    assert last.status is Status.ERROR
    assert "could not be measured" in last.reason


def test_looks_that_fail_now_and_then_end_nothing(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        with monkeypatch.context() as patched:
            patched.setattr(slot, "_measure", unreadable)
            assert watched(slot, LOOKS - 1) == [None] * (LOOKS - 1)
        assert slot.watch() is None


def test_files_that_cannot_be_counted_do_not_hide_processes(
    slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "_measure", unreadable)
    monkeypatch.setattr(slot, "_look", lambda: setattr(slot, "_cpu", 2.0))
    verdict = slot.watch()
    assert verdict is not None
    assert verdict.status is Status.CPU
