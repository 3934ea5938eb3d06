"""What Prometheus is told of tools: how calls ended, and how strong the isolation is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.common.telemetry import ISOLATION_STRENGTH, LABEL_STATUS, LABEL_TOOL, METRICS, TOOL_CALLS
from services.tools.sandbox.model import Status

if TYPE_CHECKING:
    from services.tools.sandbox.model import Isolation


class CallCounter:
    """Counts calls of tools by how they ended; give it to Execution as `observe`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counter = Counter(
            TOOL_CALLS, METRICS[TOOL_CALLS], [LABEL_TOOL, LABEL_STATUS], registry=registry
        )

    def __call__(self, tool: str, status: Status) -> None:
        """Count one call; the tool is one that exists."""
        self._counter.labels(tool, status.value).inc()


def show_isolation(isolation: Isolation | None, registry: CollectorRegistry) -> None:
    """Show what keeps runs inside; 0 where nothing does."""
    gauge = Gauge(ISOLATION_STRENGTH, METRICS[ISOLATION_STRENGTH], registry=registry)
    gauge.set(0 if isolation is None else int(isolation.strength))
