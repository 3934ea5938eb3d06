"""What a fine-tuning job is, and how OpenAI's clients read it.  Pure."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from kala.errors import NotFoundError

Json = dict[str, Any]  # Any: JSON

VALIDATING: Final = "validating_files"
QUEUED: Final = "queued"
RUNNING: Final = "running"
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
ENDED: Final = (SUCCEEDED, FAILED, CANCELLED)

LAY: Final = "lay"
BUILD: Final = "build"
START: Final = "start"
TRAIN: Final = "train"
PROMOTE: Final = "promote"
STOP: Final = "stop"
DONE: Final = "done"
"""What is done next: the file laid before the trainer, its dataset built, the job started, its end awaited, its adapter
promoted; or what runs at the trainer ended; or nothing."""

STATUS_OF: Final = {
    "JOB_STATE_QUEUED": QUEUED,
    "JOB_STATE_STARTING": QUEUED,
    "JOB_STATE_FAILED": FAILED,
    "JOB_STATE_CANCELLING": CANCELLED,
    "JOB_STATE_CANCELLED": CANCELLED,
}
"""Of the trainer's states; every other one is running."""

Level = Literal["info", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job."""

    message: str
    level: Level = "info"
    data: Mapping[str, Any] | None = None  # Any: JSON
    number: int = 0
    created_at: datetime | None = None

    def to_json(self, job_id: str) -> Json:
        """Write it as OpenAI's `fine_tuning.job.event`."""
        return {
            "id": f"ftevent-{job_id.removeprefix('ftjob-')}-{self.number}",
            "object": "fine_tuning.job.event",
            "created_at": 0 if self.created_at is None else int(self.created_at.timestamp()),
            "level": self.level,
            "message": self.message,
            "type": "message" if self.data is None else "metrics",
            "data": None if self.data is None else dict(self.data),
        }


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands."""

    id: str
    tenant: str
    owner: str
    subject: str
    model: str
    training_file: str
    status: str
    step: str
    created_at: datetime
    finished_at: datetime | None = None
    trainer_job: str | None = None
    adapter: str | None = None
    fine_tuned_model: str | None = None
    notes: Json = field(default_factory=dict)
    """What is sealed: `hyperparameters`, `seed`, `suffix`, `metadata`, `error`, `operation`, `last_step`, `tokens`."""

    def to_json(self) -> Json:
        """Write it as OpenAI's `fine_tuning.job`."""
        numbers = self.notes["hyperparameters"]
        return {
            "id": self.id,
            "object": "fine_tuning.job",
            "created_at": int(self.created_at.timestamp()),
            "error": self.notes.get("error"),
            "fine_tuned_model": self.fine_tuned_model,
            "finished_at": None if self.finished_at is None else int(self.finished_at.timestamp()),
            "hyperparameters": numbers,
            "model": self.model,
            "organization_id": self.tenant,
            "result_files": [],
            "seed": self.notes["seed"],
            "status": self.status,
            "trained_tokens": self.notes.get("tokens") if self.status in ENDED else None,
            "training_file": self.training_file,
            "validation_file": None,
            "estimated_finish": None,
            "integrations": [],
            "metadata": self.notes.get("metadata"),
            "method": {"type": "supervised", "supervised": {"hyperparameters": numbers}},
            "kala": {
                "training_job": self.trainer_job,
                "adapter": self.adapter,
            },
        }

    @property
    def adapter_name(self) -> str:
        """The adapter to make: its name tells whose job it was."""
        suffix = self.notes.get("suffix")
        return "-".join(["ft", *([suffix] if suffix else []), self.id.removeprefix("ftjob-")[:12]])


def new_job_id(randomness: Callable[[int], str] = secrets.token_hex) -> str:
    """Make an id that cannot be guessed."""
    return f"ftjob-{randomness(16)}"


def no_such_job(job_id: str) -> NotFoundError:
    """Give the error for a job that is not there, or is another tenant's."""
    return NotFoundError(
        f"there is no fine-tuning job {job_id[:80]!r} in your tenant", reason="FINE_TUNING_JOB_NOT_FOUND"
    )
