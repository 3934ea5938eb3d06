"""Turns a tool call into what it asks for: a program for the sandbox or a file operation, with its risk."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Final

from kala.errors import InvalidArgumentError
from services.tools.files.model import Artifact, Changes, WriteMode
from services.tools.files.paths import MAX_PATH_BYTES, require_path
from services.tools.files.workspace_files import WorkspaceFiles
from services.tools.policy.model import Policy, RefusedByPolicyError, Risk
from services.tools.policy.shell.judge import WORKSPACE, ShellPolicy
from services.tools.policy.zones import HOST, Zones
from services.tools.sandbox.model import Ended, Language
from services.tools.toolbox import definitions as tools
from services.tools.toolbox.arguments import FIELD, Arguments
from services.tools.toolbox.model import Call, FileCall, FileVerb, ProgramCall, ToolDefinition
from services.tools.toolbox.operations import Operated, operate
from services.tools.toolbox.results import run_result

_LANGUAGES: Final = {
    "python": Language.PYTHON,
    "javascript": Language.JAVASCRIPT,
    "shell": Language.SHELL,
    "bash": Language.SHELL,
}
_RISKS: Final = {
    FileVerb.LIST: Risk.LOW,
    FileVerb.READ: Risk.LOW,
    FileVerb.WRITE: Risk.MEDIUM,
    FileVerb.DELETE: Risk.HIGH,
}
_MAX_TOOL_CHARS: Final = 64


class Toolbox:
    """The tools under one policy."""

    def __init__(self, policy: Policy) -> None:
        self._zones = Zones(policy.zones)
        self._shell = ShellPolicy(policy.commands, self._zones)
        self._tools = policy.tools

    @property
    def definitions(self) -> tuple[ToolDefinition, ...]:
        """The tools that the policy lets be called, by name."""
        return tuple(each for each in tools.DEFINITIONS if each.name in self._tools)

    def plan(self, tool: str, arguments_json: str, *, host_directory: bool = False) -> Call:
        """Check a call and say what it comes to; nothing runs. `host_directory`: the workspace shows one.

        Raises InvalidArgumentError for an unknown tool or arguments that are not its schema's JSON, and
        RefusedByPolicyError for what the policy forbids.
        """
        known = {each.name for each in tools.DEFINITIONS}
        if tool not in known:
            shown = tool[:_MAX_TOOL_CHARS]
            raise InvalidArgumentError(
                "tool", f"{shown!r} is no tool; there are {', '.join(sorted(self._tools))}"
            )
        if tool not in self._tools:
            raise RefusedByPolicyError(f"the policy does not let {tool} be called", reason="TOOL_REFUSED")
        arguments = Arguments(arguments_json)
        if tool == tools.SHELL:
            return self._shell_call(arguments, host_directory=host_directory)
        if tool == tools.FILESYSTEM:
            return self._file_call(arguments, host_directory=host_directory)
        return _code_call(arguments)

    async def operate(self, call: FileCall, files: WorkspaceFiles) -> Operated:
        """Do a file operation that was planned. What its caller can mend is a result, anything else is raised."""
        return await operate(call, files)

    def result(
        self,
        _call: ProgramCall,
        ended: Ended,
        *,
        stdout: bytes,
        stderr: bytes,
        artifacts: Sequence[Artifact] = (),
        changes: Changes = Changes(),  # noqa: B008 - it is frozen
    ) -> str:
        """The result of a program that ended, as JSON text of at most 1 MiB; of its output only the beginning may be given."""
        return run_result(ended, stdout=stdout, stderr=stderr, artifacts=artifacts, changes=changes)

    def _shell_call(self, arguments: Arguments, *, host_directory: bool) -> ProgramCall:
        command = arguments.text("command", least=1, most=tools.MAX_COMMAND_CHARS)
        seconds = _timeout(arguments)
        arguments.end()
        judged = self._shell.judge(command, directory=HOST if host_directory else "")
        return ProgramCall(
            tools.SHELL, judged.risk, Language.SHELL, judged.script.encode(), wall_seconds=seconds
        )

    def _file_call(self, arguments: Arguments, *, host_directory: bool) -> FileCall:
        verb = FileVerb(arguments.choice("operation", tools.OPERATIONS))
        is_list, is_read = verb is FileVerb.LIST, verb is FileVerb.READ
        path = _path(
            arguments.text("path", most=MAX_PATH_BYTES, default="." if is_list else None),
            host_directory=host_directory,
        )
        if not path and not is_list:
            raise InvalidArgumentError(f"{FIELD}.path", f"must name a file to {verb.value}")
        data, mode, offset, most, recursive = b"", WriteMode.REPLACE, 0, 0, False
        if verb is FileVerb.WRITE:
            data = _content(arguments)
            mode = WriteMode(arguments.choice("mode", tools.MODES, default=WriteMode.REPLACE.value))
        elif is_read:
            offset = arguments.count("offset", least=0, most=2**53, default=0)
            most = arguments.count(
                "max_bytes", least=1, most=tools.MAX_READ_BYTES, default=tools.DEFAULT_READ_BYTES
            )
        else:
            recursive = arguments.flag("recursive")
        if is_list:
            most = arguments.count(
                "max_entries", least=1, most=tools.MAX_ENTRIES, default=tools.DEFAULT_ENTRIES
            )
        arguments.end()
        self._require_right(verb, path)
        return FileCall(
            tools.FILESYSTEM,
            _RISKS[verb],
            verb,
            path,
            data,
            mode,
            recursive=recursive,
            offset=offset,
            most=most,
        )

    def _require_right(self, verb: FileVerb, path: str) -> None:
        if verb is FileVerb.WRITE:
            self._zones.require_write(path)
        elif verb is FileVerb.DELETE:
            self._zones.require_delete(path)
        else:
            self._zones.require_read(path)


def _code_call(arguments: Arguments) -> ProgramCall:
    language = _LANGUAGES[arguments.choice("language", tools.LANGUAGES)]
    code = arguments.text("code", least=1, most=tools.MAX_CODE_CHARS)
    given = arguments.texts("arguments", most=tools.MAX_ARGUMENTS, most_chars=tools.MAX_ARGUMENT_CHARS)
    seconds = _timeout(arguments)
    arguments.end()
    return ProgramCall(tools.CODE_EXECUTION, Risk.MEDIUM, language, code.encode(), given, seconds)


def _timeout(arguments: Arguments) -> float | None:
    return arguments.seconds(
        "timeout_seconds", least=tools.LEAST_TIMEOUT_SECONDS, most=tools.MOST_TIMEOUT_SECONDS
    )


def _content(arguments: Arguments) -> bytes:
    text = arguments.text("content", most=tools.MAX_CODE_CHARS)
    if arguments.choice("encoding", tools.ENCODINGS, default="utf-8") == "utf-8":
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgumentError(f"{FIELD}.content", "is not base64; leave encoding out for text") from None


def _path(text: str, *, host_directory: bool) -> str:
    """The path from the workspace's top, "" for itself; raises RefusedByPolicyError for one that leads out."""
    if ".." in text.split("/"):
        raise RefusedByPolicyError(
            "path: '..' is not taken; write the path from the top", reason="ZONE_REFUSED"
        )
    path = text
    directory = HOST if host_directory else ""
    if path.startswith("/"):
        if path != WORKSPACE and not path.startswith(WORKSPACE + "/"):
            raise RefusedByPolicyError(
                f"path: {text[:80]!r} is outside of the workspace; leave out the leading /",
                reason="ZONE_REFUSED",
            )
        path, directory = path.removeprefix(WORKSPACE).removeprefix("/"), ""
    while path.startswith("./"):
        path = path.removeprefix("./")
    path = path.removesuffix("/")
    if path in {"", "."}:
        return directory
    return require_path(f"{FIELD}.path", f"{directory}/{path}" if directory else path)
