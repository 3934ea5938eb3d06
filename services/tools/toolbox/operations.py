"""Doing what `filesystem` was asked for, on an open workspace."""

from __future__ import annotations

import base64
import codecs
from dataclasses import dataclass
from typing import Any, Final, assert_never

from kala.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from services.tools.files.model import FileInfo, FileKind, FilePart
from services.tools.files.workspace_files import WorkspaceFiles
from services.tools.policy.model import RefusedByPolicyError
from services.tools.toolbox.model import FileCall, FileVerb
from services.tools.toolbox.results import fitting_items, written

# Entries say each name twice.
_ENTRIES_BYTES: Final = 480 * 1024

_MENDABLE: Final = (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)

_Result = dict[str, Any]  # Any: JSON


@dataclass(frozen=True, slots=True)
class Operated:
    """What became of a file operation."""

    result_json: str
    # Why it was not done, in words; empty when it was.
    reason: str = ""


async def operate(call: FileCall, files: WorkspaceFiles) -> Operated:
    """Do it. What its caller can mend, such as a file that is not there, is a result; anything else is raised."""
    try:
        result = await _operate(call, files)
    except RefusedByPolicyError:
        raise
    except _MENDABLE as error:
        failed = {"success": False, "output": "", "reason": error.message}
        return Operated(written(failed), error.message)
    return Operated(written({"success": True, "reason": "", **result}))


async def _operate(call: FileCall, files: WorkspaceFiles) -> _Result:
    match call.verb:
        case FileVerb.LIST:
            page = await files.list(call.path, recursive=call.recursive, page_size=call.most)
            result = _listing(page.files, more=bool(page.next_page_token))
        case FileVerb.READ:
            result = _content(
                await files.read(call.path, offset=call.offset, max_bytes=call.most), call.offset
            )
        case FileVerb.WRITE:
            done = await files.write(call.path, call.data, mode=call.mode)
            result = {
                "output": f"{'made' if done.created else 'changed'} {done.file.path} ({done.file.size} bytes)",
                "bytes": done.file.size,
                "sha256": done.file.sha256.hex(),
                "created": done.created,
            }
        case FileVerb.DELETE:
            gone = await files.delete(call.path, recursive=call.recursive)
            result = {"output": f"deleted {call.path} ({gone.inodes} in all)", "deleted": gone.inodes}
        case _:
            assert_never(call.verb)
    return result


def _listing(found: tuple[FileInfo, ...], *, more: bool) -> _Result:
    entries = [{"path": each.path, "kind": each.kind.value, "bytes": each.size} for each in found]
    shown = fitting_items(entries, _ENTRIES_BYTES)
    names = [entry["path"] + ("/" if entry["kind"] == FileKind.DIRECTORY.value else "") for entry in shown]
    return {
        "output": "".join(f"{name}\n" for name in names),
        "entries": shown,
        "more": more or len(shown) < len(entries),
    }


def _content(part: FilePart, offset: int) -> _Result:
    result: _Result = {"bytes": part.file.size}
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_end = part.next_offset is None
    try:
        text = decoder.decode(part.data, final=is_end)
    except UnicodeDecodeError:
        text = ""
    if part.data and not text:
        # No text, or a part that is smaller than one character of it.
        result |= {"output": base64.b64encode(part.data).decode(), "encoding": "base64"}
        return result | ({} if is_end else {"next_offset": part.next_offset})
    # A character that the part's end cut in two is left for the next part.
    left = len(decoder.getstate()[0])
    result |= {"output": text, "encoding": "utf-8"}
    return result | ({} if is_end else {"next_offset": offset + len(part.data) - left})
