"""A collector gets what /metrics shows."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as wire
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as wire_grpc
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.common.otlp_metrics import exporting


class Collector(wire_grpc.MetricsServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[wire.ExportMetricsServiceRequest] = []

    def Export(self, request: wire.ExportMetricsServiceRequest, context: object) -> object:  # noqa: N802
        self.requests.append(request)
        return wire.ExportMetricsServiceResponse()

    def metrics(self) -> dict[str, Metric]:
        (resource,) = self.requests[-1].resource_metrics
        return {metric.name: metric for metric in resource.scope_metrics[0].metrics}


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    server, kept = grpc.server(futures.ThreadPoolExecutor(1)), Collector()
    wire_grpc.add_MetricsServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield kept, f"http://127.0.0.1:{port}"
    server.stop(0).wait()


def test_counters_gauges_and_histograms_arrive_with_their_labels(collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector
    registry = CollectorRegistry()
    with exporting(registry, part="ethics", endpoint=endpoint):
        Counter("calls", "Calls.", ["code"], registry=registry).labels("OK").inc(3)
        Gauge("running", "Running.", registry=registry).set(2)
        seconds = Histogram("seconds", "Time.", buckets=(0.1, 1), registry=registry)
        for value in (0.05, 0.5, 0.6, 7):
            seconds.observe(value)
    found = kept.metrics()
    (calls,) = found["calls"].sum.data_points
    assert (calls.as_double, calls.attributes[0].value.string_value) == (3, "OK")
    assert found["calls"].sum.is_monotonic
    assert found["running"].gauge.data_points[0].as_double == 2
    (point,) = found["seconds"].histogram.data_points
    assert list(point.explicit_bounds) == [0.1, 1]
    assert list(point.bucket_counts) == [1, 2, 1]
    assert (point.count, round(point.sum, 2)) == (4, 8.15)
    assert not point.HasField("min")
    names = {
        item.key: item.value.string_value
        for item in kept.requests[-1].resource_metrics[0].resource.attributes
    }
    assert names["service.name"] == "kala-ethics"


def test_without_a_collector_nothing_is_sent_or_started() -> None:
    with exporting(CollectorRegistry(), part="ethics", endpoint=None):
        pass


def test_a_collector_that_is_away_ends_nothing() -> None:
    with exporting(CollectorRegistry(), part="ethics", endpoint="http://127.0.0.1:1"):
        pass
