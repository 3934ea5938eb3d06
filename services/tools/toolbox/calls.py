"""Turns a tool call into what it asks for: a program for the sandbox or a file operation, with its risk."""

from __future__ import annotations

from services.tools.policy.model import Policy
from services.tools.toolbox.model import Call


class Toolbox:
    """The tools under one policy."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def plan(self, tool: str, arguments_json: str, *, host_directory: bool = False) -> Call:
        """Check a call and say what it comes to; nothing runs. `host_directory`: the workspace shows one.

        Raises InvalidArgumentError for an unknown tool or arguments that are not its schema's JSON, and
        RefusedByPolicyError for what the policy forbids.
        """
        raise NotImplementedError(tool, arguments_json, host_directory)
