"""`kala audit receipt FILE.jsonl`: every line of a session's log against the receipt that it carries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from kala.cli.output import note, show, show_json
from kala.cli.tool_words import on_one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kala.audit.note import Verifier
    from kala.audit.session import SessionReport

SESSION_SUFFIX: Final = ".jsonl"
_MAX_NAMED_CHARS: Final = 500
_NAMED: Final = 5
"""As many receipts without proof are named in words; the JSON names all."""


def is_session(file: Path) -> bool:
    """Whether a file is a session's log rather than one receipt."""
    return file.suffix == SESSION_SUFFIX


def verify_session_file(file: Path, trusted: Sequence[Verifier], *, as_json: bool) -> bool:
    """Check and show; false where nothing is wrong and some receipts have no proof yet.

    Raises VerificationError naming the first bad line, and UnverifiableError for a file that cannot be read.
    """
    from kala.audit.report import UnverifiableError
    from kala.audit.session import MAX_LINE_CHARS, verify_session

    try:
        with file.open(encoding="utf-8") as lines:
            # One line more than fits is enough to refuse it, whatever a file holds.
            report = verify_session(iter(lambda: lines.readline(MAX_LINE_CHARS + 2), ""), trusted)
    except OSError as error:
        raise UnverifiableError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UnverifiableError(f"{file} is not text") from error
    _show(report, as_json=as_json)
    return not report.unproved


def _show(report: SessionReport, *, as_json: bool) -> None:
    if as_json:
        show_json(
            {
                "result": "unverifiable" if report.unproved else "good",
                "lines": report.lines,
                "receipts": report.proved,
                "unproved": list(report.unproved),
            }
        )
        return
    show(f"good: {report.proved} receipts in {report.lines} lines")
    if report.unproved:
        named = on_one_line(", ".join(report.unproved[:_NAMED])[:_MAX_NAMED_CHARS]) + (
            ", …" if len(report.unproved) > _NAMED else ""
        )
        note(
            f"unverifiable: {len(report.unproved)} receipts carry no proof: {named}; their records were only "
            "spooled then, and the log may have them by now: `GET /kala/v1/audit/receipts/<id>`"
        )
