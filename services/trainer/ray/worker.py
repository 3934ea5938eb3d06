"""One worker of several: the same loop as a local process, in step with the others over torch.distributed."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kala.errors import DataLossError, InternalError, KalaError, UnavailableError
from kala.trainer.v1 import job_pb2
from services.trainer.training.run import train
from services.trainer.training.world import World
from services.trainer.work.bounds import hold_folder
from services.trainer.work.events import EventWriter
from services.trainer.work.order import read_order
from services.trainer.work.references import require_datasets
from services.trainer.work.results import ERROR, write_atomically, write_error, write_result

NOTE: Final = "workers.json"
"""Which processes worked last; its presence says that a run was cut."""

LEAD: Final = "lead"
"""Folder whose lock is held by the worker that writes."""

_STEP: Final = re.compile(r"step-([0-9]{8,})")

PASSING: Final = (DataLossError, InternalError, UnavailableError)
"""What another try may get over; any other error of ours would come again."""
PASSING_REASONS: Final = frozenset({"FOLDER_IN_USE"})


class Silent:
    """Takes the events of the workers that do not lead."""

    def write(self, *_: object, **__: object) -> None:
        """Drop it."""


def train_worker(config: dict[str, Any]) -> None:  # Any: Ray passes what the driver gave
    """Train as one of Ray's workers; started again with the others when one of them was lost."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    world = World(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        device=str(ray.train.torch.get_device()),
    )
    # The line by which the log tells workers apart.
    print(f"kala worker {world.rank} is process {os.getpid()}", flush=True)  # noqa: T201 - its output is the log
    folder = Path(config["folder"])
    if (folder / ERROR).exists():
        return
    try:
        _train(folder, int(config["threads"]), world)
    except KalaError as error:
        if not isinstance(error, PASSING) and error.reason not in PASSING_REASONS:
            # Said once, by whoever met it; the others are ended by Ray, and find it when they are started again.
            write_error(folder, error)
        raise


def _train(folder: Path, threads: int, world: World) -> None:
    order = replace(read_order(folder), threads=threads)
    require_datasets(order)
    if not world.leads:
        train(order, Silent(), world=world)
        return
    (folder / LEAD).mkdir(mode=0o700, exist_ok=True)
    # A leader that is thought lost but lives would write into the same checkpoints.
    with hold_folder(folder / LEAD):
        events = EventWriter(folder)
        _tell_loss(folder, events, world)
        note = {"workers": world.size, "process": os.getpid()}
        write_atomically(folder / NOTE, json.dumps(note).encode())
        write_result(folder, train(order, events, world=world))
        (folder / NOTE).unlink()


def _tell_loss(folder: Path, events: EventWriter, world: World) -> None:
    """Tell of the run that was cut before this one, if one was."""
    if not (folder / NOTE).exists():
        return
    step = last_step(folder)
    events.write(
        job_pb2.IncidentEvent(
            kind="WORKER_LOST",
            message="a worker or its machine was lost; all go on from the last checkpoint",
            resumes_from_step=step,
        )
    )
    progress = job_pb2.TrainingProgress(state=job_pb2.JOB_STATE_RESUMING, step=step, workers=world.size)
    progress.checkpoint_step = step
    events.write(progress, force=True)


def last_step(folder: Path) -> int:
    """The newest checkpoint's step by its name; 0 for none."""
    found = (_STEP.fullmatch(path.name) for path in (folder / "checkpoints").glob("step-*"))
    return max((int(match[1]) for match in found if match), default=0)
