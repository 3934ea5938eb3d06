"""What an auditor asks of an execution: how it ended, where it ran, and digests of what went in and came out.  Pure."""

from __future__ import annotations

from typing import Final

from kala.common.v1.reference_pb2 import ContentReference
from services.common.service_records import Facts, RecordStatus
from services.tools.happenings import Exit
from services.tools.sandbox.model import Status

_RECORD_STATUSES: Final[dict[Status, RecordStatus]] = {
    Status.OK: "ok",
    Status.CANCELLED: "cancelled",
    Status.REFUSED: "refused",
    Status.APPROVAL_REQUIRED: "refused",
}


def facts_of(end: Exit) -> Facts:
    """Say how an execution ended."""
    status = _RECORD_STATUSES.get(end.status, "error")
    references = [
        *(ContentReference(name=file.path, sha256=file.sha256, bytes=file.size) for file in end.files),
        *(ContentReference(name=each.name, sha256=each.sha256, bytes=each.size) for each in end.artifacts),
    ]
    return Facts(status, "" if status == "ok" else end.status.name, references=references)


def attributes_of(end: Exit) -> dict[str, str]:
    """What an auditor asks of a run: where it ran, how it ended, and digests of what came out of it."""
    said = {
        "run": end.run,
        "run.status": end.status.value,
        "run.exit_code": "" if end.exit_code is None else str(end.exit_code),
        "run.signal": "" if end.signal is None else str(end.signal),
        "run.approval": end.approval,
        "run.artifacts": str(len(end.artifacts)) if end.artifacts else "",
        "run.stdout_sha256": end.stdout_sha256.hex(),
        "run.stderr_sha256": end.stderr_sha256.hex(),
        "run.output_truncated": "true" if end.output_truncated else "",
    }
    if end.isolation is not None:
        said |= {
            "isolation.tier": end.isolation.tier.value,
            "isolation.strength": end.isolation.strength.name.lower(),
            "isolation.version": end.isolation.version,
            "isolation.controls": ",".join(end.isolation.controls),
        }
    return {key: value for key, value in said.items() if value}
