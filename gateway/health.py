"""`/healthz`, `/readyz` and `/metrics`: for probes, without a key; nothing in them is about a caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from gateway.edge import Exchange

if TYPE_CHECKING:
    from gateway.ledger import Ledger

PROBE_SECONDS: Final = 1.0
"""A probe that takes longer counts as failed: Kubernetes' default timeout is 1 s."""

READY_MEMORY_SECONDS: Final = 0.5
"""Probes from many sides ask ethics at most this often."""


class Health:
    """Tells probes how the process is."""

    def __init__(
        self,
        *,
        ethics: grpc.aio.Channel,
        ledger: Ledger,
        registry: CollectorRegistry,
        clock: Callable[[], float],
    ) -> None:
        # grpcio-health-checking types its stub for the blocking API only.
        self._ethics: Any = health_pb2_grpc.HealthStub(ethics)
        self._ledger = ledger
        self._registry = registry
        self._clock = clock
        self._asked_at = float("-inf")
        self._ethics_serves = False
        self._asking = asyncio.Lock()

    async def live(self, exchange: Exchange) -> None:
        """Answer 200 as long as the process can."""
        await exchange.send_json(200, {"status": "ok"})

    async def ready(self, exchange: Exchange) -> None:
        """Answer 200 when ethics and the log, or the spool in its place, would take a request; never for want of others."""
        parts = {"ethics": await self._is_ethics_serving(), "audit": self._ledger.is_ready()}
        is_ready = all(parts.values())
        await exchange.send_json(
            200 if is_ready else 503,
            {
                "status": "ready" if is_ready else "not ready",
                "parts": {name: "ok" if good else "unavailable" for name, good in parts.items()},
            },
        )

    async def metrics(self, exchange: Exchange) -> None:
        """Answer in Prometheus' text format."""
        await exchange.send_bytes(200, generate_latest(self._registry), CONTENT_TYPE_LATEST)

    async def _is_ethics_serving(self) -> bool:
        async with self._asking:
            if self._clock() - self._asked_at >= READY_MEMORY_SECONDS:
                self._ethics_serves = await self._ask_ethics()
                self._asked_at = self._clock()
            return self._ethics_serves

    async def _ask_ethics(self) -> bool:
        try:
            response = await self._ethics.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS)
        except grpc.RpcError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)
