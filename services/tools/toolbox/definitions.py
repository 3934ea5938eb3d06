"""The tools as they are offered to a model: names, descriptions and schemas of arguments and results.  Pure."""

from __future__ import annotations

import json
from typing import Any, Final

from services.tools.files.paths import MAX_PATH_BYTES
from services.tools.policy.model import Risk
from services.tools.policy.shell.words import MAX_CHARS
from services.tools.sandbox.model import Status
from services.tools.toolbox.model import ToolDefinition

SHELL: Final = "shell"
FILESYSTEM: Final = "filesystem"
CODE_EXECUTION: Final = "code_execution"

MAX_COMMAND_CHARS: Final = MAX_CHARS
MAX_CODE_CHARS: Final = 1_000_000
MAX_ARGUMENTS: Final = 64
MAX_ARGUMENT_CHARS: Final = 4_096
LEAST_TIMEOUT_SECONDS: Final = 0.1
MOST_TIMEOUT_SECONDS: Final = 900
# A part of a file that still fits into a result when all of it must be escaped.
MAX_READ_BYTES: Final = 131_072
DEFAULT_READ_BYTES: Final = 65_536
MAX_ENTRIES: Final = 1_000
DEFAULT_ENTRIES: Final = 200
LANGUAGES: Final = ("python", "javascript", "shell", "bash")
OPERATIONS: Final = ("list", "read", "write", "delete")
MODES: Final = ("create", "replace", "append")
ENCODINGS: Final = ("utf-8", "base64")

_Schema = dict[str, Any]  # Any: JSON Schema

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_TIMEOUT: Final[_Schema] = {
    "type": "number",
    "minimum": LEAST_TIMEOUT_SECONDS,
    "maximum": MOST_TIMEOUT_SECONDS,
    "description": "End it after so many seconds; never later than the run's own limit.",
}
_TEXT: Final[_Schema] = {"type": "string"}
_COUNT: Final[_Schema] = {"type": "integer", "minimum": 0}
_SUCCESS: Final[_Schema] = {"type": "boolean", "description": "Whether it did what was asked."}
_REASON: Final[_Schema] = {"type": "string", "description": "Why it failed, in words; empty on success."}


def _object(properties: _Schema, *required: str) -> _Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _list_of(properties: _Schema) -> _Schema:
    return {"type": "array", "items": _object(properties, *properties)}


_RUN_RESULT: Final = _object(
    {
        "success": _SUCCESS,
        "status": {"type": "string", "enum": [status.value for status in Status]},
        "exit_code": {"type": ["integer", "null"]},
        "output": {"type": "string", "description": "What it wrote to stdout."},
        "error": {"type": "string", "description": "What it wrote to stderr."},
        "reason": _REASON,
        "output_truncated": {"type": "boolean", "description": "Whether output or error is only the beginning."},
        "artifacts": _list_of({"path": _TEXT, "bytes": _COUNT, "media_type": _TEXT, "sha256": _TEXT}),
        "written": {"type": "array", "items": _TEXT, "description": "Files of the workspace that it changed."},
        "deleted": {"type": "array", "items": _TEXT, "description": "Files of the workspace that it deleted."},
        "skipped": _list_of({"path": _TEXT, "reason": _TEXT}),
        "wall_seconds": {"type": "number", "minimum": 0},
    },
    "success", "status", "exit_code", "output", "error", "reason", "output_truncated", "artifacts", "written", "deleted",
    "skipped", "wall_seconds",
)  # fmt: skip

_FILE_RESULT: Final = _object(
    {
        "success": _SUCCESS,
        "output": {
            "type": "string",
            "description": "list: a name a line, directories with a slash; read: the content; else what was done.",
        },
        "reason": _REASON,
        "entries": _list_of(
            {"path": _TEXT, "kind": {"type": "string", "enum": ["regular", "directory", "other"]}, "bytes": _COUNT}
        ),
        "more": {"type": "boolean", "description": "list: whether there are names that were left out."},
        "encoding": {"type": "string", "enum": list(ENCODINGS)},
        "bytes": {**_COUNT, "description": "read, write: size of the whole file."},
        "next_offset": {**_COUNT, "description": "read: where to go on; missing at the end."},
        "sha256": {"type": "string", "description": "write: of the file as it is now."},
        "created": {"type": "boolean", "description": "write: whether the file is new."},
        "deleted": {**_COUNT, "description": "delete: how many files and directories went."},
    },
    "success", "output", "reason",
)  # fmt: skip


def _definition(
    name: str, risk: Risk, description: str, parameters: _Schema, result: _Schema
) -> ToolDefinition:
    return ToolDefinition(
        name, description, json.dumps(parameters), json.dumps({"$schema": _DRAFT, **result}), risk
    )


DEFINITIONS: Final = (
    _definition(
        CODE_EXECUTION,
        Risk.MEDIUM,
        "Run a program in a sandbox without network, in an empty directory that goes with it, and get what it wrote. "
        "Python has only its standard library. Files of the workspace are there when the call names them. "
        "Files written under out/ are kept as artifacts.",
        _object(
            {
                "language": {"type": "string", "enum": list(LANGUAGES)},
                "code": {"type": "string", "minLength": 1, "maxLength": MAX_CODE_CHARS},
                "arguments": {
                    "type": "array",
                    "items": {"type": "string", "maxLength": MAX_ARGUMENT_CHARS},
                    "maxItems": MAX_ARGUMENTS,
                    "description": "Command line arguments of the program.",
                },
                "timeout_seconds": _TIMEOUT,
            },
            "language",
            "code",
        ),
        _RUN_RESULT,
    ),
    _definition(
        FILESYSTEM,
        Risk.LOW,
        "List, read, write or delete files of the workspace. Paths are relative to it, without '..'. "
        "Where a directory of the user is shown, relative paths are in it, and it is read-only; "
        "/workspace/NAME is then a file of the workspace itself.",
        _object(
            {
                "operation": {"type": "string", "enum": list(OPERATIONS)},
                "path": {
                    "type": "string",
                    "maxLength": MAX_PATH_BYTES,
                    "description": "Which file or directory; '.' or nothing for the top, to list it.",
                },
                "content": {
                    "type": "string",
                    "maxLength": MAX_CODE_CHARS,
                    "description": "write: what to write.",
                },
                "encoding": {
                    "type": "string",
                    "enum": list(ENCODINGS),
                    "description": "write: how content is given; utf-8 unless said otherwise.",
                },
                "mode": {
                    "type": "string",
                    "enum": list(MODES),
                    "description": "write: create fails when the file is there; replace unless said otherwise.",
                },
                "recursive": {
                    "type": "boolean",
                    "description": "list: directories below too; delete: a directory that is not empty too.",
                },
                "offset": {**_COUNT, "maximum": 2**53, "description": "read: first byte."},
                "max_bytes": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MAX_READ_BYTES,
                    "description": f"read: bytes at most; {DEFAULT_READ_BYTES} unless said otherwise.",
                },
                "max_entries": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MAX_ENTRIES,
                    "description": f"list: names at most; {DEFAULT_ENTRIES} unless said otherwise.",
                },
            },
            "operation",
        ),
        _FILE_RESULT,
    ),
    _definition(
        SHELL,
        Risk.LOW,
        "Run shell commands (ls, cat, grep, find, sed, awk, sort, cp, …) with pipes, redirections, variables, loops and "
        "conditions, in a sandbox without network. Names of programs and files stand there as they are. Functions, "
        "background jobs and other languages are for code_execution.",
        _object(
            {
                "command": {"type": "string", "minLength": 1, "maxLength": MAX_COMMAND_CHARS},
                "timeout_seconds": _TIMEOUT,
            },
            "command",
        ),
        _RUN_RESULT,
    ),
)
"""Sorted by name."""
