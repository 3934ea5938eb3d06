"""The ethics process: verify the constitution, put the parts together, judge until told to stop or the laws change."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from functools import partial

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.errors import ConstitutionError, InvalidArgumentError
from kala.ethics.constitution import VerifiedConstitution
from kala.ethics.v1 import ethics_pb2_grpc
from kala.inference.v1 import inference_pb2
from kala.tools.v1 import code_pb2, tools_pb2
from kala.trainer.v1 import trainer_pb2
from services.common.audit_channel import open_audit_writer
from services.common.clearance import ClearanceSigner, guarded_methods
from services.common.event_loop import run
from services.common.interceptors import CallPolicy
from services.common.keys import load_private_key, load_public_key
from services.common.memory import give_back
from services.common.peers import ETHICS, GATEWAY, TRAINER, Peer
from services.common.server import ServerHandle, serving
from services.common.settings import load
from services.common.telemetry import process_telemetry, show_review_date
from services.ethics.announcements import Announcements
from services.ethics.archive import Archive
from services.ethics.bench import Bench
from services.ethics.config import SECTION, EthicsSettings
from services.ethics.guard.make import open_guard
from services.ethics.measuring import Measuring
from services.ethics.replay import RecordedGuardError
from services.ethics.seating import SeatGuard, seat_judges
from services.ethics.servicer import EthicsServicer, InForce
from services.ethics.watch import ConstitutionWatch

CHECK_ACTION = "/kala.ethics.v1.EthicsService/CheckAction"
# Every contract that may declare a guarded RPC.
GUARDED_CONTRACTS = (
    inference_pb2.DESCRIPTOR,
    code_pb2.DESCRIPTOR,
    tools_pb2.DESCRIPTOR,
    trainer_pb2.DESCRIPTOR,
)


async def main() -> None:
    """Serve until SIGTERM or SIGINT; ConstitutionError when the laws on disk are not, or no longer, what was signed."""
    settings = load(EthicsSettings, section=SECTION)
    watch = ConstitutionWatch(
        settings.constitution, settings.constitution_trust, interval_seconds=settings.reverify_seconds
    )
    async with AsyncExitStack() as stack:
        guard = await open_guard(settings, make_signer(settings), stack)
        bench = make_bench(settings, watch.in_force, guard)
        watch.forget_files()
        # Reading the constitution leaves some 27 MiB behind.
        give_back()
        servicer = make_servicer(settings, watch, bench)
        telemetry = stack.enter_context(process_telemetry(ETHICS, settings))
        show_review_date(watch.in_force.manifest.review_by, telemetry.registry)
        announcements = Announcements(await open_audit_writer(settings, stack, part=ETHICS))
        register = partial(ethics_pb2_grpc.add_EthicsServiceServicer_to_server, servicer)
        policy = CallPolicy(may_call=may_call, on_denied=announcements.denied)
        server = await stack.enter_async_context(
            serving(settings, [register], policy=policy, telemetry=telemetry.rpc)
        )
        await server.set_serving()
        await judge_until_stopped(server, watch, announcements)


def make_bench(
    settings: EthicsSettings, verified: VerifiedConstitution, guard: SeatGuard | None = None
) -> Bench:
    """Seat the judges over a verified constitution; an archived one needs no guard, whose words are in the record."""
    return seat_judges(
        verified,
        allow_unreadable=settings.unjudged_parts == "allow",
        on_fault=report_fault,
        guard=guard,
    )


def report_fault(judge: str, error: Exception) -> None:
    """Log that a judge failed; that a guard failed long ago, and a replay repeats it, is no news."""
    log = structlog.get_logger()
    if isinstance(error, RecordedGuardError):
        log.info("a recorded fault of a judge is repeated", judge=judge)
    else:
        log.error("a judge failed", judge=judge, exc_info=error)


def make_signer(settings: EthicsSettings) -> ClearanceSigner:
    """Give the signer of clearances."""
    return ClearanceSigner(signing_key(settings))


def signing_key(settings: EthicsSettings) -> Ed25519PrivateKey:
    """Read the key that signs clearances and measurements."""
    if settings.signing_key_file is None:
        raise InvalidArgumentError(
            "KALA_ETHICS_SIGNING_KEY_FILE",
            "must name the key that signs clearances; `kala keys init` makes one",
        )
    return load_private_key(settings.signing_key_file)


def make_servicer(settings: EthicsSettings, watch: ConstitutionWatch, bench: Bench) -> EthicsServicer:
    """Put the judges, the signing key and the contracts together."""
    next_key = (
        None if settings.next_public_key_file is None else load_public_key(settings.next_public_key_file)
    )
    return EthicsServicer(
        bench,
        in_force=InForce(watch.in_force, watch.verified_at),
        signer=make_signer(settings),
        measuring=Measuring(signing_key(settings)),
        audiences=guarded_methods(GUARDED_CONTRACTS),
        next_key=next_key,
        archive=Archive(settings.archive_dir, settings.constitution_trust, partial(make_bench, settings)),
    )


def may_call(method: str, peer: Peer) -> bool:
    """Clearances are for the gateway and the trainer; everything else is open to the allowed peers."""
    return method != CHECK_ACTION or peer.part in {GATEWAY, TRAINER}


async def judge_until_stopped(
    server: ServerHandle, watch: ConstitutionWatch, announcements: Announcements
) -> None:
    """Return at a signal; raise ConstitutionError when the laws on disk change."""
    try:
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(watch.run(server.set_not_serving)),
                group.create_task(announcements.in_force(watch.in_force)),
                group.create_task(announcements.remind_of_review(watch.in_force)),
            ]
            await server.run_until_signalled()
            for task in background:
                task.cancel()
    except ExceptionGroup as failures:
        changed = failures.subgroup(ConstitutionError)
        if changed is None:
            raise
        raise changed.exceptions[0] from None


if __name__ == "__main__":
    sys.exit(run(main()))
