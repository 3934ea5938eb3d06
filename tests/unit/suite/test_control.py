"""A private suite that is interrupted while it starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kala.suite import control
from kala.suite.layout import StateLayout


def test_an_interrupted_start_ends_the_lifeline_and_waits_until_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    lifelines: list[int] = []

    def interrupted(*_: object, lifeline: int, **__: object) -> None:
        lifelines.append(os.dup(lifeline))
        raise KeyboardInterrupt

    def is_locked(_: StateLayout) -> bool:
        # Blocks for ever while the other end is open.
        seen.append("ended" if os.read(lifelines[0], 1) == b"" else "data")
        return len(seen) < 3

    monkeypatch.setattr(control, "start_detached", interrupted)
    monkeypatch.setattr(control, "is_locked", is_locked)
    with (
        pytest.raises(KeyboardInterrupt),
        control.private_suite(StateLayout.at(tmp_path), environment={}),
    ):
        pass
    os.close(lifelines[0])
    assert seen == ["ended"] * 3
