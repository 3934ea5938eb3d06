"""What a checked tool call comes to: a program for the sandbox, or one file operation in the workspace."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from services.tools.files.model import WriteMode
from services.tools.policy.model import Risk
from services.tools.sandbox.model import Language


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A tool as it is offered to a model; both schemas are JSON Schema (draft 2020-12) as JSON text."""

    name: str
    # Written for a model; at most 1,024 characters.
    description: str
    parameters_schema: str
    result_schema: str
    # The least risk of a call.
    risk: Risk


@dataclass(frozen=True, slots=True)
class ProgramCall:
    """Run this in the sandbox."""

    tool: str
    risk: Risk
    language: Language
    # What is run: for `shell` the judged commands written out anew, never the model's own text.
    source: bytes
    arguments: tuple[str, ...] = ()
    # Asked for by the model; the run's wall time is the smaller of this and its limit. None: no wish.
    wall_seconds: float | None = None


class FileVerb(Enum):
    """What `filesystem` does."""

    LIST = "list"
    READ = "read"
    WRITE = "write"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class FileCall:
    """Do this to the workspace's files; no program runs. The zones allow it."""

    tool: str
    risk: Risk
    verb: FileVerb
    # Relative to the workspace, "" is its top; "host" and "host/…" are the host directory where one is shown.
    path: str
    data: bytes = b""
    mode: WriteMode = WriteMode.REPLACE
    recursive: bool = False
    offset: int = 0
    # For READ; for LIST the most names.
    most: int = 0


Call = ProgramCall | FileCall
