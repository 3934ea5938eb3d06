"""The tools process: read the settings, find out what isolation holds, serve until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from kala.errors import FailedPreconditionError, InvalidArgumentError
from kala.inference.v1.inference_pb2_grpc import InferenceServiceStub
from kala.tools.v1 import tools_pb2, tools_pb2_grpc
from services.common.audit_channel import open_audit_writer
from services.common.channel import open_channel
from services.common.clearance import ClearanceVerifier, guard_for
from services.common.event_loop import run
from services.common.interceptors import CallPolicy
from services.common.keys import load_private_key, load_public_keys
from services.common.peers import TOOLS
from services.common.server import serving
from services.common.settings import load
from services.common.telemetry import process_telemetry
from services.tools.code.hints import Hints
from services.tools.config import SECTION, ToolsSettings
from services.tools.execution import Execution
from services.tools.files.model import WorkspaceRules
from services.tools.files.workspaces import Workspaces
from services.tools.generating import Generating
from services.tools.isolation import Desk
from services.tools.measuring import Measuring
from services.tools.metrics import CallCounter, show_isolation
from services.tools.pages import PageTokens
from services.tools.policy.approval_files import ApprovalFiles
from services.tools.policy.approvals import ApprovalBook
from services.tools.policy.loading import DEFAULT_POLICY, read_policy
from services.tools.policy.model import Policy
from services.tools.policy.zones import Zones
from services.tools.records import ADMINISTRATIVE, Records
from services.tools.repairing import Repairing
from services.tools.running import Background
from services.tools.runs import Runs
from services.tools.sandbox.detection import detect
from services.tools.sandbox.model import Status
from services.tools.scanning import Scanning
from services.tools.semgrep import Semgrep
from services.tools.servicer import Service, ToolsServicer
from services.tools.testing import Testing
from services.tools.tiers import candidates, detection_policy
from services.tools.toolbox.calls import Toolbox
from services.tools.writing import Writing

if TYPE_CHECKING:
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub

SERVICE: Final = tools_pb2.DESCRIPTOR.services_by_name["ToolsService"].full_name
SWEEP_SECONDS: Final = 30.0
"""An ended workspace keeps its disk for half a minute at most."""

_KEY_BYTES: Final = 32


async def main() -> None:
    """Serve until SIGTERM or SIGINT; a KalaError says in one line why the process cannot start."""
    settings = load(ToolsSettings, section=SECTION)
    _require_no_root()
    verifier = ClearanceVerifier(load_public_keys(_ethics_keys(settings)))
    policy = effective_policy(settings)
    async with AsyncExitStack() as stack:
        telemetry = stack.enter_context(process_telemetry(TOOLS, settings))
        writer = await open_audit_writer(settings, stack, part=TOOLS)
        if writer is None:
            raise InvalidArgumentError(
                "KALA_TOOLS_AUDIT_ADDRESS",
                "must name the audit service: nothing runs that the log does not know",
            )
        records = Records(writer)
        desk = await open_desk(settings, policy, stack)
        show_isolation(None if desk.unavailable_reason else desk.isolation, telemetry.registry)
        observe = CallCounter(telemetry.registry)
        service = await open_service(settings, policy, desk, records, verifier, stack, observe=observe)
        await service.scanning.warm()
        register = partial(tools_pb2_grpc.add_ToolsServiceServicer_to_server, ToolsServicer(service))
        server = await stack.enter_async_context(
            serving(settings, [register], policy=call_policy(verifier, records), telemetry=telemetry.rpc)
        )
        stack.push_async_callback(_ended, asyncio.create_task(sweep(service)))
        # Calls are answered either way, so that callers hear why nothing runs; a probe for the service hears no.
        await server.set_serving(withheld=[SERVICE] if desk.unavailable_reason else [])
        _say_isolation(desk)
        await server.run_until_signalled()


def call_policy(verifier: ClearanceVerifier, records: Records) -> CallPolicy:
    """Say which calls need a clearance and which are recorded here."""
    return CallPolicy(
        guard_for=guard_for(verifier, [tools_pb2.DESCRIPTOR]),
        administrative=ADMINISTRATIVE,
        on_denied=records.denied,
        on_administrative=records.administrative,
    )


async def open_desk(settings: ToolsSettings, policy: Policy, stack: AsyncExitStack) -> Desk:
    """Try the tiers until one holds; without one the service still answers, and runs nothing."""
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    offered, allowed = candidates(settings, policy, stack), detection_policy(settings, policy)
    detected = await detect(offered, allowed)
    if detected.sandbox is not None:
        stack.push_async_callback(detected.sandbox.aclose)
    return Desk(detected, offered, allowed, least_strength=policy.least_strength)


async def open_service(
    settings: ToolsSettings,
    policy: Policy,
    desk: Desk,
    records: Records,
    verifier: ClearanceVerifier,
    stack: AsyncExitStack,
    *,
    observe: Callable[[str, Status], None] = lambda _tool, _status: None,
) -> Service:
    """Put the parts of one process together; the stack closes them."""
    tokens = PageTokens(key=secrets.token_bytes(_KEY_BYTES), now=time.time)
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    workspaces = await Workspaces.open(
        settings.state_dir / "workspaces",
        replica=settings.replica,
        rules=workspace_rules(settings, policy),
        rights=Zones(policy.zones),
        tokens=tokens,
    )
    stack.push_async_callback(workspaces.aclose)
    runs = await Runs.open(settings.state_dir / "runs", replica=settings.replica, tokens=tokens)
    stack.push_async_callback(runs.aclose)
    background = Background()
    stack.push_async_callback(background.drain)
    toolbox = Toolbox(policy)
    approvals = ApprovalBook(
        replica=settings.replica,
        rule=policy.approvals,
        tokens=tokens,
        store=ApprovalFiles.open(settings.state_dir / "approvals"),
    )
    execution = Execution(
        desk=desk,
        policy=policy,
        toolbox=toolbox,
        approvals=approvals,
        workspaces=workspaces,
        runs=runs,
        records=records,
        recheck=verifier.recheck,
        max_runs=settings.max_runs,
        max_act_seconds=settings.max_act_seconds,
        background=background,
        observe=observe,
    )
    writing = Writing(
        policy=policy, approvals=approvals, workspaces=workspaces, records=records, background=background
    )
    testing = Testing(desk=desk, policy=policy, runs=runs)
    code = await open_code(settings, testing, records, background, stack)
    return Service(
        desk=desk,
        policy=policy,
        toolbox=toolbox,
        approvals=approvals,
        workspaces=workspaces,
        runs=runs,
        execution=execution,
        writing=writing,
        measuring=Measuring(
            None if settings.signing_key_file is None else load_private_key(settings.signing_key_file),
            policy_digest=policy.digest,
        ),
        scanning=code.scanning,
        repairing=code.repairing,
        generating=code.generating,
        hints=Hints(),
    )


@dataclass(frozen=True, slots=True)
class Code:
    """What works on code."""

    scanning: Scanning
    repairing: Repairing
    generating: Generating


async def open_code(
    settings: ToolsSettings, testing: Testing, records: Records, background: Background, stack: AsyncExitStack
) -> Code:
    """Put together what scans, repairs and writes code; the stack closes it."""
    scanning = Scanning(
        workers=settings.scan_workers, semgrep=Semgrep(settings.semgrep) if settings.semgrep else None
    )
    stack.push_async_callback(scanning.aclose)
    repairing = Repairing(
        scanning=scanning,
        testing=testing,
        records=records,
        background=background,
        max_act_seconds=settings.max_act_seconds,
    )
    generating = Generating(
        inference=await open_inference(settings, stack),
        repairing=repairing,
        testing=testing,
        records=records,
        background=background,
        max_act_seconds=settings.max_act_seconds,
    )
    return Code(scanning, repairing, generating)


async def open_inference(settings: ToolsSettings, stack: AsyncExitStack) -> InferenceServiceAsyncStub | None:
    """Connect to inference, which GenerateCode asks; None where the settings name none."""
    if settings.inference_address is None:
        return None
    channel = await stack.enter_async_context(
        open_channel(settings.inference_address, peer_name=TOOLS, tls=settings.tls)
    )
    return InferenceServiceStub(channel)


def effective_policy(settings: ToolsSettings) -> Policy:
    """Read the policy file and add what the settings allow beyond it."""
    policy = read_policy(settings.policy_file or DEFAULT_POLICY)
    return replace(
        policy,
        allow_weak=policy.allow_weak or settings.allow_weak,
        allow_host_directory=policy.allow_host_directory or settings.allow_host_directory,
    )


def workspace_rules(settings: ToolsSettings, policy: Policy) -> WorkspaceRules:
    """What the policy says of workspaces, and which places of this machine none may show."""
    return WorkspaceRules(
        default_bytes=policy.default_workspace_bytes,
        max_bytes=policy.max_workspace_bytes,
        default_ttl_seconds=policy.default_workspace_seconds,
        max_ttl_seconds=policy.max_workspace_seconds,
        allow_host_directory=policy.allow_host_directory,
        protected=tuple(str(path) for path in (settings.state_dir, *settings.protected_paths)),
    )


async def sweep(service: Service) -> None:
    """Delete what is over, for ever."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        await service.workspaces.sweep()
        await service.runs.sweep()


def _require_no_root() -> None:
    if os.geteuid() == 0:
        raise FailedPreconditionError(
            "the tools service does not run as root, where limits on processes do not bind and a break-out owns the "
            "machine; start it as another user, or let `kala up` do so (run_as_uid)"
        )


def _ethics_keys(settings: ToolsSettings) -> tuple[Path, ...]:
    if not settings.ethics_public_keys:
        raise InvalidArgumentError(
            "KALA_TOOLS_ETHICS_PUBLIC_KEYS",
            "must name ethics' public key: without it nothing can be cleared",
        )
    return settings.ethics_public_keys


def _say_isolation(desk: Desk) -> None:
    log = structlog.get_logger()
    found = desk.isolation
    if found is None or desk.unavailable_reason:
        log.error("no_isolation", problem=desk.unavailable_reason)
    else:
        log.info(
            "isolation", tier=found.tier.value, strength=found.strength.name.lower(), version=found.version
        )


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    sys.exit(run(main()))
