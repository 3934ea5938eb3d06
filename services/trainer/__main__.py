"""The trainer's process: read the settings, take up what was cut, serve until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from kala.errors import InvalidArgumentError
from kala.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from services.common.audit_channel import open_audit_writer
from services.common.clearance import ClearanceVerifier, guard_for
from services.common.event_loop import run
from services.common.interceptors import CallPolicy
from services.common.keys import load_public_keys
from services.common.peers import TRAINER
from services.common.server import serving
from services.common.settings import load
from services.common.telemetry import process_telemetry
from services.trainer.assembly import open_trainer
from services.trainer.config import SECTION, TrainerSettings
from services.trainer.metrics import OperationCounter
from services.trainer.records import ADMINISTRATIVE, Records
from services.trainer.servicer import TrainerServicer


async def main() -> None:
    """Serve until SIGTERM or SIGINT; a KalaError says in one line why the process cannot start."""
    settings = load(TrainerSettings, section=SECTION)
    verifier = ClearanceVerifier(load_public_keys(_ethics_keys(settings)))
    async with AsyncExitStack() as stack:
        telemetry = stack.enter_context(process_telemetry(TRAINER, settings))
        writer = await open_audit_writer(settings, stack, part=TRAINER)
        if writer is None:
            raise InvalidArgumentError(
                "KALA_TRAINER_AUDIT_ADDRESS",
                "must name the audit service: nothing is trained that the log does not know",
            )
        records = Records(writer)
        observe = OperationCounter(telemetry.registry)
        trainer = await open_trainer(settings, records, stack, observe=observe)
        servicer = TrainerServicer(trainer.desks, trainer.operations, trainer.store)
        register = partial(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, servicer)
        server = await stack.enter_async_context(
            serving(settings, [register], policy=call_policy(verifier, records), telemetry=telemetry.rpc)
        )
        await trainer.recover()
        stack.push_async_callback(_ended, asyncio.create_task(trainer.sweep()))
        await server.set_serving()
        await server.run_until_signalled()


def call_policy(verifier: ClearanceVerifier, records: Records) -> CallPolicy:
    """Say which calls need a clearance and which are recorded here."""
    return CallPolicy(
        guard_for=guard_for(verifier, [trainer_pb2.DESCRIPTOR]),
        administrative=ADMINISTRATIVE,
        on_denied=records.denied,
        on_administrative=records.administrative,
    )


def _ethics_keys(settings: TrainerSettings) -> tuple[Path, ...]:
    if not settings.ethics_public_keys:
        raise InvalidArgumentError(
            "KALA_TRAINER_ETHICS_PUBLIC_KEYS",
            "must name ethics' public key: without it nothing can be cleared",
        )
    return settings.ethics_public_keys


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    sys.exit(run(main()))
