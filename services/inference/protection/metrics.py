"""What Prometheus is told of the backends: attempts by their end, and breakers and load as they are when it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.telemetry import (
    BACKEND_ATTEMPTS,
    BACKEND_BREAKER,
    BACKEND_IN_FLIGHT,
    LABEL_BACKEND,
    LABEL_REASON,
    METRICS,
)
from services.inference.protection.breaker import BreakerState

if TYPE_CHECKING:
    from services.inference.registry.registry import Entry

_VALUES: Final = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class AttemptCounter:
    """Counts attempts; give it to Protection as `observe`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = [LABEL_BACKEND, LABEL_REASON]
        self._counter = Counter(BACKEND_ATTEMPTS, METRICS[BACKEND_ATTEMPTS], labels, registry=registry)
        self._children: dict[tuple[str, str], Counter] = {}

    def __call__(self, backend: str, reason: str) -> None:
        """Count one attempt."""
        child = self._children.get((backend, reason))
        if child is None:
            child = self._counter.labels(backend, reason)
            self._children[backend, reason] = child
        child.inc()


class BackendCollector(Collector):
    """Shows breakers and load; asked from the thread that serves /metrics, so it only reads."""

    def __init__(self, entries: Callable[[], Iterable[Entry]]) -> None:
        self._entries = entries

    def collect(self) -> Iterator[Metric]:
        """Give the state of each backend now."""
        breakers = GaugeMetricFamily(BACKEND_BREAKER, METRICS[BACKEND_BREAKER], labels=[LABEL_BACKEND])
        running = GaugeMetricFamily(BACKEND_IN_FLIGHT, METRICS[BACKEND_IN_FLIGHT], labels=[LABEL_BACKEND])
        for entry in self._entries():
            name = entry.backend.identity.name
            breakers.add_metric([name], _VALUES[entry.guard.state])
            running.add_metric([name], entry.guard.in_flight)
        yield breakers
        yield running
