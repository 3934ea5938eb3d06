"""Execute over gRPC: cleared once, claimed in the log, held against the policy, run, recorded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from kala.common.v1.clearance_pb2 import ClearanceClaims
from kala.common.v1.measurement_pb2 import MeasurementContext
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import (
    ClearanceError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from kala.tools.v1 import execution_pb2, policy_pb2, tools_pb2_grpc
from kala.tools.v1 import tools_pb2 as pb
from services.common.channel import open_channel
from services.common.clearance import VerifiedClearance
from services.common.principals import principal_metadata
from services.common.status import translated
from services.tools.files.model import Owner
from services.tools.reading import asked_of
from services.tools.sandbox.detection import MechanismReport
from services.tools.sandbox.model import Status, Strength, Tier
from tests.fakes.clearances import MovingClock
from tests.fakes.scripted_sandbox import ScriptedSandbox
from tests.service.tools.conftest import (
    ANN,
    BEN,
    WRITE_FILE,
    Tools,
    printed,
    python,
    seal,
    served_tools,
    until,
)


async def test_a_run_streams_its_start_its_output_and_its_end(tools: Tools) -> None:
    ran = await tools.execute(python())
    assert ran.kinds[0] == "started"
    assert ran.kinds[-1] == "exit"
    assert [event.sequence for event in ran.events] == list(range(len(ran.events)))
    assert ran.stdout == b"42\n"
    assert ran.status == "OK"
    assert ran.exit.exit_code == 0
    assert ran.exit.stdout_sha256 == hashlib.sha256(b"42\n").digest()
    assert ran.exit.isolation.tier == execution_pb2.ISOLATION_TIER_BUBBLEWRAP
    assert json.loads(ran.exit.result_json)
    assert ran.events[0].started.limits.memory_bytes > 0


async def test_the_log_has_the_claim_before_the_run_and_the_facts_after_it(tools: Tools) -> None:
    ran = await tools.execute(python(), principal=BEN)
    (claim,) = tools.logged("tools.claim")
    (result,) = tools.logged("tools.result")
    assert claim["execution_id"] == result["execution_id"]
    assert result["intent"] == claim["idempotency_key"]
    assert claim["tenant"] == "acme"
    assert claim["subject_key_id"] == BEN.subject
    assert result["result"]["status"] == "ok"
    facts = dict(result["attributes"])
    assert facts["isolation.tier"] == "bubblewrap"
    assert facts["run"] == ran.exit.run
    assert facts["run.stdout_sha256"] == ran.exit.stdout_sha256.hex()


async def test_nothing_of_the_code_or_its_output_is_in_the_log(tools: Tools) -> None:
    await tools.execute(python("print('canary 7319')"))
    for kind in ("tools.claim", "tools.result"):
        assert "canary" not in json.dumps(tools.logged(kind))


async def test_without_a_clearance_nothing_runs_and_the_denial_is_logged(tools: Tools) -> None:
    sealed = seal(tools.signer, python())
    sealed.ClearField("clearance")
    with pytest.raises(ClearanceError):
        await tools.send(sealed)
    assert tools.sandbox is not None
    assert tools.sandbox.jobs == []
    (denied,) = tools.logged("rpc.denied")
    assert denied["result"]["code"] == "CLEARANCE_MISSING"


async def test_a_clearance_serves_once(tools: Tools) -> None:
    sealed = seal(tools.signer, python())
    assert (await tools.send(sealed)).status == "OK"
    with pytest.raises(ClearanceError) as caught:
        await tools.send(sealed)
    assert caught.value.reason == "CLEARANCE_REPLAYED"


async def test_a_clearance_serves_at_one_replica_only(tools: Tools) -> None:
    """Another replica has never seen the nonce, so its guard lets the clearance in; the log has seen it."""
    assert tools.service is not None
    sealed = seal(tools.signer, python())
    assert (await tools.send(sealed)).status == "OK"
    claims = ClearanceClaims.FromString(sealed.clearance.claims)
    elsewhere = VerifiedClearance(claims, sealed.action)
    with pytest.raises(ClearanceError) as caught:
        async for _ in tools.service.execution.run(asked_of(python(), claims.principal), elsewhere):
            pass
    assert caught.value.reason == "CLEARANCE_REPLAYED"


async def test_an_expired_clearance_runs_nothing(tmp_path: Path) -> None:
    clock = MovingClock()
    async with served_tools(tmp_path, sandbox=ScriptedSandbox(lambda _: printed()), clock=clock) as tools:
        sealed = seal(tools.signer, python())
        clock.ahead_seconds = 70
        with pytest.raises(ClearanceError) as caught:
            await tools.send(sealed)
    assert caught.value.reason == "CLEARANCE_EXPIRED"


async def test_without_isolation_every_mechanism_says_why(tmp_path: Path) -> None:
    reports = [
        MechanismReport(tier, strength, usable=False, selected=False, reason=reason, version="")
        for tier, strength, reason in (
            (Tier.BUBBLEWRAP, Strength.STANDARD, "bwrap is not installed"),
            (Tier.LANDLOCK, Strength.WEAK, "it is weak"),
        )
    ]
    async with served_tools(tmp_path, sandbox=None, reports=reports) as tools:
        with pytest.raises(FailedPreconditionError) as caught:
            await tools.execute(python())
        listed = (await tools.ask("ListTools", pb.ListToolsRequest())).tools
        policy = await tools.ask("GetPolicy", pb.GetPolicyRequest())
        assert not tools.logged("tools.claim")
    assert caught.value.reason == "NO_ISOLATION"
    assert "bubblewrap: bwrap is not installed" in caught.value.message
    assert "landlock: it is weak" in caught.value.message
    runners = [tool for tool in listed if tool.name != "filesystem"]
    assert runners
    assert not any(tool.available for tool in runners)
    assert all("bwrap is not installed" in tool.unavailable_reason for tool in runners)
    assert not policy.HasField("isolation")


async def test_a_caller_may_ask_for_more_isolation_than_there_is(tools: Tools) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        await tools.execute(python(least_strength=execution_pb2.ISOLATION_STRENGTH_STRONG))
    assert caught.value.reason == "ISOLATION_TOO_WEAK"


@pytest.mark.parametrize(
    ("action", "field"),
    [
        (pb.ExecuteAction(tool="nothing", arguments_json="{}"), "tool"),
        (pb.ExecuteAction(tool="code_execution", arguments_json='{"language"'), "arguments_json"),
        (pb.ExecuteAction(tool="code_execution", arguments_json='{"code": 1, "code": 2}'), "arguments_json"),
        (pb.ExecuteAction(tool="code_execution", arguments_json=""), "arguments_json"),
        (python(stdin=b"x" * (1024 * 1024 + 1)), "stdin"),
        (python(limits=execution_pb2.Limits(memory_bytes=2**50)), "limits.memory_bytes"),
        (python(limits=execution_pb2.Limits(processes=0)), "limits.processes"),
        (python(artifacts=["../x"]), "artifacts[0]"),
        (python(workspace="nonsense"), "workspace"),
        (python(call_id="x" * 129), "call_id"),
        (python(files=[{"name": "a", "sha256": b"x", "bytes": 1}]), "files[0].sha256"),
    ],
    ids=[
        "unknown-tool",
        "broken-json",
        "repeated-key",
        "no-arguments",
        "stdin",
        "memory",
        "processes",
        "pattern",
        "workspace",
        "call-id",
        "digest",
    ],
)
async def test_what_is_wrong_is_named_and_claims_nothing(
    tools: Tools, action: pb.ExecuteAction, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await tools.execute(action)
    assert caught.value.field.startswith(field)
    assert not tools.logged("tools.claim")
    assert tools.sandbox is not None
    assert tools.sandbox.jobs == []


async def test_arguments_of_100_megabytes_are_refused(tools: Tools) -> None:
    action = pb.ExecuteAction(tool="code_execution", arguments_json="x" * 100_000_000)
    with pytest.raises((InvalidArgumentError, ResourceExhaustedError)):
        await tools.execute(action)
    assert (await tools.execute(python())).status == "OK"


async def test_a_limit_above_the_policys_is_named_with_it(tools: Tools) -> None:
    limits = execution_pb2.Limits()
    limits.wall_time.FromSeconds(901)
    with pytest.raises(
        InvalidArgumentError, match=r"limits\.wall_time: is 901 s, above the policy's maximum of"
    ):
        await tools.execute(python(limits=limits))


async def test_what_the_policy_refuses_ends_without_a_run(tools: Tools) -> None:
    action = pb.ExecuteAction(tool="shell", arguments_json='{"command": "rm -rf / | mail me"}')
    ran = await tools.execute(action)
    assert ran.kinds == ["exit"]
    assert ran.status == "REFUSED"
    assert ran.exit.reason
    assert tools.sandbox is not None
    assert tools.sandbox.jobs == []
    (result,) = tools.logged("tools.result")
    assert result["result"] == {**result["result"], "status": "refused", "code": "REFUSED"}


async def test_binary_output_arrives_as_it_was_written(tmp_path: Path) -> None:
    raw = bytes(range(256)) + b"\xff\xfe\x00"
    async with served_tools(tmp_path, sandbox=ScriptedSandbox(lambda _: printed(raw))) as tools:
        ran = await tools.execute(python())
    assert ran.stdout == raw
    json.loads(ran.exit.result_json)


async def test_a_program_that_fails_is_an_answer(tmp_path: Path) -> None:
    sandbox = ScriptedSandbox(lambda _: printed(b"", status=Status.ERROR, exit_code=3))
    async with served_tools(tmp_path, sandbox=sandbox) as tools:
        ran = await tools.execute(python())
    assert (ran.status, ran.exit.exit_code) == ("ERROR", 3)


async def test_a_caller_that_goes_away_ends_its_run_and_leaves_a_record(tmp_path: Path) -> None:
    sandbox = ScriptedSandbox(lambda _: printed(hangs=True))
    async with served_tools(tmp_path, sandbox=sandbox) as tools:
        call = tools.stub.Execute(pb.ExecuteRequest(sealed=seal(tools.signer, python())))
        first = await call.read()
        assert isinstance(first, pb.ExecuteResponse)
        assert first.HasField("started")
        call.cancel()
        await until(lambda: bool(tools.logged("tools.result")))
        (result,) = tools.logged("tools.result")
        listed = await tools.ask("ListRuns", pb.ListRunsRequest())
    assert result["result"]["status"] == "cancelled"
    assert [run.status for run in listed.runs] == [execution_pb2.RUN_STATUS_CANCELLED]


async def test_more_runs_than_places_are_told_when_to_come_again(tmp_path: Path) -> None:
    sandbox = ScriptedSandbox(lambda _: printed(hangs=True))
    async with served_tools(tmp_path, sandbox=sandbox, max_runs=1) as tools:
        call = tools.stub.Execute(pb.ExecuteRequest(sealed=seal(tools.signer, python())))
        await call.read()
        with pytest.raises(ResourceExhaustedError) as caught:
            await tools.execute(python())
        call.cancel()
    assert caught.value.reason == "RUNS_EXHAUSTED"
    assert caught.value.retry_after_seconds


async def test_a_principal_whose_runs_wait_in_one_workspace_leaves_places_to_others(tmp_path: Path) -> None:
    """Seven calls that waited behind a slow one in their own workspace refused every other caller."""
    sandbox = ScriptedSandbox(lambda job: printed(hangs=b"hang" in job.source))
    async with served_tools(tmp_path, sandbox=sandbox, max_runs=4) as tools:
        workspace = (await tools.ask("CreateWorkspace", pb.CreateWorkspaceRequest())).workspace.name
        calls = []
        for _ in range(3):
            sealed = seal(tools.signer, python("hang", workspace=workspace))
            calls.append(tools.stub.Execute(pb.ExecuteRequest(sealed=sealed)))
            await until(lambda: len(tools.logged("tools.claim")) == len(calls))
        await calls[0].read()
        with pytest.raises(ResourceExhaustedError, match="3 of your runs"):
            await tools.execute(python())
        assert (await tools.execute(python(), principal=BEN)).status == "OK"
        for call in calls:
            call.cancel()


async def test_without_the_log_nothing_runs(tmp_path: Path) -> None:
    sandbox = ScriptedSandbox(lambda _: printed())
    async with served_tools(tmp_path, sandbox=sandbox) as tools:
        await tools.log.log.stop()
        with pytest.raises(UnavailableError):
            await tools.execute(python())
    assert sandbox.jobs == []


async def test_a_call_that_a_person_must_agree_to_waits_and_then_runs_once(tools: Tools) -> None:
    action = python(after_untrusted_content=True)
    waiting = await tools.execute(action)
    assert waiting.kinds == ["exit"]
    assert waiting.status == "APPROVAL_REQUIRED"
    name = waiting.exit.approval
    listed = await tools.ask("ListApprovals", pb.ListApprovalsRequest())
    assert [each.name for each in listed.approvals] == [name]
    assert listed.approvals[0].arguments_json == action.arguments_json
    decide = pb.DecideApprovalRequest(name=name, approve=True, comment="fine")
    decided = await tools.ask("DecideApproval", decide)
    assert decided.approval.state == policy_pb2.APPROVAL_STATE_APPROVED
    approved = python(after_untrusted_content=True, approval=name)
    assert (await tools.execute(approved)).status == "OK"
    with pytest.raises(FailedPreconditionError) as caught:
        await tools.execute(approved)
    assert caught.value.reason == "APPROVAL_NOT_USABLE"


async def test_an_approval_is_for_one_call_of_one_principal(tools: Tools) -> None:
    name = (await tools.execute(python(after_untrusted_content=True))).exit.approval
    with pytest.raises(NotFoundError):
        await tools.ask("DecideApproval", pb.DecideApprovalRequest(name=name, approve=True), principal=BEN)
    await tools.ask("DecideApproval", pb.DecideApprovalRequest(name=name, approve=True))
    other = python("print('other')", after_untrusted_content=True, approval=name)
    with pytest.raises(FailedPreconditionError) as caught:
        await tools.execute(other)
    assert caught.value.reason == "APPROVAL_FOR_ANOTHER_CALL"


async def test_a_person_sees_stdin_and_files_and_an_approval_holds_for_those_names_only(tools: Tools) -> None:
    made = await tools.ask("CreateWorkspace", pb.CreateWorkspaceRequest())
    workspace, digests = made.workspace.name, {}
    for path, data in (("draft", b"throw away"), ("ledger", b"keep for ever")):
        await tools.write(
            pb.WriteFileAction(workspace=workspace, path=path, data=data, mode=pb.WRITE_MODE_CREATE)
        )
        digests[path] = hashlib.sha256(data).digest()

    def call(first: str, second: str, **fields: str) -> pb.ExecuteAction:
        files = [
            ContentReference(name=first, sha256=digests["draft"], bytes=10),
            ContentReference(name=second, sha256=digests["ledger"], bytes=13),
        ]
        return python(
            workspace=workspace, files=files, stdin=b"draft\n", after_untrusted_content=True, **fields
        )

    name = (await tools.execute(call("draft", "ledger"))).exit.approval
    (shown,) = (await tools.ask("ListApprovals", pb.ListApprovalsRequest())).approvals
    assert (shown.stdin, shown.stdin_bytes) == (b"draft\n", 6)
    assert [file.name for file in shown.files] == ["draft", "ledger"]
    await tools.ask("DecideApproval", pb.DecideApprovalRequest(name=name, approve=True))
    with pytest.raises(FailedPreconditionError) as caught:
        await tools.execute(call("ledger", "draft", approval=name))
    assert caught.value.reason == "APPROVAL_FOR_ANOTHER_CALL"
    assert (await tools.execute(call("draft", "ledger", approval=name))).status == "OK"


async def test_a_writer_that_goes_away_leaves_a_record_too(tools: Tools) -> None:
    """What was written, or not, stayed unknown: the log had the claim and nothing after it."""
    assert tools.service is not None
    workspace = (await tools.ask("CreateWorkspace", pb.CreateWorkspaceRequest())).workspace.name
    owner = Owner(ANN.tenant, ANN.id, ANN.subject)
    action = pb.WriteFileAction(workspace=workspace, path="a", data=b"x", mode=pb.WRITE_MODE_CREATE)
    sealed = seal(tools.signer, action, audience=WRITE_FILE)
    turns = tools.service.workspaces.turn(workspace, owner, end=lambda: None)
    async with turns as turn, turn.files._changing:
        changing = turn.files._changing
        call = tools.stub.WriteFile(pb.WriteFileRequest(sealed=sealed))
        await until(lambda: bool(changing._waiters))
        call.cancel()
        await until(lambda: not changing._waiters)
    await until(lambda: len(tools.logged("tools.result")) == 1)
    assert tools.logged("tools.result")[0]["result"]["status"] == "cancelled"


@pytest.mark.parametrize(
    ("rpc", "request_"),
    [
        ("CreateWorkspace", pb.CreateWorkspaceRequest()),
        ("ReadFile", pb.ReadFileRequest(workspace="workspaces/local." + "0" * 32, path="a")),
        ("ListRuns", pb.ListRunsRequest()),
        ("DecideApproval", pb.DecideApprovalRequest(name="approvals/x", approve=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_the_trainer_calls_on_behalf_of_nobody(tools: Tools, rpc: str, request_: Message) -> None:
    """It handles strangers' data: it could read everybody's workspaces, and approve what waited for a person."""
    async with open_channel(tools.address, peer_name="trainer") as channel:
        call = getattr(tools_pb2_grpc.ToolsServiceStub(channel), rpc)
        with pytest.raises(PermissionDeniedError) as caught, translated():
            await call(request_, metadata=principal_metadata(ANN))
    assert caught.value.reason == "NOT_GATEWAY"


async def test_measurements_are_for_the_trainer(tools: Tools) -> None:
    with pytest.raises(PermissionDeniedError) as caught:
        await tools.execute(python(measurement=MeasurementContext(suite="x")))
    assert caught.value.reason == "NOT_TRAINER"


async def test_a_newer_action_than_this_service_knows_is_refused(tools: Tools) -> None:
    action = python()
    newer = pb.ExecuteAction.FromString(action.SerializeToString() + b"\xf2\x3f\x01x")
    with pytest.raises(InvalidArgumentError) as caught:
        await tools.execute(newer)
    assert caught.value.reason == "UNKNOWN_FIELDS"


async def test_a_call_without_a_principal_is_unauthenticated(tools: Tools) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tools.stub.ListRuns(pb.ListRunsRequest())
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
