"""KALA's own tools for a model: which there are, and one call of one of them, guarded and logged like every act.

A tool never runs without judgement, durable intent and clearance, and its result is checked before anybody sees it.
While the log is away no tool runs at all: these acts are never spooled.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc
import orjson

from gateway.acts import Act, Logged, decision_json, refusal_text
from gateway.bridge_routes import Binding
from gateway.errors import ETHICS_UNAVAILABLE
from gateway.guarded import ActFailedError, GuardedCalls, RefusedError
from gateway.run_record import exit_of, isolation_text, status_name
from kala.common.v1 import decision_pb2, reference_pb2
from kala.errors import ClearanceError, FailedPreconditionError, InternalError, KalaError, UnavailableError
from kala.tools.v1 import execution_pb2, tools_pb2
from services.common.principals import principal_metadata
from services.common.sealing import pack
from services.common.status import from_error

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from gateway.identity import Caller
    from kala.tools.v1.policy_pb2 import Tool
    from kala.tools.v1.tools_pb2_grpc import ToolsServiceAsyncStub

EXECUTE_RPC: Final = "/kala.tools.v1.ToolsService/Execute"

LIST_SECONDS: Final = 10.0
"""A list of a few tools, or a thousand files with their digests."""

MAX_FILES: Final = 1_024
"""As many files of a workspace as the contract lets one run see."""

TOO_MANY_FILES: Final = "TOO_MANY_FILES"

MAX_CALL_ID_CHARS: Final = 128
"""The contract's limit; a backend may choose longer ones."""

FILE_TOOL: Final = "filesystem"
"""Works on the workspace itself, so no file of it is named to it beforehand."""

NO_TOOLS: Final = "NO_TOOLS"
TOOLS_NOT_DEPLOYED: Final = "TOOLS_NOT_DEPLOYED"

REFUSED: Final = "REFUSED_BY_THE_LAWS"
WITHHELD: Final = "WITHHELD"
FAILED: Final = "FAILED"
UNKNOWN_TOOL: Final = "UNKNOWN_TOOL"
OVER_BUDGET: Final = "OVER_BUDGET"
APPROVAL_REQUIRED: Final = "APPROVAL_REQUIRED"
"""What a call may come to besides the ends of a run."""

_WITHHELD_WORDS: Final = "the result did not pass the check of outputs and is withheld"

Json = dict[str, Any]  # Any: JSON


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call by a model, with the exact text of its arguments."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolEnd:
    """What one call came to."""

    call: ToolCall
    status: str
    content: str
    """What the model reads: the tool's result as JSON, or why there is none."""
    exit: execution_pb2.RunExit | None = None
    receipt: Logged | None = None
    intent_id: str | None = None
    decision: decision_pb2.Decision | None = None
    stage: str = "output"
    overhead_ms: float = 0.0

    @property
    def approval(self) -> str:
        """Name the approval that a person must give first; empty when none is waited for."""
        return self.exit.approval if self.exit is not None and self.status == APPROVAL_REQUIRED else ""

    def to_json(self) -> Json:
        """Give it as the `kala` object of an answer carries it, without arguments and content."""
        ended = self.exit or execution_pb2.RunExit()
        return {
            "call_id": self.call.id,
            "tool": self.call.name,
            "status": self.status,
            "run": ended.run or None,
            "exit_code": ended.exit_code if ended.HasField("exit_code") else None,
            "isolation": isolation_text(ended.isolation) or None,
            "approval": self.approval or None,
            "artifacts": [
                {
                    "name": artifact.name,
                    "path": artifact.path,
                    "bytes": artifact.content.bytes,
                    "sha256": artifact.content.sha256.hex(),
                    "media_type": artifact.media_type,
                }
                for artifact in ended.artifacts
            ],
            "decision": None if self.decision is None else decision_json(self.decision, self.stage),
            "intent": self.intent_id,
            "receipt": None if self.receipt is None else self.receipt.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Errand:
    """What all calls of one conversation share."""

    act: Act
    """The chat on whose way they happen."""
    workspace: str = ""
    approvals: Mapping[str, str] = field(default_factory=dict)
    """By the id of a call: the approval that a person gave for it."""


class ToolRuns:
    """Runs calls of tools; one per process."""

    def __init__(
        self,
        *,
        guarded: GuardedCalls,
        binding: Binding,
        tools: ToolsServiceAsyncStub | None,
        max_act_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._guarded = guarded
        self._binding = binding
        self._tools = tools
        self._max_act_seconds = max_act_seconds
        self._clock = clock

    async def offered(self, caller: Caller) -> list[Tool]:
        """List what can be called now; FailedPreconditionError with every tool's reason when nothing can."""
        try:
            listed = await self._stub.ListTools(
                tools_pb2.ListToolsRequest(),
                timeout=LIST_SECONDS,
                metadata=principal_metadata(caller.principal),
            )
        except grpc.RpcError as error:
            raise from_error(error) from error
        available = [tool for tool in listed.tools if tool.available]
        if not available:
            reasons = dict.fromkeys(tool.unavailable_reason for tool in listed.tools)
            said = "; ".join(reason for reason in reasons if reason) or "the policy allows none"
            raise FailedPreconditionError(f"no tool can run here: {said}", reason=NO_TOOLS)
        return available

    async def run(
        self, call: ToolCall, errand: Errand, *, after_untrusted: bool, facts: Mapping[str, str]
    ) -> ToolEnd:
        """Carry out one call: judge → intent → run → check of the result → outcome.

        What goes wrong with the call itself is an end too, for the model to read. Raises KalaError when the laws or the
        log are out of reach, for then nothing may go on.
        """
        try:
            act = await self._act(call, errand, after_untrusted=after_untrusted, facts=facts)
        except FailedPreconditionError as error:
            if error.reason != TOO_MANY_FILES:
                raise
            return ToolEnd(call, FAILED, _problem(error.message))
        try:
            acted = await self._guarded.carry_out(act, self._binding, self._call)
        except RefusedError as refused:
            is_result = refused.stage == "output"
            words = _WITHHELD_WORDS if is_result else refusal_text(refused.decision)
            return ToolEnd(
                call,
                WITHHELD if is_result else REFUSED,
                _problem(words),
                receipt=refused.receipt,
                decision=refused.decision,
                stage=refused.stage,
            )
        except ActFailedError as failed:
            if not _is_the_calls(failed.error):
                raise
            return ToolEnd(call, FAILED, _problem(failed.error.message), receipt=failed.receipt)
        ended = exit_of(acted.responses)
        if ended is None:
            raise InternalError("a run ended without its exit")
        return ToolEnd(
            call,
            status_name(ended.status),
            ended.result_json or _problem(ended.reason, status=status_name(ended.status)),
            exit=ended,
            receipt=acted.receipt,
            intent_id=acted.intent_id,
            decision=acted.decision,
            overhead_ms=round((self._clock() - act.started - acted.elsewhere_seconds) * 1000, 3),
        )

    @property
    def _stub(self) -> ToolsServiceAsyncStub:
        if self._tools is None:
            raise UnavailableError(
                "the tools service is not deployed here; set tools_address", reason=TOOLS_NOT_DEPLOYED
            )
        return self._tools

    async def _act(
        self, call: ToolCall, errand: Errand, *, after_untrusted: bool, facts: Mapping[str, str]
    ) -> Act:
        chat = errand.act
        started = self._clock()
        action = tools_pb2.ExecuteAction(
            tool=call.name,
            arguments_json=call.arguments if call.arguments.strip() else "{}",
            workspace=errand.workspace,
            files=await self._files(chat.caller, call.name, errand.workspace),
            approval=errand.approvals.get(call.id, ""),
            after_untrusted_content=after_untrusted,
            call_id=call.id[:MAX_CALL_ID_CHARS],
        )
        return Act(
            rpc=EXECUTE_RPC,
            kind=self._binding.kind,
            action=pack(action),
            caller=chat.caller,
            request_id=chat.request_id,
            trace_id=chat.trace_id,
            started=started,
            request_text=chat.request_text,
            after_untrusted_content=after_untrusted,
            must_log_first=True,
            may_spool=False,
            facts={**facts, "loop.call": call.id},
        )

    async def _files(self, caller: Caller, tool: str, workspace: str) -> list[reference_pb2.ContentReference]:
        """Name the files of the workspace that a run may see, as they are now: a later change refuses it.

        All of them or none: FailedPreconditionError with TOO_MANY_FILES where one run may not see as many.
        """
        if not workspace or tool == FILE_TOOL:
            return []
        asked = tools_pb2.ListFilesRequest(
            workspace=workspace, recursive=True, with_digests=True, page_size=MAX_FILES
        )
        files: list[reference_pb2.ContentReference] = []
        while True:
            listed = await self._listed(asked, caller)
            files += [
                reference_pb2.ContentReference(name=file.path, sha256=file.sha256, bytes=file.bytes)
                for file in listed.files
                if file.sha256
            ]
            if len(files) > MAX_FILES:
                raise FailedPreconditionError(
                    f"the workspace holds more than the {MAX_FILES} files that one run may see; delete some",
                    reason=TOO_MANY_FILES,
                )
            if not listed.next_page_token:
                return files
            asked.page_token = listed.next_page_token

    async def _listed(self, asked: tools_pb2.ListFilesRequest, caller: Caller) -> tools_pb2.ListFilesResponse:
        try:
            return await self._stub.ListFiles(
                asked, timeout=LIST_SECONDS, metadata=principal_metadata(caller.principal)
            )
        except grpc.RpcError as error:
            raise from_error(error) from error

    async def _call(self, message: Message) -> AsyncIterator[Message]:
        if not isinstance(message, tools_pb2.ExecuteRequest):
            raise InternalError("only Execute is called here")
        call = self._stub.Execute(message, timeout=self._max_act_seconds)
        try:
            async for response in call:
                yield response
        finally:
            call.cancel()


def unknown_tool(call: ToolCall, known: list[str]) -> ToolEnd:
    """End a call of a tool that nobody offered."""
    return ToolEnd(
        call, UNKNOWN_TOOL, _problem(f"there is no tool of that name; the tools are {', '.join(known)}")
    )


def over_budget(call: ToolCall, most: int) -> ToolEnd:
    """End a call for which a request has no room left."""
    return ToolEnd(
        call,
        OVER_BUDGET,
        _problem(f"not run: a request may call tools {most} times; answer with what you have"),
    )


def _is_the_calls(error: KalaError) -> bool:
    """Tell a failure that the model may hear of and go on from, from one of KALA's own parts."""
    return not isinstance(error, ClearanceError | InternalError) and error.reason not in {
        ETHICS_UNAVAILABLE,
        "AUDIT_UNAVAILABLE",
    }


def _problem(words: str, *, status: str = "") -> str:
    return orjson.dumps(
        {**({"status": status} if status else {}), "error": words or "it gave no result"}
    ).decode()
