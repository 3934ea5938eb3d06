"""What a process tells about itself: metrics with bounded labels, one log line per RPC, and a trace position.

Every metric of every part is named here once; `docs/telemetry.md` lists them and a test compares the two.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    make_wsgi_app,
)

from kala.errors import FailedPreconditionError
from services.common.logs import bind_log_fields, configure_logging
from services.common.otlp_metrics import exporting
from services.common.pages import Pages, serving_pages
from services.common.tracing import Span, TraceContext, Tracer, UnrecordedTracer, enter_trace, open_tracer

if TYPE_CHECKING:
    from services.common.settings import ProcessSettings

__all__ = [
    "METRICS",
    "MethodTelemetry",
    "RpcTelemetry",
    "Telemetry",
    "bind_log_fields",
    "process_telemetry",
    "show_review_date",
]

RPC_HANDLED: Final = "kala_rpc_handled_total"
RPC_SECONDS: Final = "kala_rpc_duration_seconds"
RPC_RUNNING: Final = "kala_rpc_running"
AUDIT_HOOK_FAILURES: Final = "kala_rpc_audit_failures_total"
CONSTITUTION_REVIEW: Final = "kala_constitution_review_by_seconds"
BACKEND_ATTEMPTS: Final = "kala_backend_attempts_total"
BACKEND_BREAKER: Final = "kala_backend_breaker"
BACKEND_IN_FLIGHT: Final = "kala_backend_in_flight"
TOOL_CALLS: Final = "kala_tool_calls_total"
ISOLATION_STRENGTH: Final = "kala_tools_isolation_strength"
TRAINER_OPERATIONS: Final = "kala_trainer_operations_total"
TRAINER_PRESENT: Final = "kala_trainer_operations_present"
AUDIT_GAPS: Final = "kala_audit_gaps"
WITNESSED_SIZE: Final = "kala_audit_witnessed_entries"
SINK_LAG: Final = "kala_audit_sink_lag_entries"
SINK_DELIVERED: Final = "kala_audit_sink_delivered_total"
SINK_FAILURES: Final = "kala_audit_sink_failures_total"
SINK_REJECTED: Final = "kala_audit_sink_rejected_total"

LABEL_METHOD: Final = "method"
"""`/kala.<svc>.v1.<Service>/<Rpc>`: as many values as the process has RPCs."""

LABEL_CODE: Final = "code"
"""A gRPC status code's name: 17 values."""

LABEL_BACKEND: Final = "backend"
"""A backend's bare name: as many values as there are configured and found backends."""

LABEL_REASON: Final = "reason"
"""How an attempt ended: OK, UNDECIDED, or one of inference's stable reasons, which are never a server's words."""

LABEL_TOOL: Final = "tool"
"""A tool's name; only of tools that exist."""

LABEL_STATUS: Final = "status"
"""How a call of a tool, or long work of the trainer, ended: as many values as the contract has."""

LABEL_WITNESS: Final = "witness"
"""A witness's name; as many as the settings name."""

LABEL_SINK: Final = "sink"
"""A sink's name; as many as the settings name."""

LABEL_KIND: Final = "kind"
"""A kind of the trainer's long work: train, build, evaluate, export."""

LABEL_GAP: Final = "gap"
"""What is missing in the log: unmatched_intent, sequence_hole."""

METRICS: Final = {
    RPC_HANDLED: "RPCs that ended, by method and status code",
    RPC_SECONDS: "Seconds from the start of an RPC to its status, by method",
    RPC_RUNNING: "RPCs being served now, by method",
    AUDIT_HOOK_FAILURES: "Denied or administrative RPCs that the audit service did not acknowledge, by method",
    BACKEND_ATTEMPTS: "Attempts of requests at backends that ended, by backend and by how they ended",
    BACKEND_BREAKER: "State of a backend's circuit breaker: 0 closed, 1 half open, 2 open",
    BACKEND_IN_FLIGHT: "Requests that run at a backend or wait for a connection to it",
    TOOL_CALLS: "Calls of tools that ended, by tool and by how they ended",
    ISOLATION_STRENGTH: "What keeps runs inside: 0 nothing, 1 weak, 2 standard, 3 strong",
    TRAINER_OPERATIONS: "Long work of the trainer that ended, by kind and by how it ended",
    TRAINER_PRESENT: "Long work of the trainer that waits or runs, by kind",
    WITNESSED_SIZE: "Entries of the newest checkpoint that a witness cosigned, by witness",
    SINK_LAG: "Entries that a sink has not confirmed yet, by sink",
    SINK_DELIVERED: "Entries that a sink has taken, repeats included, by sink",
    SINK_FAILURES: "Deliveries that a sink did not take and that are tried again, by sink",
    SINK_REJECTED: "Entries that a collector said it will never take, by sink",
    AUDIT_GAPS: "What is missing in the log: intents without outcome, and holes in producers' numbers",
    CONSTITUTION_REVIEW: "Unix time in seconds at which the review date of the constitution in force is over; 0 without one",
}
"""Every metric with its help text, unit first where it has one."""

DURATION_BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
)  # fmt: skip
"""Seconds; from a check on a warm process to `max_act_seconds`."""


class RpcTelemetry:
    """Counts, times and logs RPCs; one per process."""

    def __init__(
        self,
        *,
        registry: CollectorRegistry | None = None,
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        registry = CollectorRegistry() if registry is None else registry
        self.registry = registry
        self._tracer = UnrecordedTracer() if tracer is None else tracer
        self._clock = clock
        self._handled = Counter(
            RPC_HANDLED, METRICS[RPC_HANDLED], [LABEL_METHOD, LABEL_CODE], registry=registry
        )
        self._seconds = Histogram(
            RPC_SECONDS, METRICS[RPC_SECONDS], [LABEL_METHOD], registry=registry, buckets=DURATION_BUCKETS
        )
        self._running = Gauge(RPC_RUNNING, METRICS[RPC_RUNNING], [LABEL_METHOD], registry=registry)
        self._audit_failures = Counter(
            AUDIT_HOOK_FAILURES, METRICS[AUDIT_HOOK_FAILURES], [LABEL_METHOD], registry=registry
        )

    def of_method(self, method: str) -> MethodTelemetry:
        """Prepare what one method needs, so that a call looks no label up."""
        return MethodTelemetry(
            method=method,
            tracer=self._tracer,
            clock=self._clock,
            # Bound now: the lazy logger would build a new one for every line.
            log=structlog.get_logger().bind(method=method),
            running=self._running.labels(method),
            seconds=self._seconds.labels(method),
            audit_failures=self._audit_failures.labels(method),
            handled=self._handled,
        )


@dataclass(frozen=True, slots=True)
class Observation:
    """An RPC that is being observed."""

    started: float
    span: Span


@dataclass(frozen=True, slots=True)
class MethodTelemetry:
    """Observes the calls of one method."""

    method: str
    tracer: Tracer
    clock: Callable[[], float]
    log: structlog.typing.FilteringBoundLogger
    running: Gauge
    seconds: Histogram
    audit_failures: Counter
    handled: Counter
    by_code: dict[str, Counter] = field(default_factory=dict)

    def begin(self, parent: TraceContext | None) -> Observation:
        """Start observing a call, and make its trace the one that calls from this task carry on."""
        self.running.inc()
        span = self.tracer.begin(self.method, parent)
        enter_trace(span.context)
        return Observation(self.clock(), span)

    def end(self, observed: Observation, *, code: str, peer: str, reason: str = "") -> None:
        """Count, time and log a call that ended."""
        seconds = self.clock() - observed.started
        self.running.dec()
        self.seconds.observe(seconds)
        counter = self.by_code.get(code)
        if counter is None:
            counter = self.by_code[code] = self.handled.labels(self.method, code)
        counter.inc()
        observed.span.end(code)
        fields = {"reason": reason} if reason else {}
        self.log.info(
            "rpc",
            code=code,
            duration_ms=round(seconds * 1000, 3),
            trace_id=observed.span.context.trace_id,
            peer=peer,
            **fields,
        )


def show_review_date(review_by: dt.date | None, registry: CollectorRegistry) -> None:
    """Let an alert compare the time with the end of the day by which the constitution is to be reviewed, in UTC."""
    gauge = Gauge(CONSTITUTION_REVIEW, METRICS[CONSTITUTION_REVIEW], registry=registry)
    if review_by is not None:
        over = dt.datetime.combine(review_by, dt.time.min, dt.UTC) + dt.timedelta(days=1)
        gauge.set(over.timestamp())


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A process's telemetry while it runs."""

    registry: CollectorRegistry
    rpc: RpcTelemetry
    metrics_port: int | None
    pages: Pages
    """What the metrics port serves besides."""


@contextmanager
def process_telemetry(part: str, settings: ProcessSettings) -> Iterator[Telemetry]:
    """Configure logs, open the tracer, serve /metrics and export them where a collector is configured, for as long as the context is entered."""
    configure_logging(part=part, level=settings.log_level, style=settings.log_format)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    with ExitStack() as stack:
        tracer = open_tracer(part=part, endpoint=settings.otlp_endpoint)
        stack.callback(tracer.close)
        stack.enter_context(exporting(registry, part=part, endpoint=settings.otlp_endpoint))
        pages = Pages()
        port = stack.enter_context(
            metrics_server(registry, host=settings.metrics_host, port=settings.metrics_port, pages=pages)
        )
        yield Telemetry(registry, RpcTelemetry(registry=registry, tracer=tracer), port, pages)


@contextmanager
def metrics_server(
    registry: CollectorRegistry, *, host: str, port: int | None, pages: Pages | None = None
) -> Iterator[int | None]:
    """Serve a registry at `http://host:port/metrics` from a thread and give the port; 0 takes a free one, None none.

    `pages` are served at their own paths beside it, also those that are added later.
    """
    if port is None:
        yield None
        return
    metrics = make_wsgi_app(registry)
    served = serving_pages(metrics if pages is None else pages.beside(metrics), host=host, port=port)
    with ExitStack() as stack:
        try:
            bound = stack.enter_context(served)
        except OSError as error:
            raise FailedPreconditionError(
                f"/metrics cannot listen on {host}:{port}: {error.strerror}"
            ) from error
        yield bound
