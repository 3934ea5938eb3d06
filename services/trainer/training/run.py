"""A training job in its own process: the order becomes work, the work an adapter and what is told of it."""

from __future__ import annotations

import importlib.metadata
import platform
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

from kala.errors import FailedPreconditionError
from kala.trainer.v1 import job_pb2, trainer_pb2
from services.common.file_set import file_set_digest
from services.common.strict_parsing import require_same
from services.trainer.registry.bases import base_files
from services.trainer.training import saving
from services.trainer.training.failures import cured
from services.trainer.training.loop import Events, Hooks, Outcome, Trainer
from services.trainer.training.progress import peak_memory_bytes
from services.trainer.training.recipe import USES, DatasetFolder, Work, work_of
from services.trainer.training.state import Position
from services.trainer.training.trackers import Trackers, open_trackers
from services.trainer.training.world import World
from services.trainer.work.order import Order

REPORTS: Final = "reports"
LIBRARIES: Final = (
    "kala-suite",
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "tokenizers",
    "bitsandbytes",
)
_TRACKERS: Final = {
    job_pb2.TRACKER_TENSORBOARD: "tensorboard",
    job_pb2.TRACKER_MLFLOW: "mlflow",
}


def main(order: Order, events: Events) -> dict[str, Any]:  # Any: JSON
    """Train what the order says, in this process alone; gives what goes into `result.json`."""
    asked = _stop_on_signals()
    return train(order, events, should_stop=asked)


def train(
    order: Order,
    events: Events,
    *,
    world: World | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:  # Any: JSON
    """The same for one worker of several; only the one that leads tells and writes, each gives the result."""
    world = world or World()
    spec = order.parse(trainer_pb2.CreateTrainingJobAction).spec
    _set_threads(order.threads)
    work = work_for(order, spec)
    require_cleared_base(order)
    drafted: dict[str, int] = {}
    if spec.objective == job_pb2.TRAINING_OBJECTIVE_CONSTITUTIONAL:
        from services.trainer.training.constitutional.pipeline import prepare

        datasets = work.stages[0].datasets
        prepared = prepare(order, spec, work, datasets, events, world=world, should_stop=should_stop)
        work, drafted = replace(work, stages=prepared.stages), dict(prepared.counts)
    told = run_work(
        work,
        events,
        world=world,
        should_stop=should_stop,
        trackers=[_TRACKERS[each] for each in spec.trackers if each in _TRACKERS],
        run_name=order.name,
        mlflow_uri=str(order.settings.get("mlflow_uri", "")),
    )
    told |= {"drafts": drafted} if drafted else {}
    if world.leads:
        _draw(order, spec, told, events)
    return told


def _draw(
    order: Order, spec: job_pb2.TrainingSpec, told: dict[str, Any], events: Events
) -> None:  # Any: JSON
    """Draw the reports; an adapter is no worse for a picture that is missing."""
    try:
        from services.trainer.reports.files import write_reports

        write_reports(order.folder, order.name, spec, told)
    except Exception as error:  # noqa: BLE001 - as above
        events.write(job_pb2.IncidentEvent(kind="REPORT_NOT_DRAWN", message=str(error)[:200]))


def require_cleared_base(order: Order) -> None:
    """Raises VerificationError unless the base's files are those that were cleared; reads all of them."""
    if order.base is None:
        raise FailedPreconditionError("the order names no base", reason="ORDER_INCOMPLETE")
    digest = file_set_digest(base_files(order.base.directory))
    require_same(f"base {order.base.name}: digest of its files", digest, order.base.digest)


def work_for(order: Order, spec: job_pb2.TrainingSpec) -> Work:
    """The order as the loop takes it; a constitutional job's rows are still to be drafted from its datasets."""
    if order.base is None:
        raise FailedPreconditionError("the order names no base", reason="ORDER_INCOMPLETE")
    datasets = tuple(
        DatasetFolder(place.name, place.directory, _use(place.use), place.weight or 1.0)
        for place in order.datasets
    )
    return work_of(
        spec, folder=order.folder, base=order.base.directory, datasets=datasets, deadline=order.deadline
    )


def _use(number: int) -> str:
    return next((use for known, use in USES.items() if known == number), "train")


def run_work(
    work: Work,
    events: Events,
    *,
    world: World | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    trackers: list[str] | None = None,
    run_name: str = "",
    mlflow_uri: str = "",
    hooks: Callable[[Hooks], Hooks] = lambda hooks: hooks,
) -> dict[str, Any]:  # Any: JSON
    """Do some work from its last checkpoint to its result."""
    world = world or World()
    chosen = Hooks(events=events, should_stop=should_stop)
    if not world.leads:
        outcome = Trainer(work, hooks(chosen), world).run()
        saving.save(work, outcome, leads=False)
        return result(work, outcome, world)
    numbers = _Numbers()
    with ExitStack() as stack:

        def open_at(step: int) -> None:
            """Open the trackers, and drop what they have of steps that will be taken again."""
            numbers.trackers = stack.enter_context(
                open_trackers(
                    work.folder / REPORTS,
                    trackers or (),
                    resume_step=step,
                    run_name=run_name,
                    mlflow_uri=mlflow_uri,
                    on_fault=lambda name, problem: events.write(
                        job_pb2.IncidentEvent(kind="TRACKER_LOST", message=f"{name}: {problem}")
                    ),
                )
            )

        outcome = Trainer(work, hooks(replace(chosen, metrics=numbers, on_resume=open_at)), world).run()
    _tell_saving(events, outcome.position, world)
    with cured(work):
        saving.save(work, outcome)
    return result(work, outcome, world)


@dataclass(slots=True)
class _Numbers:
    """Passes numbers on to the trackers, which are opened once it is known where a run goes on."""

    trackers: Trackers | None = None

    def log(self, step: int, values: dict[str, float]) -> None:
        if self.trackers is not None:
            self.trackers.log(step, values)


def result(work: Work, outcome: Outcome, world: World) -> dict[str, Any]:  # Any: JSON
    """What the service signs and people read."""
    position, loaded = outcome.position, outcome.loaded
    metrics = {"train_loss": position.loss, "validation_loss": position.validation_loss}
    metrics["train_seconds"] = round(position.seconds, 3)
    return {
        "directory": saving.BASE if work.lora is None else saving.ADAPTER,
        "steps": position.step,
        "tokens": position.tokens,
        "seed": work.seed,
        "resumes": position.resumes,
        "metrics": {name: value for name, value in metrics.items() if value is not None},
        "software": software(),
        "hardware": hardware(world, outcome.device),
        "precision": loaded.precision,
        "workers": world.size,
        "peak_memory_bytes": peak_memory_bytes(),
        "targets": {target.module: target.matched for target in loaded.targets},
        "rows": {
            name: {"rows": counts.rows, "cut": counts.cut, "empty": counts.empty, "tokens": counts.tokens}
            for name, counts in outcome.counts.items()
        },
        "labels": list(work.labels),
        "chat_template": saving.TEMPLATE_FILE if outcome.template and not work.labels else "",
    }


def software() -> list[str]:
    """What ran it, with versions."""
    found = [f"python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware(world: World, device: str) -> str:
    """What it ran on, for people."""
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
    return f"{world.size} x {name}" if world.size > 1 else name


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(max(1, threads))


def _tell_saving(events: Events, position: Position, world: World) -> None:
    events.write(
        job_pb2.TrainingProgress(
            state=job_pb2.JOB_STATE_SAVING,
            step=position.step,
            total_steps=position.step,
            tokens=position.tokens,
            loss=position.loss,
            validation_loss=position.validation_loss,
            workers=world.size,
            checkpoint_step=position.step,
            resumes=position.resumes,
            peak_memory_bytes=peak_memory_bytes(),
        ),
        force=True,
    )


def _stop_on_signals() -> Callable[[], bool]:
    """Let SIGTERM and SIGINT end the run after its present step."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: asked.append(signum))
    return lambda: bool(asked)
