"""The states of a job, and what a job says of itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1.reference_pb2 import ContentReference
from kala.trainer.v1 import job_pb2

ENDED: Final = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED})

MAX_ERROR_CHARS: Final = 2_000
MAX_REPORT_FILES: Final = 256

CHECKPOINTS: Final = "checkpoints"
REPORTS: Final = "reports"
MANIFEST: Final = "manifest.json"
_STEP: Final = "step-"


def has_ended(job: job_pb2.TrainingJob) -> bool:
    """Whether nothing will happen to it any more."""
    return job.progress.state in ENDED


def timestamp(seconds: float) -> Timestamp:
    """Unix time as the contract writes it."""
    nanos = round(seconds * 1_000_000) * 1_000
    return Timestamp(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def last_checkpoint(folder: Path) -> int:
    """Step of the newest whole checkpoint in a job's folder; 0 for none. The checkpoint on disk is the truth."""
    try:
        names = [path.parent.name for path in (folder / CHECKPOINTS).glob(f"{_STEP}*/{MANIFEST}")]
    except OSError:
        return 0
    steps = [name.removeprefix(_STEP) for name in names]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def reports_in(folder: Path) -> list[ContentReference]:
    """The files of a job's reports by digest, by name; reads all of them."""
    return references_below(folder / REPORTS, prefix=f"{REPORTS}/")


def references_below(root: Path, *, prefix: str) -> list[ContentReference]:
    """The files of a folder by digest, by name, at most MAX_REPORT_FILES; reads all of them."""
    found = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    references: list[ContentReference] = []
    for path in found[:MAX_REPORT_FILES]:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            name = prefix + path.relative_to(root).as_posix()
            references.append(ContentReference(name=name, sha256=digest, bytes=file.tell()))
    return references
