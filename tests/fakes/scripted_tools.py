"""A tools service whose runs a test writes; it verifies clearances as the real one does, and runs nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from kala.common.v1 import clearance_pb2, reference_pb2
from kala.errors import KalaError, NotFoundError
from kala.tools.v1 import code_pb2, execution_pb2, policy_pb2, tools_pb2_grpc
from kala.tools.v1 import tools_pb2 as pb
from services.common.clearance import current_clearance
from services.common.peers import Context
from services.common.principals import principal_of
from services.common.sealing import unpack_strictly
from services.common.status import abort

RUN = "runs/0." + "a" * 32
APPROVAL = "approvals/0." + "b" * 32
WORKSPACE = "workspaces/0." + "c" * 32

Step = pb.ExecuteResponse | KalaError | asyncio.Event
"""An event to send, an error to end with, or an event of the test's to wait for."""


def started() -> pb.ExecuteResponse:
    return pb.ExecuteResponse(
        started=execution_pb2.RunStarted(run=RUN, isolation=_isolation(), limits=execution_pb2.Limits())
    )


def wrote(
    data: bytes, *, stream: execution_pb2.OutputStream = execution_pb2.OUTPUT_STREAM_STDOUT
) -> pb.ExecuteResponse:
    return pb.ExecuteResponse(output=execution_pb2.RunOutput(stream=stream, data=data))


def ended(
    result: object = None,
    *,
    status: execution_pb2.RunStatus = execution_pb2.RUN_STATUS_OK,
    reason: str = "",
    approval: str = "",
    artifacts: Sequence[execution_pb2.Artifact] = (),
) -> pb.ExecuteResponse:
    """The last event; a run that never began has no isolation and no exit code."""
    never = {execution_pb2.RUN_STATUS_REFUSED, execution_pb2.RUN_STATUS_APPROVAL_REQUIRED}
    exit_event = execution_pb2.RunExit(
        run=RUN,
        status=status,
        reason=reason,
        approval=approval,
        artifacts=artifacts,
        result_json="" if result is None else json.dumps(result),
        stdout_sha256=hashlib.sha256(b"").digest(),
        stderr_sha256=hashlib.sha256(b"").digest(),
    )
    if status not in never:
        exit_event.isolation.CopyFrom(_isolation())
        exit_event.exit_code = 0 if status == execution_pb2.RUN_STATUS_OK else 1
    return pb.ExecuteResponse(exit=exit_event)


def printing(words: str) -> list[Step]:
    return [started(), wrote(words.encode()), ended({"stdout": words, "stderr": "", "exit_code": 0})]


def needing_approval() -> list[Step]:
    return [
        ended(status=execution_pb2.RUN_STATUS_APPROVAL_REQUIRED, reason="it deletes files", approval=APPROVAL)
    ]


def artifact(path: str, content: bytes) -> execution_pb2.Artifact:
    return execution_pb2.Artifact(
        name=f"{RUN}/artifacts/0",
        path=path,
        content=reference_pb2.ContentReference(
            name=path, sha256=hashlib.sha256(content).digest(), bytes=len(content)
        ),
        media_type="text/plain",
    )


def _isolation() -> execution_pb2.Isolation:
    return execution_pb2.Isolation(
        tier=execution_pb2.ISOLATION_TIER_BUBBLEWRAP,
        strength=execution_pb2.ISOLATION_STRENGTH_STANDARD,
        version="bubblewrap 0.8.0",
        controls=["net.none", "seccomp"],
    )


@dataclass
class ScriptedTools(tools_pb2_grpc.ToolsServiceServicer):
    """Plays `script` for every Execute."""

    script: Callable[[pb.ExecuteAction], Sequence[Step]] = lambda _action: printing("42\n")
    unavailable_reason: str = ""
    """Why no tool can be called; empty when both can."""
    files: dict[str, bytes] = field(default_factory=dict)
    runs: list[execution_pb2.Run] = field(default_factory=list)
    executed: list[pb.ExecuteAction] = field(default_factory=list)
    written: list[pb.WriteFileAction] = field(default_factory=list)
    generated: list[pb.GenerateCodeAction] = field(default_factory=list)
    code: pb.GenerateCodeResponse = field(
        default_factory=lambda: pb.GenerateCodeResponse(
            code=code_pb2.CodeFile(path="main.py", content="print(1)\n"), accepted=True
        )
    )
    """What every GenerateCode gives."""
    reads: list[pb.ReadFileRequest] = field(default_factory=list)
    principals: list[clearance_pb2.Principal] = field(default_factory=list)
    """On whose behalf unguarded calls came."""
    erased: list[tuple[str, str]] = field(default_factory=list)
    """Tenant and subject of every erasure."""
    erase_failure: KalaError | None = None
    began: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def ListTools(  # noqa: N802 - the contract's name
        self, request: pb.ListToolsRequest, context: Context
    ) -> pb.ListToolsResponse:
        self.principals.append(principal_of(context))
        return pb.ListToolsResponse(
            tools=[
                policy_pb2.Tool(
                    name=name,
                    description=f"Runs {name}.",
                    parameters_schema=json.dumps({"type": "object"}),
                    available=not self.unavailable_reason,
                    unavailable_reason=self.unavailable_reason,
                )
                for name in ("code_execution", "filesystem", "shell")
            ]
        )

    async def Execute(  # noqa: N802 - the contract's name
        self, request: pb.ExecuteRequest, context: Context
    ) -> AsyncIterator[pb.ExecuteResponse]:
        action = unpack_strictly(current_clearance().action, pb.ExecuteAction)
        self.executed.append(action)
        self.began.set()
        try:
            for step in self.script(action):
                match step:
                    case pb.ExecuteResponse():
                        yield step
                    case KalaError():
                        await abort(context, step)
                    case _:
                        await step.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def HintVulnerabilities(  # noqa: N802 - the contract's name
        self, request: pb.HintVulnerabilitiesRequest, context: Context
    ) -> pb.HintVulnerabilitiesResponse:
        self.principals.append(principal_of(context))
        return pb.HintVulnerabilitiesResponse(prompt_text=f"Mind the hints for: {request.task}")

    async def GenerateCode(  # noqa: N802 - the contract's name
        self, request: pb.GenerateCodeRequest, context: Context
    ) -> pb.GenerateCodeResponse:
        self.generated.append(unpack_strictly(current_clearance().action, pb.GenerateCodeAction))
        return self.code

    async def WriteFile(  # noqa: N802 - the contract's name
        self, request: pb.WriteFileRequest, context: Context
    ) -> pb.WriteFileResponse:
        action = unpack_strictly(current_clearance().action, pb.WriteFileAction)
        self.written.append(action)
        self.files[action.path] = action.data
        return pb.WriteFileResponse(file=self._info(action.path), created=True)

    async def ReadFile(  # noqa: N802 - the contract's name
        self, request: pb.ReadFileRequest, context: Context
    ) -> pb.ReadFileResponse:
        self.principals.append(principal_of(context))
        self.reads.append(request)
        if request.path not in self.files:
            await abort(context, NotFoundError(f"there is no {request.path}"))
        content = self.files[request.path]
        end = request.offset + (request.max_bytes or len(content))
        return pb.ReadFileResponse(
            file=self._info(request.path),
            data=content[request.offset : end],
            next_offset=end if end < len(content) else None,
        )

    async def ListFiles(  # noqa: N802 - the contract's name
        self, request: pb.ListFilesRequest, context: Context
    ) -> pb.ListFilesResponse:
        self.principals.append(principal_of(context))
        begin = int(request.page_token or 0)
        end = begin + (request.page_size or 1000)
        return pb.ListFilesResponse(
            files=[self._info(path) for path in sorted(self.files)[begin:end]],
            next_page_token=str(end) if end < len(self.files) else "",
        )

    async def ListRuns(  # noqa: N802 - the contract's name
        self, request: pb.ListRunsRequest, context: Context
    ) -> pb.ListRunsResponse:
        self.principals.append(principal_of(context))
        return pb.ListRunsResponse(runs=self.runs)

    async def EraseSubject(  # noqa: N802 - the contract's name
        self, request: pb.EraseSubjectRequest, context: Context
    ) -> pb.EraseSubjectResponse:
        if self.erase_failure is not None:
            await abort(context, self.erase_failure)
        is_first = (request.tenant, request.subject) not in self.erased
        self.erased.append((request.tenant, request.subject))
        return pb.EraseSubjectResponse(workspaces=2, runs=3) if is_first else pb.EraseSubjectResponse()

    def _info(self, path: str) -> pb.FileInfo:
        content = self.files[path]
        return pb.FileInfo(
            path=path,
            kind=pb.FILE_KIND_REGULAR,
            bytes=len(content),
            sha256=hashlib.sha256(content).digest(),
        )
