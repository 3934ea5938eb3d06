"""`suite.json` says what runs, and nothing else passes for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kala.errors import DataLossError
from kala.suite.layout import StateLayout
from kala.suite.processes import ProcessId
from kala.suite.record import (
    Condition,
    PartRecord,
    Phase,
    SuiteRecord,
    read_record,
    running_suite,
    write_record,
)


def record_of(supervisor: ProcessId) -> SuiteRecord:
    return SuiteRecord(
        phase=Phase.READY,
        supervisor=supervisor,
        gateway_url="http://127.0.0.1:8800",
        sockets=Path("/run/kala"),
        started_at="2026-01-01T00:00:00+00:00",
        parts={
            "audit": PartRecord(ProcessId(7, "x"), Condition.READY, 1, "http://127.0.0.1:9466/metrics"),
            "ethics": PartRecord(None, Condition.RESTARTING, 2),
        },
        notes=("a note",),
    )


@pytest.fixture
def layout(tmp_path: Path) -> StateLayout:
    layout = StateLayout.at(tmp_path)
    layout.create()
    return layout


def test_a_record_comes_back_as_it_was_written(layout: StateLayout) -> None:
    record = record_of(ProcessId(1, "boot-1"))
    write_record(layout, record)
    assert read_record(layout) == record
    assert record.pids == {"audit": 7}


def test_a_suite_whose_supervisor_is_gone_does_not_run(layout: StateLayout) -> None:
    write_record(layout, record_of(ProcessId(os.getpid(), "an earlier process of this pid")))
    assert running_suite(layout) is None


def test_a_suite_whose_supervisor_lives_runs(layout: StateLayout) -> None:
    me = ProcessId.of(os.getpid())
    assert me is not None
    write_record(layout, record_of(me))
    assert running_suite(layout) == record_of(me)


def test_no_record_means_no_suite(layout: StateLayout) -> None:
    assert read_record(layout) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"version": 99, "supervisor": {"pid": 1, "started": "x"}}']
)
def test_a_damaged_record_is_named_instead_of_guessed(layout: StateLayout, text: str) -> None:
    layout.record_file.write_text(text)
    with pytest.raises(DataLossError, match=r"suite\.json"):
        read_record(layout)
