"""A real tools server in this process, in front of a scripted sandbox and a real log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from kala.common.v1 import options_pb2
from kala.common.v1.clearance_pb2 import PURPOSE_REQUEST, Principal, SealedAction
from kala.tools.v1 import execution_pb2, tools_pb2_grpc
from kala.tools.v1 import tools_pb2 as pb
from services.common.audit_client import AuditWriter
from services.common.channel import open_channel
from services.common.clearance import ClearanceSigner, ClearanceVerifier
from services.common.principals import principal_metadata
from services.common.sealing import pack
from services.common.server import serving
from services.common.status import translated
from services.tools.__main__ import call_policy, effective_policy, open_service
from services.tools.config import ToolsSettings
from services.tools.isolation import Desk
from services.tools.records import Records
from services.tools.sandbox.detection import Detected, DetectionPolicy
from services.tools.sandbox.model import Sandbox
from services.tools.servicer import Service, ToolsServicer
from tests.fakes.audit_server import ServedLog, served_log
from tests.fakes.clearances import FakeEthics, MovingClock
from tests.fakes.scripted_sandbox import Answer, ScriptedSandbox

EXECUTE = "/kala.tools.v1.ToolsService/Execute"
WRITE_FILE = "/kala.tools.v1.ToolsService/WriteFile"
ANN = Principal(id="keys/ann", tenant="acme", subject="a" * 64, scopes=[options_pb2.SCOPE_TOOLS])
BEN = Principal(id="keys/ben", tenant="acme", subject="b" * 64, scopes=[options_pb2.SCOPE_TOOLS])


def seal(
    signer: ClearanceSigner,
    action: Message,
    *,
    audience: str = EXECUTE,
    principal: Principal = ANN,
    presenter: str = "local:gateway",
) -> SealedAction:
    """Clear an action as ethics would."""
    packed = pack(action)
    clearance = signer.mint(
        decision_id="d" * 32,
        audience=audience,
        action=packed,
        constitution_digest=b"c" * 32,
        presenter=presenter,
        principal=principal,
        purpose=PURPOSE_REQUEST,
    )
    return SealedAction(action=packed, clearance=clearance)


@dataclass(slots=True)
class Ran:
    """One collected execution."""

    events: list[pb.ExecuteResponse]

    @property
    def exit(self) -> execution_pb2.RunExit:
        assert self.events[-1].HasField("exit")
        return self.events[-1].exit

    @property
    def status(self) -> str:
        return execution_pb2.RunStatus.Name(self.exit.status).removeprefix("RUN_STATUS_")

    @property
    def stdout(self) -> bytes:
        return b"".join(
            event.output.data
            for event in self.events
            if event.HasField("output") and event.output.stream == execution_pb2.OUTPUT_STREAM_STDOUT
        )

    @property
    def kinds(self) -> list[str]:
        return [event.WhichOneof("event") or "" for event in self.events]


@dataclass(slots=True)
class Tools:
    """A tools server and its client."""

    stub: tools_pb2_grpc.ToolsServiceAsyncStub
    signer: ClearanceSigner
    log: ServedLog
    sandbox: ScriptedSandbox | None = None
    service: Service | None = None
    address: str = ""

    async def execute(self, action: pb.ExecuteAction, **sealing: Any) -> Ran:
        """Clear one call, run it and collect what happens."""
        return await self.send(seal(self.signer, action, **sealing))

    async def send(self, sealed: SealedAction) -> Ran:
        with translated():
            return Ran([event async for event in self.stub.Execute(pb.ExecuteRequest(sealed=sealed))])

    async def ask(self, rpc: str, request: Message, *, principal: Principal = ANN) -> Any:
        """Make an unguarded call on behalf of somebody."""
        with translated():
            # A machine that is busy with other tests takes its time for a self-test.
            return await getattr(self.stub, rpc)(request, metadata=principal_metadata(principal), timeout=240)

    async def write(self, action: pb.WriteFileAction, **sealing: Any) -> pb.WriteFileResponse:
        sealed = seal(self.signer, action, audience=WRITE_FILE, **sealing)
        with translated():
            response: pb.WriteFileResponse = await self.stub.WriteFile(pb.WriteFileRequest(sealed=sealed))
        return response

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """The log's entries of one type, in order."""
        reader = self.log.file.reader
        entries = [reader.entry(index) for index in range(reader.head().size)]
        leaves = [json.loads(entry.leaf) for entry in entries if entry is not None]
        return [leaf for leaf in leaves if leaf["type"] == kind]


Serve = Callable[..., Any]


@asynccontextmanager
async def served_tools(
    folder: Path,
    *,
    sandbox: Sandbox | None,
    reports: Sequence[Any] = (),
    clock: MovingClock | None = None,
    **settings: Any,
) -> AsyncIterator[Tools]:
    """Serve one replica until the context is left."""
    ethics = FakeEthics(clock or MovingClock())
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(served_log(folder / "audit.db"))
        audit = await stack.enter_async_context(open_channel(log.address, peer_name="tools"))
        writer = await stack.enter_async_context(AuditWriter(audit, producer_id="tools"))
        found = ToolsSettings(
            address="127.0.0.1:0",
            metrics_port=None,
            drain_seconds=0.2,
            state_dir=folder / "state",
            ethics_public_keys=(ethics.public_key_file(folder),),
            **settings,
        )
        keys = {ethics.signer.key_id: ethics.signer.public_key}
        verifier = ClearanceVerifier(keys, clock=clock or MovingClock())
        policy = effective_policy(found)
        records = Records(writer)
        desk = Desk(
            Detected(sandbox, tuple(reports)), [], DetectionPolicy(), least_strength=policy.least_strength
        )
        service = await open_service(found, policy, desk, records, verifier, stack)
        register = partial(
            tools_pb2_grpc.add_ToolsServiceServicer_to_server,
            ToolsServicer(service),  # type: ignore[abstract]  # as the service does
        )
        server = await stack.enter_async_context(
            serving(found, [register], policy=call_policy(verifier, records))
        )
        await server.set_serving()
        channel: grpc.aio.Channel = await stack.enter_async_context(
            open_channel(server.address, peer_name="gateway")
        )
        scripted = sandbox if isinstance(sandbox, ScriptedSandbox) else None
        yield Tools(
            tools_pb2_grpc.ToolsServiceStub(channel), ethics.signer, log, scripted, service, server.address
        )


@pytest.fixture
async def tools(tmp_path: Path) -> AsyncIterator[Tools]:
    """One replica whose programs end well."""
    async with served_tools(tmp_path, sandbox=ScriptedSandbox(script=lambda _: printed())) as found:
        yield found


async def until(holds: Callable[[], bool], *, within_seconds: float = 20) -> None:
    """Wait for a state that has no event of its own; fails when it takes too long."""
    for _ in range(round(within_seconds * 100)):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


def printed(stdout: bytes = b"42\n", **fields: Any) -> Answer:
    """What a scripted program does."""
    return Answer(stdout, **fields)


def python(code: str = "print(6 * 7)", **fields: Any) -> pb.ExecuteAction:
    """Write a call of code_execution."""
    arguments = json.dumps({"language": "python", "code": code})
    return pb.ExecuteAction(tool="code_execution", arguments_json=arguments, **fields)
