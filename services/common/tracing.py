"""W3C trace context: read from a request, kept for the task, sent on; spans are recorded only with a collector.

Without a collector no OpenTelemetry SDK is imported: an RPC gets ids for its log line and nothing else.
"""

from __future__ import annotations

import os
import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry import trace

TRACEPARENT_KEY: Final = "traceparent"

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
"""W3C Trace Context section 3.2; version ff is forbidden, later versions may append fields."""

_SAMPLED: Final = 1

# Set for the task that serves one request; calls made from it carry it on.
_current: ContextVar[TraceContext | None] = ContextVar("kala_trace", default=None)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One position in a trace: 32 and 16 lower-case hex digits, and whether spans are being recorded."""

    trace_id: str
    span_id: str
    sampled: bool

    @property
    def traceparent(self) -> str:
        """The header's value, W3C Trace Context section 3.2."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


class Span(Protocol):
    """One piece of work in a trace."""

    @property
    def context(self) -> TraceContext:
        """Where this span stands."""
        ...

    def end(self, code: str) -> None:
        """Finish with the name of a gRPC status code."""
        ...


class Tracer(Protocol):
    """Starts spans and hands recorded ones to a collector, if there is one."""

    def begin(self, name: str, parent: TraceContext | None) -> Span:
        """Start a span; without a parent it begins a trace."""
        ...

    def close(self) -> None:
        """Send what is recorded and stop."""
        ...


def parse_traceparent(value: str) -> TraceContext | None:
    """Read a traceparent header, or give None for one that the standard says to ignore."""
    match = _TRACEPARENT.fullmatch(value)
    if match is None or match[1] == "0" * 32 or match[2] == "0" * 16:
        return None
    if value.startswith("00") and len(value) != len("00-") + 32 + 1 + 16 + len("-00"):
        return None
    return TraceContext(match[1], match[2], bool(int(match[3], 16) & _SAMPLED))


def current_trace() -> TraceContext | None:
    """Give the trace context of the request this task serves."""
    return _current.get()


def enter_trace(context: TraceContext) -> None:
    """Make `context` the one that this task and the tasks it starts carry on."""
    _current.set(context)


@dataclass(frozen=True, slots=True)
class UnrecordedSpan:
    """Ids without a recording."""

    context: TraceContext

    def end(self, code: str) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class UnrecordedTracer:
    """Continues traces without recording them, so that ids still join the log lines of all parts."""

    randomness: Callable[[int], bytes] = os.urandom

    def begin(self, name: str, parent: TraceContext | None) -> UnrecordedSpan:  # noqa: ARG002 - the Tracer protocol
        """Draw ids for a span."""
        if parent is not None:
            return UnrecordedSpan(TraceContext(parent.trace_id, self.randomness(8).hex(), parent.sampled))
        ids = self.randomness(24).hex()
        return UnrecordedSpan(TraceContext(ids[:32], ids[32:], sampled=False))

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class _RecordedSpan:
    span: trace.Span
    context: TraceContext

    def end(self, code: str) -> None:
        self.span.set_attribute("rpc.grpc.status_code", code)
        self.span.end()


class OtlpTracer:
    """Records spans with the OpenTelemetry SDK and sends them in batches to a collector over OTLP gRPC."""

    def __init__(self, *, part: str, endpoint: str) -> None:
        # Imported here because without a collector the SDK must cost no memory and no start-up time.
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._trace = trace
        self._provider = TracerProvider(resource=Resource.create({"service.name": f"kala-{part}"}))
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("services.common")

    def begin(self, name: str, parent: TraceContext | None) -> Span:
        """Start a recorded server span."""
        otel = self._trace
        carried = (
            None if parent is None else otel.set_span_in_context(otel.NonRecordingSpan(_to_otel(parent)))
        )
        span = self._tracer.start_span(name, context=carried, kind=otel.SpanKind.SERVER)
        ids = span.get_span_context()
        return _RecordedSpan(
            span,
            TraceContext(f"{ids.trace_id:032x}", f"{ids.span_id:016x}", ids.trace_flags.sampled),
        )

    def close(self) -> None:
        """Send what is recorded and stop the sender's thread."""
        self._provider.shutdown()


def _to_otel(context: TraceContext) -> trace.SpanContext:
    from opentelemetry import trace

    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if context.sampled else trace.TraceFlags.DEFAULT)
    return trace.SpanContext(
        int(context.trace_id, 16), int(context.span_id, 16), is_remote=True, trace_flags=flags
    )


def open_tracer(*, part: str, endpoint: str | None) -> Tracer:
    """Give a tracer that records when a collector is configured, and one that only numbers spans when not."""
    return UnrecordedTracer() if endpoint is None else OtlpTracer(part=part, endpoint=endpoint)
