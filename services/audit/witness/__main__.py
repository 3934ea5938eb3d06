"""Runs a witness: `python -m services.audit.witness`."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, closing
from typing import cast

import structlog

from services.audit.witness.add_checkpoint import AddCheckpoint
from services.audit.witness.config import SECTION, WitnessSettings
from services.audit.witness.keys import load_cosigners, load_log_keys
from services.audit.witness.server import serving_witness
from services.audit.witness.state import WitnessState
from services.common.addresses import TcpAddress, parse_address
from services.common.event_loop import run, wait_for_stop_signal
from services.common.settings import load
from services.common.telemetry import process_telemetry


async def main() -> None:
    """Cosigns until SIGTERM."""
    settings = load(WitnessSettings, section=SECTION)
    cosigners = load_cosigners(settings.key_file)
    logs = load_log_keys(settings.log_vkey_files)
    tls = (
        None
        if settings.tls_cert_file is None or settings.tls_key_file is None
        else (settings.tls_cert_file, settings.tls_key_file)
    )
    with ExitStack() as stack:
        stack.enter_context(process_telemetry(SECTION, settings))
        state = stack.enter_context(closing(WitnessState(settings.state_file)))
        witness = AddCheckpoint(logs=logs, cosigners=cosigners, state=state, clock=lambda: int(time.time()))
        address = cast("TcpAddress", parse_address(settings.address))  # the settings refuse any other
        port = stack.enter_context(serving_witness(address, witness.answer, tls=tls))
        structlog.get_logger().info(
            "the witness listens",
            port=port,
            name=cosigners[0].witness.name,
            logs=sorted({log.name for log in logs}),
        )
        await wait_for_stop_signal()


if __name__ == "__main__":
    sys.exit(run(main()))
