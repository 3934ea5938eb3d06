"""What a tool gives back: one JSON value in the shape that its definition says, never larger than the contract takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from services.tools.files.model import Artifact, Changes
from services.tools.sandbox.model import Ended, Status

MAX_RESULT_BYTES: Final = 1_048_576
# Of it: each of the two streams, and each list. Together they leave room for the rest.
_STREAM_BYTES: Final = 384 * 1024
_LIST_BYTES: Final = 48 * 1024


def run_result(
    ended: Ended, *, stdout: bytes, stderr: bytes, artifacts: Sequence[Artifact], changes: Changes
) -> str:
    """The result of a program; bytes that are not UTF-8 become U+FFFD."""
    output, output_cut = fitting_text(stdout.decode(errors="replace"), _STREAM_BYTES)
    error, error_cut = fitting_text(stderr.decode(errors="replace"), _STREAM_BYTES)
    passed_on = len(stdout) + len(stderr)
    return written(
        {
            "success": ended.status is Status.OK,
            "status": ended.status.value,
            "exit_code": ended.exit_code,
            "output": output,
            "error": error,
            "reason": fitting_text(ended.reason, _LIST_BYTES)[0],
            "output_truncated": ended.output_truncated
            or output_cut
            or error_cut
            or passed_on < ended.usage.output_bytes,
            "artifacts": fitting_items(
                {
                    "path": each.path,
                    "bytes": each.size,
                    "media_type": each.media_type,
                    "sha256": each.sha256.hex(),
                }
                for each in artifacts
            ),
            "written": fitting_items(each.path for each in changes.written),
            "deleted": fitting_items(changes.deleted),
            "skipped": fitting_items({"path": each.path, "reason": each.reason} for each in changes.skipped),
            "wall_seconds": round(ended.usage.wall_seconds, 3),
        }
    )


def written(value: Mapping[str, Any]) -> str:  # Any: JSON
    """The value as JSON text of UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def fitting_text(text: str, most_bytes: int) -> tuple[str, bool]:
    """The beginning that takes at most so many bytes in JSON, and whether anything is missing."""
    shown = text
    while (size := _size(shown)) > most_bytes:
        # Escapes are spread unevenly, so this may take a few rounds.
        shown = shown[: min(len(shown) - 1, len(shown) * most_bytes // size)]
    return shown, len(shown) < len(text)


def fitting_items(items: Iterable[Any], most_bytes: int = _LIST_BYTES) -> list[Any]:  # Any: JSON
    """As many of the first items as take at most so many bytes."""
    shown = []
    for item in items:
        most_bytes -= _size(item) + 2
        if most_bytes < 0:
            break
        shown.append(item)
    return shown


def _size(value: Any) -> int:  # Any: JSON
    return len(json.dumps(value, ensure_ascii=False).encode())
