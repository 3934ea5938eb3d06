"""What full fine-tuning leaves: a base of its own among the bases, named after its job."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, InternalError
from kala.trainer.v1 import job_pb2
from services.trainer.jobs.states import references_below
from services.trainer.names import JOBS, directory_name, number_of

BASE: Final = "base"
"""Folder of a job that holds it."""

NUMBER_CHARS: Final = 8


def require_place(method: job_pb2.TrainingMethod.ValueType, bases_dir: Path | None) -> None:
    """Raises FailedPreconditionError for full fine-tuning where a new base would have no place."""
    if method == job_pb2.TRAINING_METHOD_FULL and bases_dir is None:
        raise FailedPreconditionError(
            "spec.method: full fine-tuning makes a new base, and there is no place for one; set "
            "KALA_TRAINER_BASES_DIR, or train an adapter"
        )


async def keep_base(job: job_pb2.TrainingJob, folder: Path, bases_dir: Path) -> list[ContentReference]:
    """Move a job's new base to the others and name its files; again for the same job it changes nothing."""
    name = f"{directory_name(job.spec.adapter)}.{number_of(JOBS, job.name)[:NUMBER_CHARS]}"
    return await asyncio.to_thread(_keep, folder / BASE, bases_dir / name, name)


def _keep(made: Path, place: Path, name: str) -> list[ContentReference]:
    if not place.is_dir():
        if not made.is_dir():
            raise InternalError("the process ended without the base it made", reason="WORK_WITHOUT_RESULT")
        draft = place.with_name(f".{place.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            # The bases may lie on another disk; whoever looks sees all of it or nothing.
            shutil.copytree(made, draft)
            draft.replace(place)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise FailedPreconditionError(
                f"the new base cannot be written to {place.parent}: {error.strerror}; make place, or set "
                "KALA_TRAINER_BASES_DIR",
                reason="DISK_FULL",
            ) from error
    shutil.rmtree(made, ignore_errors=True)
    return references_below(place, prefix=f"bases/{name}/")
