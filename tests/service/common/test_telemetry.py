"""What a call leaves behind: metrics over HTTP, one log line without content, and spans only for a collector."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client import CollectorRegistry
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from kala import errors
from services.common.logs import bind_log_fields
from services.common.pages import Pages
from services.common.settings import ProcessSettings
from services.common.status import translated
from services.common.telemetry import (
    METRICS,
    RpcTelemetry,
    metrics_server,
    process_telemetry,
    show_review_date,
)
from services.common.tracing import OtlpTracer, TraceContext, enter_trace
from tests.fakes.echo import METHODS, SAY, EchoService, echo_and_client

KINDS = pytest.mark.parametrize("kind", list(METHODS))
REPOSITORY = Path(__file__).parents[3]


@KINDS
async def test_a_call_is_counted_and_timed(kind: str) -> None:
    telemetry = RpcTelemetry()
    service = EchoService({"bad": errors.NotFoundError("no such word")})
    async with echo_and_client(service, telemetry=telemetry) as client:
        await client.call(kind, "yes")
        with pytest.raises(errors.NotFoundError), translated():
            await client.call(kind, "bad")
    method = METHODS[kind]

    def value(name: str, **labels: str) -> float | None:
        return telemetry.registry.get_sample_value(name, {"method": method, **labels})

    assert value("kala_rpc_handled_total", code="OK") == 1
    assert value("kala_rpc_handled_total", code="NOT_FOUND") == 1
    assert value("kala_rpc_duration_seconds_count") == 2
    assert value("kala_rpc_running") == 0


@KINDS
async def test_a_call_that_is_cancelled_is_counted_as_such(kind: str) -> None:
    telemetry = RpcTelemetry()
    service = EchoService()
    async with echo_and_client(service, telemetry=telemetry) as client:
        call = asyncio.create_task(client.call(kind, "wait"))
        await service.waiting.wait()
        call.cancel()
        await service.unwound.wait()
        with pytest.raises(asyncio.CancelledError):
            await call
    labels = {"method": METHODS[kind], "code": "CANCELLED"}
    assert telemetry.registry.get_sample_value("kala_rpc_handled_total", labels) == 1


async def test_metrics_are_served_over_http() -> None:
    telemetry = RpcTelemetry()
    async with echo_and_client(EchoService(), telemetry=telemetry) as client:
        await client.say("yes")
    with metrics_server(telemetry.registry, host="127.0.0.1", port=0) as port:
        text = await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/metrics")
    assert f'kala_rpc_handled_total{{code="OK",method="{SAY}"}} 1.0' in text


def test_no_metrics_port_means_no_server() -> None:
    with metrics_server(CollectorRegistry(), host="127.0.0.1", port=None) as port:
        assert port is None


async def test_a_metrics_port_that_is_taken_is_named() -> None:
    with (
        metrics_server(CollectorRegistry(), host="127.0.0.1", port=0) as port,
        pytest.raises(errors.FailedPreconditionError, match=f"127.0.0.1:{port}"),
        metrics_server(CollectorRegistry(), host="127.0.0.1", port=port),
    ):
        pass


async def test_a_page_is_served_beside_the_metrics_and_takes_none_of_their_paths() -> None:
    def page(environ: dict[str, str], start_response: Callable[..., object]) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    pages, registry = Pages(), CollectorRegistry()
    with metrics_server(registry, host="127.0.0.1", port=0, pages=pages) as port:
        pages.mount("tile", page)
        texts = [
            await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/{path}")
            for path in ("tile/0/000", "tile", "metrics")
        ]
        # A mirror that asks early must not take metrics for a checkpoint.
        for path in ("tiles", "checkpoint", ""):
            with pytest.raises(HTTPError, match="404"):
                await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/{path}")
    assert texts == ["/tile/0/000", "/tile", ""]


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.read().decode()


async def test_a_log_line_has_the_handlers_fields_and_the_callers_trace() -> None:
    def answer(_context: object) -> str:
        bind_log_fields(session="ses_1")
        return "done"

    with capture_logs(processors=[merge_contextvars]) as lines:
        async with echo_and_client(EchoService(answers={"x": answer})) as client:
            enter_trace(TraceContext("ab" * 16, "cd" * 8, sampled=True))
            await client.say("x")
            await client.say("y")
    first, second = lines
    assert first["session"] == "ses_1"
    assert first["trace_id"] == "ab" * 16
    assert "session" not in second


async def test_a_bug_is_logged_with_its_traceback_and_trace() -> None:
    with capture_logs() as lines:
        async with echo_and_client(EchoService({"bug": KeyError("detail")})) as client:
            with pytest.raises(errors.InternalError), translated():
                await client.say("bug")
    bug, line = lines
    assert "KeyError: 'detail'" in bug["exception"]
    assert bug["trace_id"] == line["trace_id"]
    assert line["code"] == "INTERNAL"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: list[str] = []

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        for resource in request.resource_spans:
            self.services += [
                attribute.value.string_value
                for attribute in resource.resource.attributes
                if attribute.key == "service.name"
            ]
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    server = grpc.aio.server()
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield collector, f"http://127.0.0.1:{port}"
    await server.stop(None)


async def test_spans_reach_a_collector_under_the_callers_trace(collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector
    tracer = OtlpTracer(part="ethics", endpoint=endpoint)
    service = EchoService({"bad": errors.NotFoundError("no such word")})
    async with echo_and_client(service, telemetry=RpcTelemetry(tracer=tracer)) as client:
        enter_trace(TraceContext("ab" * 16, "cd" * 8, sampled=True))
        with pytest.raises(errors.NotFoundError), translated():
            await client.say("bad")
    await asyncio.to_thread(tracer.close)
    (span,) = kept.spans
    assert kept.services == ["kala-ethics"]
    assert span.name == SAY
    assert span.trace_id.hex() == "ab" * 16
    assert span.parent_span_id.hex() == "cd" * 8
    assert {item.key: item.value.string_value for item in span.attributes} == {
        "rpc.grpc.status_code": "NOT_FOUND"
    }


def test_a_process_serves_its_own_metrics_while_it_runs(undone_logging: None) -> None:
    settings = ProcessSettings(metrics_port=0, log_level="error")
    with process_telemetry("ethics", settings) as telemetry:
        text = fetch(f"http://127.0.0.1:{telemetry.metrics_port}/metrics")
        assert telemetry.rpc.registry is telemetry.registry
    assert "process_resident_memory_bytes" in text
    with pytest.raises(OSError, match="refused"):
        fetch(f"http://127.0.0.1:{telemetry.metrics_port}/metrics")


def test_without_a_collector_no_sdk_is_loaded() -> None:
    code = "import sys, services.common.server, services.common.channel as c; print('opentelemetry.sdk' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_every_metric_is_documented_and_nothing_else_is() -> None:
    text = (REPOSITORY / "docs" / "telemetry.md").read_text()
    assert set(re.findall(r"^\| `(kala_\w+)`", text, re.MULTILINE)) == set(METRICS)


@pytest.mark.parametrize(
    ("review_by", "seconds"),
    [(dt.date(1970, 1, 1), 86_400.0), (dt.date(2027, 1, 31), 1_801_440_000.0), (None, 0.0)],
    ids=str,
)
def test_the_review_date_is_over_at_the_end_of_its_day(review_by: dt.date | None, seconds: float) -> None:
    registry = CollectorRegistry()
    show_review_date(review_by, registry)
    assert registry.get_sample_value("kala_constitution_review_by_seconds") == seconds
