"""What Prometheus is told of the trainer: how much long work there is, and how it ended."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.common.telemetry import LABEL_KIND, LABEL_STATUS, METRICS, TRAINER_OPERATIONS, TRAINER_PRESENT


class OperationCounter:
    """Counts operations as they begin and end; give it to Operations as `observe`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter(
            TRAINER_OPERATIONS, METRICS[TRAINER_OPERATIONS], [LABEL_KIND, LABEL_STATUS], registry=registry
        )
        self._present = Gauge(TRAINER_PRESENT, METRICS[TRAINER_PRESENT], [LABEL_KIND], registry=registry)

    def began(self, kind: str) -> None:
        """Count one that was accepted."""
        self._present.labels(kind).inc()

    def ended(self, kind: str, status: str) -> None:
        """Count one that ended."""
        self._present.labels(kind).dec()
        self._ended.labels(kind, status).inc()
