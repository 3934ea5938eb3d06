"""A collector of telemetry, and a feeder that feeds a sink as the log's service does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client import CollectorRegistry

from services.audit.export.sink_cursors import SinkCursors
from services.audit.export.sink_settings import SinkSettings
from services.audit.export.sink_targets import target_of
from services.audit.export.sinks import Sink, SinkMetrics, SinkPace, feeding
from services.audit.log import Log
from services.audit.own_records import OwnRecords
from services.audit.storage.store import LogReader
from tests.fakes.audit_log import NOW, ORIGIN, LogFile

QUICK = SinkPace(poll=0.01, first_retry=0.01, last_retry=0.02, standby=0.01)


class Collector:
    """An HTTP server that keeps what it is sent and answers as it is told: 200, or the next of `answers`."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[tuple[int, bytes]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status, answer = collector.answers.pop(0) if collector.answers else (200, b"{}")
                if status == 200:
                    collector.bodies.append(body)
                    collector.headers.append({k.lower(): v for k, v in self.headers.items()})
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/ingest"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass
class Feeder:
    """Makes sinks of one log, and closes what they hold."""

    log: LogFile
    stack: ExitStack

    def cursors(self) -> SinkCursors:
        engine = self.log.open_engine()
        self.stack.callback(engine.dispose)
        return SinkCursors(engine, self.log.log_id, clock=lambda: NOW)

    def open_reader(self) -> LogReader:
        return self.stack.enter_context(closing(self.log.open_reader()))

    def sink(self, settings: SinkSettings, *, registry: CollectorRegistry | None = None) -> Sink:
        sink = Sink(
            "siem",
            settings,
            target_of(settings),
            reader=self.log.reader,
            cursors=self.cursors(),
            metrics=SinkMetrics(registry or CollectorRegistry()),
            origin=ORIGIN,
        )
        self.stack.callback(sink.close)
        return sink

    @asynccontextmanager
    async def feeding(self, settings: dict[str, SinkSettings]) -> AsyncIterator[None]:
        """Feeds sinks as the service does."""
        appending = Log(self.log.batches)
        appending.start()
        async with (
            asyncio.timeout(20),
            feeding(
                settings,
                open_reader=self.open_reader,
                cursors=self.cursors(),
                own=OwnRecords(appending, clock=lambda: NOW),
                registry=CollectorRegistry(),
                origin=ORIGIN,
                pace=QUICK,
            ),
        ):
            yield
        await appending.stop()


def indexes(lines: list[bytes]) -> list[int]:
    return [int(json.loads(line)["trace_id"], 16) for line in lines]


def lines_in(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


async def eventually(check: Callable[[], bool]) -> None:
    """Waits for what another thread does."""
    while not check():  # noqa: ASYNC110 - a file tells nobody
        await asyncio.sleep(0.01)


def drain(sink: Sink) -> None:
    while sink.step():
        pass
