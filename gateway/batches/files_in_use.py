"""Which files are being read, so that nobody deletes them from under the work.  Blocking."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sqlalchemy import or_, select

from gateway.batches.tables import BATCH
from gateway.database import translated
from gateway.fine_tuning.tables import FINE_TUNING_JOB

if TYPE_CHECKING:
    from sqlalchemy import Engine

BATCH_WORKS: Final = ("validating", "in_progress", "finalizing", "cancelling")
JOB_READS: Final = ("validating_files",)
"""Later the trainer has a dataset of its own."""


def files_in_use(engine: Engine) -> Callable[[str], str]:
    """Give what names the batch or job that reads a file, or nothing."""

    def user_of(file_id: str) -> str:
        batch = select(BATCH.c.id).where(BATCH.c.input_file_id == file_id, BATCH.c.status.in_(BATCH_WORKS))
        job = select(FINE_TUNING_JOB.c.id).where(
            or_(FINE_TUNING_JOB.c.training_file == file_id, FINE_TUNING_JOB.c.validation_file == file_id),
            FINE_TUNING_JOB.c.status.in_(JOB_READS),
        )
        with translated(), engine.connect() as connection:
            found: str | None = connection.execute(batch.limit(1)).scalar()
            return found or connection.execute(job.limit(1)).scalar() or ""

    return user_of
