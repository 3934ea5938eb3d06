"""WriteFile from its clearance to its end: claimed, held against the policy, written, recorded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import KalaError
from services.common.clearance import VerifiedClearance
from services.common.service_records import Facts
from services.tools.files.model import Owner, WriteMode, Written
from services.tools.files.workspaces import Workspaces
from services.tools.policy.approvals import ApprovalBook, Wanted
from services.tools.policy.model import Policy, Risk
from services.tools.records import Records
from services.tools.running import Background

WRITE_FILE: Final = "/kala.tools.v1.ToolsService/WriteFile"
TOOL: Final = "write_file"
"""How approvals and records name the call, which is no tool of a model's."""


@dataclass(frozen=True, slots=True)
class WriteAsked:
    """One write as its caller sent it."""

    owner: Owner
    workspace: str
    path: str
    data: bytes
    mode: WriteMode
    expected_sha256: bytes = b""
    approval: str = ""
    after_untrusted: bool = False
    # What an approval of it is bound to, and what a person sees: all of the write but its approval.
    digest: bytes = b""
    shown: str = ""


class Writing:
    """Writes files of workspaces on behalf of cleared callers."""

    def __init__(
        self,
        *,
        policy: Policy,
        approvals: ApprovalBook,
        workspaces: Workspaces,
        records: Records,
        background: Background,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._approvals = approvals
        self._workspaces = workspaces
        self._records = records
        self._background = background
        self._clock = clock

    async def write(self, asked: WriteAsked, clearance: VerifiedClearance) -> Written | str:
        """Write the file; gives the name of a pending approval where a person must agree first."""
        self._workspaces.get(asked.workspace, asked.owner)
        claim = await self._records.claim(clearance, rpc=WRITE_FILE, tool=TOOL)
        began = self._clock()
        is_known = False
        try:
            done = await self._write(asked)
            is_known = True
        except KalaError as error:
            is_known = True
            await self._records.ended(claim, Facts("error", error.reason, self._clock() - began))
            raise
        finally:
            if not is_known:
                # The caller went away, before or while the file was written: there is a record of that too.
                gone = Facts("cancelled", "CLIENT_CLOSED_REQUEST", self._clock() - began)
                self._background.keep(self._records.ended(claim, gone))
        elapsed = self._clock() - began
        if isinstance(done, str):
            await self._records.ended(
                claim, Facts("refused", "APPROVAL_REQUIRED", elapsed, attributes={"run.approval": done})
            )
            return done
        file = done.file
        reference = ContentReference(
            name=f"{asked.workspace}/{file.path}", sha256=file.sha256, bytes=file.size
        )
        await self._records.ended(
            claim, Facts("ok", "", elapsed, attributes={"workspace": asked.workspace}, references=[reference])
        )
        return done

    async def _write(self, asked: WriteAsked) -> Written | str:
        if asked.approval:
            self._approvals.use(asked.approval, asked.owner, asked.digest)
        elif reason := self._policy.approvals.reason(Risk.MEDIUM, after_untrusted=asked.after_untrusted):
            wanted = Wanted(
                asked.owner, TOOL, asked.shown, asked.workspace, Risk.MEDIUM, reason, asked.digest
            )
            return self._approvals.request(wanted).name
        async with self._workspaces.files(asked.workspace, asked.owner) as files:
            return await files.write(
                asked.path, asked.data, mode=asked.mode, expected_sha256=asked.expected_sha256
            )
