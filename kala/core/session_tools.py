"""The tools of one session: a workspace of its own, made with the first call and deleted at the end."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import uuid
import warnings
from collections.abc import Mapping
from typing import Any, Final, Self

from kala.client import KalaClient
from kala.core.conversation import WaitingTurn, still_undecided
from kala.errors import FailedPreconditionError, InvalidArgumentError, KalaError
from kala.tool_replies import ToolResult

TOOLS_PATH: Final = "/kala/v1/tools/tools"
WORKSPACES_PATH: Final = "/kala/v1/tools/workspaces"
APPROVALS_PATH: Final = "/kala/v1/tools/approvals"

FILE_TOOL: Final = "filesystem"

APPROVAL: Final = "approval"
"""An argument that is the session's, not the tool's."""


class SessionTools:
    """Runs tools for one session; a context manager."""

    def __init__(self, client: KalaClient, *, shows_directory: bool) -> None:
        """`shows_directory`: let runs see the current directory, read-only; only a private suite does that."""
        self.client = client
        self._shows_directory = shows_directory
        self._workspace = ""
        self._making = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._workspace:
            # An unused workspace ends by itself, too.
            with contextlib.suppress(KalaError):
                self.client.call("DELETE", f"/kala/v1/tools/{self._workspace}")

    def names(self) -> tuple[str, ...]:
        """The tools that can be called now; FailedPreconditionError says why none can."""
        tools = self.client.call("GET", TOOLS_PATH).get("tools") or ()
        available = tuple(str(tool["name"]) for tool in tools if tool.get("available"))
        if tools and not available:
            reasons = dict.fromkeys(str(tool.get("unavailable_reason")) for tool in tools)
            raise FailedPreconditionError(f"no tool can run here: {'; '.join(reasons)}", reason="NO_TOOLS")
        return available

    def execute(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:  # Any: each tool has its own
        """Run one call."""
        return self.client.run_tool(self.action(name, arguments))

    def action(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """One call as a kala.tools.v1.ExecuteAction, in the session's workspace with the files that it has now."""
        given = dict(arguments)
        approval = given.pop(APPROVAL, "")
        try:
            text = json.dumps(given, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(name, f"takes arguments that JSON can spell ({error})") from error
        workspace = self.workspace()
        return {
            "tool": name,
            "arguments_json": text,
            "workspace": workspace,
            # It works on the workspace itself; any other tool sees the files that its call names.
            "files": [] if name == FILE_TOOL else self.client.workspace_files(workspace),
            APPROVAL: str(approval),
        }

    def require_decided(self, turn: WaitingTurn) -> None:
        """Raise FailedPreconditionError while a person has not decided about the calls of a turn."""
        still_undecided(turn, self.client.pages(APPROVALS_PATH, "approvals"))

    def decide(self, approval: str, *, approve: bool, comment: str = "") -> None:
        """Give this key's word on a call that waits; PermissionDeniedError where the policy wants another person's."""
        body = {"approve": approve, "comment": comment}
        self.client.call("POST", f"/kala/v1/tools/{approval}:decide", body=body)

    def workspace(self) -> str:
        """Name the session's workspace; made when it is first asked for."""
        with self._making:
            if not self._workspace:
                self._workspace = self._create(os.getcwd() if self._shows_directory else "")  # noqa: PTH109 - a text
        return self._workspace

    def _create(self, directory: str) -> str:
        # With an id of its own it may be sent again, and no second workspace is made.
        body = {"request_id": uuid.uuid4().hex, **({"host_directory": directory} if directory else {})}
        try:
            made = self.client.call("POST", WORKSPACES_PATH, body=body)
        except FailedPreconditionError as error:
            if not directory:
                raise
            warnings.warn(
                f"tools do not see {directory}: {error.message}; they work in an empty workspace",
                UserWarning,
                stacklevel=5,
            )
            return self._create("")
        return str(made["workspace"]["name"])
