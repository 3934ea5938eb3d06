"""Translates between the contract and this service: runs, workspaces and files, policy and approvals, code."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.measurement_pb2 import MeasurementContext
from kala.errors import InvalidArgumentError, PermissionDeniedError
from kala.tools.v1 import execution_pb2, tools_pb2_grpc
from kala.tools.v1 import tools_pb2 as pb
from services.common.clearance import current_clearance
from services.common.peers import GATEWAY, TRAINER, Context, peer_of
from services.common.principals import principal_of
from services.common.sealing import unpack_strictly
from services.tools import wire, wire_code, wire_files, wire_hints, wire_policy
from services.tools.code.hints import Hints
from services.tools.execution import Execution
from services.tools.files.model import Written
from services.tools.files.workspaces import Workspaces
from services.tools.generating import Generating
from services.tools.happenings import Exit, Found, Happening, Started
from services.tools.isolation import Desk
from services.tools.measuring import TESTS_PASSED, VULNERABLE, Measuring, instrument_of
from services.tools.policy.approvals import ApprovalBook
from services.tools.policy.model import Policy
from services.tools.reading import asked_of, owner_of, person_of, write_asked_of
from services.tools.repairing import Repairing
from services.tools.runs import Runs
from services.tools.sandbox.model import Output, Sample
from services.tools.scanning import Scanning
from services.tools.toolbox.calls import Toolbox
from services.tools.toolbox.definitions import FILESYSTEM
from services.tools.writing import Writing

SUBJECT_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Service:
    """What the servicer needs of its process."""

    desk: Desk
    policy: Policy
    toolbox: Toolbox
    approvals: ApprovalBook
    workspaces: Workspaces
    runs: Runs
    execution: Execution
    writing: Writing
    measuring: Measuring
    scanning: Scanning
    repairing: Repairing
    generating: Generating
    hints: Hints
    wall_clock: Callable[[], float] = time.time


class ToolsServicer(tools_pb2_grpc.ToolsServiceServicer):
    """Serves ToolsService."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ListTools(self, request: pb.ListToolsRequest, context: Context) -> pb.ListToolsResponse:  # noqa: ARG002 - the contract names them
        """List the tools, ready to be offered to a model."""
        reason = self._service.desk.unavailable_reason
        return pb.ListToolsResponse(
            tools=[
                wire_policy.tool(each, "" if each.name == FILESYSTEM else reason)
                for each in self._service.toolbox.definitions
            ],
            policy_digest=self._service.policy.digest,
        )

    async def Execute(
        self,
        request: pb.ExecuteRequest,  # noqa: ARG002 - the guard has read it
        context: Context,
    ) -> AsyncIterator[pb.ExecuteResponse]:
        """Run one tool call and stream what happens."""
        clearance = current_clearance()
        action = unpack_strictly(clearance.action, pb.ExecuteAction)
        asked = asked_of(action, clearance.claims.principal)
        measured = measurement_of(action, context)
        if measured is not None:
            self._service.measuring.require(measured, 1)
        since = self._service.measuring.now
        sequence = 0
        async with aclosing(self._service.execution.run(asked, clearance)) as happenings:
            async for happening in happenings:
                response = event_of(happening)
                if measured is not None and isinstance(happening, Exit):
                    verdict = response.exit.SerializeToString(deterministic=True)
                    item = (clearance.action.value, verdict, happening.exit_code == 0)
                    signed = self._service.measuring.count(
                        measured,
                        TESTS_PASSED,
                        [item],
                        instrument=instrument_of(happening.isolation),
                        since=since,
                    )
                    response.exit.measurement.CopyFrom(signed)
                response.sequence = sequence
                response.at.CopyFrom(wire.timestamp(self._service.wall_clock()))
                yield response
                sequence += 1

    async def CreateWorkspace(
        self, request: pb.CreateWorkspaceRequest, context: Context
    ) -> pb.CreateWorkspaceResponse:
        """Make a workspace for the caller."""
        ttl = wire.span_of(request.ttl, field="ttl") if request.HasField("ttl") else None
        made, created = await self._service.workspaces.create(
            owner_of(caller_of(context)),
            request_id=request.request_id,
            quota_bytes=request.quota_bytes,
            ttl_seconds=ttl,
            host_directory=request.host_directory,
        )
        return pb.CreateWorkspaceResponse(workspace=wire_files.workspace(made), created=created)

    async def DeleteWorkspace(
        self, request: pb.DeleteWorkspaceRequest, context: Context
    ) -> pb.DeleteWorkspaceResponse:
        """End a workspace's runs and delete its files."""
        gone = await self._service.workspaces.delete(request.name, owner_of(caller_of(context)))
        return pb.DeleteWorkspaceResponse(inodes=gone.inodes, freed_bytes=gone.freed_bytes, runs=gone.runs)

    async def ReadFile(self, request: pb.ReadFileRequest, context: Context) -> pb.ReadFileResponse:
        """Read a part of a file."""
        async with self._service.workspaces.files(request.workspace, owner_of(caller_of(context))) as files:
            part = await files.read(request.path, offset=request.offset, max_bytes=request.max_bytes)
        return pb.ReadFileResponse(
            file=wire_files.file(part.file), data=part.data, next_offset=part.next_offset
        )

    async def WriteFile(self, request: pb.WriteFileRequest, context: Context) -> pb.WriteFileResponse:  # noqa: ARG002 - as in Execute
        """Write a file, whole and at once."""
        clearance = current_clearance()
        action = unpack_strictly(clearance.action, pb.WriteFileAction)
        done = await self._service.writing.write(
            write_asked_of(action, clearance.claims.principal), clearance
        )
        if isinstance(done, Written):
            return pb.WriteFileResponse(file=wire_files.file(done.file), created=done.created)
        return pb.WriteFileResponse(approval=done)

    async def DeleteFile(self, request: pb.DeleteFileRequest, context: Context) -> pb.DeleteFileResponse:
        """Delete a file or a directory."""
        async with self._service.workspaces.files(request.workspace, owner_of(caller_of(context))) as files:
            gone = await files.delete(request.path, recursive=request.recursive)
        return pb.DeleteFileResponse(inodes=gone.inodes, freed_bytes=gone.freed_bytes)

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        """List files by path."""
        async with self._service.workspaces.files(request.workspace, owner_of(caller_of(context))) as files:
            page = await files.list(
                request.path,
                recursive=request.recursive,
                with_digests=request.with_digests,
                page_size=request.page_size,
                page_token=request.page_token,
            )
            workspace = files.workspace
        return pb.ListFilesResponse(
            files=[wire_files.file(each) for each in page.files],
            next_page_token=page.next_page_token,
            workspace=wire_files.workspace(workspace),
        )

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: Context) -> pb.GetArtifactResponse:
        """Read a part of an artifact."""
        part = await self._service.runs.read_artifact(
            request.name,
            owner_of(caller_of(context)),
            offset=request.offset,
            max_bytes=request.max_bytes,
        )
        return pb.GetArtifactResponse(
            artifact=wire.artifact(part.artifact), data=part.data, next_offset=part.next_offset
        )

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        """List the caller's runs, the newest first."""
        page = self._service.runs.page(
            owner_of(caller_of(context)),
            workspace=request.workspace,
            status=wire.status_of(request.status),
            tool=request.tool,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListRunsResponse(
            runs=[wire.run(each) for each in page.runs], next_page_token=page.next_page_token
        )

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.GetPolicyResponse:  # noqa: ARG002 - the contract names them
        """Show the rules in force and what they rest on."""
        return pb.GetPolicyResponse(
            policy=wire_policy.policy(self._service.policy),
            isolation=wire.isolation(self._service.desk.isolation),
        )

    async def SelfTest(self, request: pb.SelfTestRequest, context: Context) -> pb.SelfTestResponse:  # noqa: ARG002 - the contract names it
        """Try every isolation mechanism again."""
        tiers = {tier for number in request.tiers if (tier := wire.tier_of(number)) is not None}
        if len(tiers) < len(set(request.tiers)):
            raise InvalidArgumentError("tiers", "holds a tier that is none")
        examined = await self._service.desk.examine(tiers)
        return pb.SelfTestResponse(
            mechanisms=[wire_policy.mechanism(report) for report in examined.reports],
            ready=not self._service.desk.unavailable_reason,
            host=f"Linux {platform.release()}, {platform.machine()}, uid {os.geteuid()}",
            elapsed=wire.duration(examined.elapsed_seconds),
        )

    async def ListApprovals(
        self, request: pb.ListApprovalsRequest, context: Context
    ) -> pb.ListApprovalsResponse:
        """List the calls that wait for a person, or did."""
        page = self._service.approvals.page(
            person_of(caller_of(context)),
            state=wire_policy.state_of(request.state),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListApprovalsResponse(
            approvals=[wire_policy.approval(each) for each in page.approvals],
            next_page_token=page.next_page_token,
        )

    async def DecideApproval(
        self, request: pb.DecideApprovalRequest, context: Context
    ) -> pb.DecideApprovalResponse:
        """Approve or deny a waiting call."""
        decided = self._service.approvals.decide(
            request.name, person_of(caller_of(context)), approve=request.approve, comment=request.comment
        )
        return pb.DecideApprovalResponse(approval=wire_policy.approval(decided))

    async def HintVulnerabilities(
        self,
        request: pb.HintVulnerabilitiesRequest,
        context: Context,  # noqa: ARG002 - the contract names it
    ) -> pb.HintVulnerabilitiesResponse:
        """Say which weaknesses a task invites."""
        return wire_hints.hints(self._service.hints, request)

    async def ValidateCode(
        self, request: pb.ValidateCodeRequest, context: Context
    ) -> pb.ValidateCodeResponse:
        """Scan code; runs nothing of it."""
        measured = measurement_of(request, context)
        if measured is not None:
            self._service.measuring.require(measured, len(request.files))
        since = self._service.measuring.now
        files = wire_code.files_of(request.files)
        report = await self._service.scanning.scan(files, wire_code.options_of(request.options))
        response = pb.ValidateCodeResponse(
            report=wire_code.report(report), clean=not (report.findings or report.problems)
        )
        if measured is not None:
            found = {finding.span.path for finding in report.findings}
            # What no engine could read whole is not shown to be safe.
            found |= {problem.path for problem in report.problems if problem.engine is None}
            verdicts = [
                (file.SerializeToString(deterministic=True), bytes([file.path in found]), file.path in found)
                for file in request.files
            ]
            signed = self._service.measuring.count(
                measured, VULNERABLE, verdicts, instrument=report.rules_digest, since=since
            )
            response.measurement.CopyFrom(signed)
        return response

    async def RepairCode(self, request: pb.RepairCodeRequest, context: Context) -> pb.RepairCodeResponse:  # noqa: ARG002 - as in Execute
        """Rewrite code so that findings go away, and prove it."""
        clearance = current_clearance()
        action = unpack_strictly(clearance.action, pb.RepairCodeAction)
        asked = wire_code.repair_asked(action, owner_of(clearance.claims.principal))
        done = await self._service.repairing.repair(asked, clearance)
        return pb.RepairCodeResponse(outcome=wire_code.outcome(done))

    async def GenerateCode(
        self,
        request: pb.GenerateCodeRequest,  # noqa: ARG002 - the guard has read it
        context: Context,  # noqa: ARG002 - the contract names it
    ) -> pb.GenerateCodeResponse:
        """Have a model write code, then validate, repair and test it."""
        clearance = current_clearance()
        action = unpack_strictly(clearance.action, pb.GenerateCodeAction)
        asked = wire_code.generate_asked(action, owner_of(clearance.claims.principal))
        return wire_code.generated(await self._service.generating.generate(asked, clearance))

    async def SumMeasurements(
        self,
        request: pb.SumMeasurementsRequest,
        context: Context,  # noqa: ARG002 - the contract names it
    ) -> pb.SumMeasurementsResponse:
        """Add up measurements that this service signed."""
        return pb.SumMeasurementsResponse(sum=self._service.measuring.sum(request.parts))

    async def EraseSubject(
        self,
        request: pb.EraseSubjectRequest,
        context: Context,  # noqa: ARG002 - the contract names it
    ) -> pb.EraseSubjectResponse:
        """Delete everything of a person on this replica."""
        if len(request.subject) != SUBJECT_CHARS:
            raise InvalidArgumentError("subject", f"must have {SUBJECT_CHARS} characters")
        if not request.tenant:
            raise InvalidArgumentError("tenant", "must be set")
        service = self._service
        workspaces, freed = await service.workspaces.erase(request.tenant, request.subject)
        runs, more = await service.runs.erase(request.tenant, request.subject)
        approvals = service.approvals.erase(request.tenant, request.subject)
        return pb.EraseSubjectResponse(
            workspaces=workspaces, runs=runs, approvals=len(approvals), freed_bytes=freed + more
        )


def caller_of(context: Context) -> Principal:
    """Name on whose behalf an unguarded call is made; PermissionDeniedError from anybody but the gateway, which knows people.

    The trainer may call too, for runs that ethics cleared and for measurements: it has no word for anybody.
    """
    if peer_of(context).part != GATEWAY:
        raise PermissionDeniedError("only the gateway calls on behalf of somebody", reason="NOT_GATEWAY")
    return principal_of(context)


def measurement_of(
    message: pb.ExecuteAction | pb.ValidateCodeRequest, context: Context
) -> MeasurementContext | None:
    """Give what is to be measured, when something is; PermissionDeniedError from anybody but the trainer."""
    if not message.HasField("measurement"):
        return None
    if peer_of(context).part != TRAINER:
        raise PermissionDeniedError("measurement: is for the trainer's evaluation only", reason="NOT_TRAINER")
    return message.measurement


def event_of(happening: Happening) -> pb.ExecuteResponse:
    """Write one event of a run."""
    match happening:
        case Started():
            return pb.ExecuteResponse(
                started=execution_pb2.RunStarted(
                    run=happening.run,
                    isolation=wire.isolation(happening.isolation),
                    limits=wire.limits(happening.limits),
                    workspace=happening.workspace,
                    warm=happening.warm,
                )
            )
        case Output():
            return pb.ExecuteResponse(output=wire.output(happening))
        case Sample():
            return pb.ExecuteResponse(usage=execution_pb2.RunUsage(usage=wire.usage(happening.usage)))
        case Found():
            return pb.ExecuteResponse(
                artifact=execution_pb2.RunArtifact(artifact=wire.artifact(happening.artifact))
            )
        case Exit():
            return pb.ExecuteResponse(exit=exit_of(happening))


def exit_of(end: Exit) -> execution_pb2.RunExit:
    """Write the end of a run."""
    return execution_pb2.RunExit(
        run=end.run,
        status=wire.STATUSES[end.status],
        exit_code=end.exit_code,
        signal=end.signal,
        reason=end.reason,
        usage=wire.usage(end.usage),
        stdout_sha256=end.stdout_sha256,
        stderr_sha256=end.stderr_sha256,
        output_truncated=end.output_truncated,
        artifacts=[wire.artifact(each) for each in end.artifacts],
        result_json=end.result_json,
        approval=end.approval,
        isolation=wire.isolation(end.isolation),
        files=wire.references(end.files),
    )
