"""Sends a process's Prometheus metrics to an OpenTelemetry collector as well: one registry, two ways out."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint, Metric, MetricsData, NumberDataPoint
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.registry import CollectorRegistry
    from prometheus_client.samples import Sample

EXPORT_SECONDS: Final = 15.0
"""As often as Prometheus usually asks; the SDK's own 60 s hides short outages."""

EXPORT_TIMEOUT_MILLIS: Final = 5_000
CLOSE_SECONDS: Final = 6.0

SCOPE: Final = "services.common"
INFINITE: Final = "+Inf"

Send = Callable[["MetricsData"], None]


@contextmanager
def exporting(registry: CollectorRegistry, *, part: str, endpoint: str | None) -> Iterator[None]:
    """Export the registry for as long as the context is entered, and once more at its end; without an endpoint nothing."""
    if endpoint is None:
        yield
        return
    # Imported here because without a collector the SDK must cost no memory and no start-up time.
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    exporter = OTLPMetricExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    started, over = time.time_ns(), threading.Event()

    def send() -> None:
        data = metrics_data(registry.collect(), part=part, started=started, now=time.time_ns())
        exporter.export(data, timeout_millis=EXPORT_TIMEOUT_MILLIS)

    thread = threading.Thread(target=_repeat, args=(send, over), name="otlp-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(CLOSE_SECONDS)
        exporter.shutdown()


def _repeat(send: Callable[[], None], over: threading.Event) -> None:
    while True:
        ended = over.wait(EXPORT_SECONDS)
        try:
            send()
        except Exception as error:  # noqa: BLE001 - the edge of a thread: metrics must never end a process
            structlog.get_logger().warning("metrics were not exported", error=type(error).__name__)
        if ended:
            return


def metrics_data(families: Iterable[Family], *, part: str, started: int, now: int) -> MetricsData:
    """Write Prometheus families as OTLP metrics; times are Unix nanoseconds. Pure but for the SDK's types."""
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    metrics = [_metric(family, started, now) for family in families if family.samples]
    scope = ScopeMetrics(scope=InstrumentationScope(SCOPE), metrics=metrics, schema_url="")
    resource = Resource.create({"service.name": f"kala-{part}"})
    return MetricsData([ResourceMetrics(resource=resource, scope_metrics=[scope], schema_url="")])


def _metric(family: Family, started: int, now: int) -> Metric:
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Histogram, Metric, Sum

    cumulative = AggregationTemporality.CUMULATIVE
    data: Gauge | Histogram | Sum
    if family.type == "histogram":
        data = Histogram(_histograms(family.samples, started, now), cumulative)
    elif family.type == "counter":
        totals = [sample for sample in family.samples if sample.name.endswith("_total")]
        data = Sum(_numbers(totals, started, now), cumulative, is_monotonic=True)
    else:
        data = Gauge(_numbers(family.samples, started, now))
    return Metric(name=family.name, description=family.documentation, unit=family.unit, data=data)


def _numbers(samples: Iterable[Sample], started: int, now: int) -> list[NumberDataPoint]:
    from opentelemetry.sdk.metrics.export import NumberDataPoint

    return [NumberDataPoint(dict(sample.labels), started, now, sample.value) for sample in samples]


def _histograms(samples: Iterable[Sample], started: int, now: int) -> list[HistogramDataPoint]:
    by_labels: dict[tuple[tuple[str, str], ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        by_labels[tuple(sorted(labels.items()))].append(sample)
    return [_histogram(dict(labels), group, started, now) for labels, group in by_labels.items()]


def _histogram(
    labels: Mapping[str, str], samples: Iterable[Sample], started: int, now: int
) -> HistogramDataPoint:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    bounds: list[float] = []
    cumulative: list[int] = []
    total = 0.0
    for sample in samples:
        if sample.name.endswith("_bucket"):
            cumulative.append(int(sample.value))
            if sample.labels["le"] != INFINITE:
                bounds.append(float(sample.labels["le"]))
        elif sample.name.endswith("_sum"):
            total = sample.value
    # Prometheus counts everything up to a bound, OTLP what lies between two.
    counts = [count - before for before, count in zip([0, *cumulative], cumulative, strict=False)]
    return HistogramDataPoint(
        attributes=dict(labels),
        start_time_unix_nano=started,
        time_unix_nano=now,
        count=cumulative[-1] if cumulative else 0,
        sum=total,
        bucket_counts=counts,
        explicit_bounds=bounds,
        min=None,  # type: ignore[arg-type]  # Prometheus keeps none; the exporter leaves it out
        max=None,  # type: ignore[arg-type]  # as above
    )
