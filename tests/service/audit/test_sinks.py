"""Sinks over either database: every entry at least once and in order, through crashes, refusals and full disks."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from kala.errors import UnavailableError
from services.audit.config import SECTION, AuditSettings
from services.audit.export import sinks
from services.audit.export.sink_cursors import SinkCursors
from services.audit.export.sink_settings import SinkSettings
from services.audit.export.sink_targets import FileTarget, SinkFailedError
from services.audit.export.sinks import Sink
from services.common.settings import load
from tests.fakes.audit_log import LogFile, is_url, open_log, record
from tests.fakes.sinks import Collector, Feeder, drain, eventually, indexes, lines_in


@pytest.fixture
def log(log_database: str) -> Iterator[LogFile]:
    with open_log(log_database) as opened:
        opened.append(*(record(number) for number in range(50)), with_proof=False)
        yield opened


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


@pytest.fixture
def feeder(log: LogFile) -> Iterator[Feeder]:
    with ExitStack() as stack:
        yield Feeder(log, stack)


def test_a_file_holds_every_entry_in_order_and_only_its_owner_reads_it(
    feeder: Feeder, log: LogFile, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    settings = SinkSettings(url=path.as_uri(), batch_entries=7)
    drain(feeder.sink(settings))
    log.append(record(50))
    drain(feeder.sink(settings))  # a new process goes on where the last one was
    assert indexes(path.read_bytes().splitlines()) == list(range(51))
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_was_delivered_and_not_confirmed_is_delivered_again(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    settings = SinkSettings(url=path.as_uri(), batch_entries=10)
    sink = feeder.sink(settings)
    sink.step()

    def crash(*_: object) -> bool:
        raise UnavailableError("killed between the two")

    with monkeypatch.context() as patched:
        patched.setattr(SinkCursors, "advance", crash)
        with pytest.raises(UnavailableError):
            sink.step()
    drain(feeder.sink(settings))
    assert indexes(path.read_bytes().splitlines()) == [*range(20), *range(10, 50)]


def test_half_a_line_of_a_crash_is_taken_away(feeder: Feeder, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    settings = SinkSettings(url=path.as_uri(), batch_entries=10)
    feeder.sink(settings).step()
    with path.open("ab") as file:
        file.write(b'{"half":' + b"x" * 200_000)
    drain(feeder.sink(settings))
    assert indexes(path.read_bytes().splitlines()) == list(range(50))


def test_a_write_that_fails_half_way_leaves_no_half_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    target = FileTarget(path)
    target.deliver([b"first"])
    real, calls = os.write, []

    def full(descriptor: int, data: Any) -> int:
        if calls:
            raise OSError(28, "No space left on device")
        calls.append(descriptor)
        return real(descriptor, bytes(data)[:3])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(SinkFailedError, match="No space left"):
            target.deliver([b"second"])
    target.deliver([b"second"])
    assert path.read_bytes() == b"first\nsecond\n"


def test_a_file_may_be_rotated_and_must_be_a_file(feeder: Feeder, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    sink = feeder.sink(SinkSettings(url=path.as_uri(), batch_entries=25))
    sink.step()
    path.rename(tmp_path / "audit.jsonl.1")
    sink.step()
    assert indexes(path.read_bytes().splitlines()) == list(range(25, 50))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SinkFailedError, match="not a file"):
        FileTarget(tmp_path / "pipe").deliver([b"x"])
    with pytest.raises(SinkFailedError, match="No such file"):
        FileTarget(tmp_path / "nowhere" / "x").deliver([b"x"])


def test_a_collector_gets_every_entry_and_the_headers_of_its_file(
    feeder: Feeder, log: LogFile, collector: Collector, tmp_path: Path
) -> None:
    secret = tmp_path / "headers"
    secret.write_text("Authorization: Bearer one\nX-Team: audit\n")
    sink = feeder.sink(SinkSettings(url=collector.url, batch_entries=20, header_file=secret))
    sink.step()
    secret.write_text("Authorization: Bearer two\n")
    drain(sink)
    assert indexes([line for body in collector.bodies for line in body.splitlines()]) == list(range(50))
    assert [h["authorization"] for h in collector.headers] == ["Bearer one", "Bearer two", "Bearer two"]
    assert (collector.headers[0]["x-team"], collector.headers[0]["content-type"]) == (
        "audit",
        "application/x-ndjson",
    )
    secret.write_text("no header")
    log.append(record(50))
    with pytest.raises(SinkFailedError, match="Name: value"):
        sink.step()


@pytest.mark.parametrize("status", [301, 400, 401, 429, 500, 503])
def test_what_a_collector_does_not_take_is_tried_again_and_skipped_never(
    feeder: Feeder, collector: Collector, status: int
) -> None:
    registry = CollectorRegistry()
    sink = feeder.sink(SinkSettings(url=collector.url, batch_entries=50), registry=registry)
    collector.answers = [(status, b"")] * 3
    for _ in range(3):
        with pytest.raises(SinkFailedError, match=f"answers {status}"):
            sink.step()
    assert value_of(registry, "kala_audit_sink_lag_entries") == 50
    drain(sink)
    assert len(collector.bodies) == 1
    assert value_of(registry, "kala_audit_sink_failures_total") == 3
    assert value_of(registry, "kala_audit_sink_delivered_total") == 50
    assert value_of(registry, "kala_audit_sink_lag_entries") == 0


def test_a_batch_that_is_too_large_becomes_smaller(feeder: Feeder, collector: Collector) -> None:
    sink = feeder.sink(SinkSettings(url=collector.url, batch_entries=50))
    collector.answers = [(413, b""), (413, b"")]
    for _ in range(2):
        with pytest.raises(SinkFailedError):
            sink.step()
    sink.step()
    assert len(collector.bodies[0].splitlines()) == 12


def test_otlp_goes_out_as_requests_and_what_is_dropped_there_is_counted(
    feeder: Feeder, collector: Collector
) -> None:
    registry = CollectorRegistry()
    settings = SinkSettings(url=collector.url, format="otlp", batch_entries=50)
    sink = feeder.sink(settings, registry=registry)
    collector.answers = [(200, b'{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"no"}}')]
    drain(sink)
    (request,) = collector.bodies
    assert len(json.loads(request)["resourceLogs"][0]["scopeLogs"][0]["logRecords"]) == 50
    assert collector.headers[0]["content-type"] == "application/json"
    assert value_of(registry, "kala_audit_sink_rejected_total") == 2


@pytest.mark.parametrize(
    "answer",
    [
        b'{"partialSuccess": {"rejectedLogRecords": "-3"}}',
        b'{"partialSuccess": {"rejectedLogRecords": 1e999}}',
        b'{"partialSuccess": {"rejectedLogRecords": "%s"}}' % (b"9" * 5_000),
        b"[" * 60_000,
    ],
    ids=["negative", "infinite", "endless digits", "deep"],
)
def test_a_collector_s_nonsense_does_not_make_it_get_everything_again_for_ever(
    feeder: Feeder, collector: Collector, answer: bytes
) -> None:
    """A negative count was no number for the counter, so what had been taken was never confirmed."""
    collector.answers = [(200, answer)]
    sink = feeder.sink(SinkSettings(url=collector.url, format="otlp"))
    drain(sink)
    assert sink.position() == 50
    assert len(collector.bodies) == 1


def test_a_collector_that_never_stops_answering_costs_no_memory_and_holds_nothing_up(feeder: Feeder) -> None:
    """The whole answer was read: a collector could end the log's process for want of memory, or wait it out."""
    sent = 0

    class Endless(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal sent
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            try:
                while sent < 1 << 28:
                    sent += self.wfile.write(b"x" * 65_536)
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        sink = feeder.sink(SinkSettings(url=f"http://127.0.0.1:{server.server_port}/"))
        drain(sink)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert sink.position() == 50
    assert sent < 1 << 26


def test_an_error_names_no_secret_of_the_url(feeder: Feeder) -> None:
    sink = feeder.sink(SinkSettings(url="http://user:secret@127.0.0.1:9/x"))
    with pytest.raises(SinkFailedError) as caught:
        sink.step()
    assert "secret" not in caught.value.message


def test_a_sink_may_begin_now_and_then_stays_where_it_was(
    feeder: Feeder, log: LogFile, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    settings = SinkSettings(url=path.as_uri(), start="now")
    drain(feeder.sink(settings))
    assert not path.exists()
    log.append(*(record(number) for number in range(50, 53)))
    drain(feeder.sink(settings))
    assert indexes(path.read_bytes().splitlines()) == [50, 51, 52]


def test_two_replicas_move_one_cursor_and_one_at_a_time_holds_the_lease(
    feeder: Feeder, log_database: str
) -> None:
    first, second = feeder.cursors(), feeder.cursors()
    assert first.position("siem", start=3) == second.position("siem", start=9) == 3
    assert first.advance("siem", 3, 10)
    assert not second.advance("siem", 3, 7)
    assert second.position("siem", start=0) == 10
    with first.lease("siem") as held:
        assert held
        if is_url(log_database):
            with second.lease("siem") as also, second.lease("other") as another:
                assert (also, another) == (False, True)
    with second.lease("siem") as held:
        assert held


async def test_the_service_feeds_its_sinks_as_the_log_grows_and_says_so_in_the_log(
    feeder: Feeder, collector: Collector, tmp_path: Path
) -> None:
    path = tmp_path / "audit.cef"
    settings = {
        "file": SinkSettings(url=path.as_uri(), format="cef"),
        "siem": SinkSettings(url=collector.url, format="ocsf"),
    }
    collector.answers = [(503, b"")] * 3
    async with feeder.feeding(settings):
        await eventually(lambda: len(lines_in(path)) == 52 and bool(collector.bodies))
    events = [json.loads(line) for body in collector.bodies for line in body.splitlines()]
    assert [event["metadata"]["sequence"] for event in events] == list(range(52))
    said = [event for event in events if event["message"] == "audit.export"]
    assert [json.loads(event["raw_data"])["attributes"] for event in said] == [
        [["format", "cef"], ["from_index", "0"], ["sink", "file"]],
        [["format", "ocsf"], ["from_index", "0"], ["sink", "siem"]],
    ]


async def test_a_bug_in_a_sink_ends_no_sink(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    failures = iter([ZeroDivisionError("a bug"), ZeroDivisionError("a bug")])
    real = sinks.Sink.step

    def step(self: Sink) -> bool:
        for error in failures:
            raise error
        return real(self)

    monkeypatch.setattr(sinks.Sink, "step", step)
    async with feeder.feeding({"file": SinkSettings(url=path.as_uri())}):
        await eventually(lambda: len(lines_in(path)) == 51)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"A b": {"url": "file:///x"}}', "name must match"),
        ('{"a": {"url": "ftp://user:secret@h/x"}}', "must begin with"),
        ('{"a": {"url": "file://host/x"}}', "absolute"),
        ('{"a": {"url": "file:///x/"}}', "absolute"),
        ('{"a": {"url": "http://user:secret@h:x/"}}', "not a URL"),
        ('{"a": {"url": "http:///x"}}', "name a host"),
        ('{"a": {"url": "file:///x", "header_file": "/y"}}', "header_file"),
        ('{"a": {"url": "file:///x", "format": "xml"}}', "jsonl"),
        ('{"a": {"url": "file:///x", "batch_entries": 0}}', "greater"),
        ('{"a": {"uri": "file:///x"}}', "required"),
        ("[]", "dictionary"),
    ],
)
def test_a_malformed_sink_stops_the_start_without_its_secret(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="KALA_AUDIT_SINKS") as caught:
        load(AuditSettings, section=SECTION, argv=[], environ={"KALA_AUDIT_SINKS": text}, cwd=tmp_path)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def value_of(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(name, {"sink": "siem"})
