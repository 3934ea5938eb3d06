"""Starts the gateway: `python -m gateway`."""

from __future__ import annotations

import sys

import structlog

from gateway.config import SECTION, GatewaySettings
from gateway.http_server import serving_http
from gateway.process import gateway_app
from services.common.event_loop import run, wait_for_stop_signal
from services.common.peers import GATEWAY
from services.common.settings import load
from services.common.telemetry import process_telemetry


async def main() -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    settings = load(GatewaySettings, section=SECTION)
    with process_telemetry(GATEWAY, settings) as telemetry:
        async with gateway_app(settings, telemetry) as app, serving_http(app, settings) as url:
            structlog.get_logger().info("serving", url=url)
            await wait_for_stop_signal()


if __name__ == "__main__":
    sys.exit(run(main()))
