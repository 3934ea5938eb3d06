"""Events and log lines survive the process that writes them, and no more than whole lines are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kala.trainer.v1 import job_pb2
from services.trainer.work import log_lines
from services.trainer.work.events import EVENTS, EventReader, EventWriter
from services.trainer.work.log_lines import LOG, MAX_TEXT_BYTES, LogReader, LogWriter


def drafts(folder: Path, *numbers: int) -> None:
    writer = EventWriter(folder)
    for number in numbers:
        writer.write(job_pb2.DraftEvent(drafts=number))


def test_a_later_process_goes_on_with_the_numbers_and_cuts_a_torn_line(tmp_path: Path) -> None:
    drafts(tmp_path, 1, 2)
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'{"seq": 3, "at": 1, "ki')
    reader = EventReader(tmp_path)
    assert [event.sequence for event in reader.read()] == [1, 2]
    drafts(tmp_path, 3)
    assert [(event.sequence, event.message.drafts) for event in reader.read()] == [(3, 3)]
    assert reader.read() == []


def test_a_reader_passes_over_what_is_no_event(tmp_path: Path) -> None:
    drafts(tmp_path, 1)
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'nonsense\n{"seq": 2, "at": 1, "kind": "unheard", "event": {}}\n[]\n')
        file.write(b'{"seq": 3, "at": 1, "kind": "draft", "event": {"drafts": -1}}\n')
    drafts(tmp_path, 2)
    reader = EventReader(tmp_path)
    assert [event.message.drafts for event in reader.read()] == [1, 2]
    assert reader.wrong == 4


def test_progress_comes_at_most_once_a_second_but_a_change_of_state_at_once(tmp_path: Path) -> None:
    now = 0.0
    writer = EventWriter(tmp_path, monotonic=lambda: now)
    training, saving = job_pb2.JOB_STATE_TRAINING, job_pb2.JOB_STATE_SAVING
    for step in range(1, 31):
        now += 0.1
        writer.write(job_pb2.TrainingProgress(state=training, step=step))
    writer.write(job_pb2.TrainingProgress(state=saving, step=30))
    writer.write(job_pb2.TrainingProgress(state=saving, step=31), force=True)
    steps = [event.message.step for event in EventReader(tmp_path).read()]
    assert steps[0] == 1
    assert steps[-2:] == [30, 31]
    assert len(steps) == 5


def test_optional_numbers_and_bytes_come_back_as_they_were(tmp_path: Path) -> None:
    progress = job_pb2.TrainingProgress(step=2**40, loss=0.0, tokens_per_second=0.1)
    EventWriter(tmp_path).write(progress)
    EventWriter(tmp_path).write(job_pb2.CheckpointEvent(step=1, sha256=b"\x00\xff" * 16, bytes=7))
    first, second = EventReader(tmp_path).read()
    assert first.message == progress
    assert first.message.HasField("loss")
    assert second.message.sha256 == b"\x00\xff" * 16


def test_log_lines_are_cut_replaced_and_numbered_on(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path)
    writer.write(b"caf\xe9\n")
    writer.write(b"x" * (MAX_TEXT_BYTES + 10))
    with (tmp_path / LOG).open("ab") as file:
        file.write(b'{"line": 3')
    LogWriter(tmp_path).write("fin é".encode())
    lines = LogReader(tmp_path).read()
    assert [line.number for line in lines] == [1, 2, 3]
    assert lines[0].text == "caf\N{REPLACEMENT CHARACTER}"
    assert len(lines[1].text) == MAX_TEXT_BYTES
    assert [line.text for line in LogReader(tmp_path, after=2).read()] == ["fin é"]


def test_a_process_that_never_stops_talking_does_not_fill_the_disk(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(log_lines, "MAX_LOG_BYTES", 4_000)
    writer = LogWriter(tmp_path)
    for _ in range(1_000):
        writer.write(b"again and again")
    assert (tmp_path / LOG).stat().st_size < 4_500
    last = json.loads((tmp_path / LOG).read_bytes().splitlines()[-1])
    assert "dropped" in last["text"]
    assert "again and again" in writer.last_lines


def test_a_full_disk_does_not_stop_who_reads_a_processs_outputs(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path)
    (tmp_path / LOG).symlink_to("/dev/full")
    writer.write(b"one")
    writer.write(b"two")
    assert writer.last_lines == "one | two"


@pytest.mark.parametrize(
    "odd",
    [
        '{"seq":1e999,"at":1,"kind":"progress","event":{}}',
        '{"seq":1,"at":NaN,"kind":"progress","event":{}}',
        "[" * 9_000,
    ],
    ids=["number", "time", "depth"],
)
def test_a_line_of_odd_numbers_is_skipped_and_counted(tmp_path: Path, odd: str) -> None:
    (tmp_path / EVENTS).write_text(odd + "\n")
    EventWriter(tmp_path).write(job_pb2.TrainingProgress(step=1))
    reader = EventReader(tmp_path)

    assert [each.message for each in reader.read()] == [job_pb2.TrainingProgress(step=1)]
    assert reader.wrong == 1
