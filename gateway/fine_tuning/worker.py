"""Brings fine-tuning jobs forward at the trainer, a step at a time; each can be done again by whoever takes over.

lay the file → build a dataset → start the training job → await its end and its gate → promote the adapter.
Names of requests follow from the job's id, so that a step that was cut off starts nothing twice.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from gateway.fine_tuning import model
from gateway.fine_tuning.model import STATUS_OF, Event, Job
from gateway.fine_tuning.trainer import KEY_ENDED, TrainerCalls, TrainerRefusedError
from gateway.lease_keeping import while_held
from gateway.leases import LeaseLostError
from kala.errors import DataLossError, InvalidArgumentError, KalaError, NotFoundError

if TYPE_CHECKING:
    from gateway.files.store import FileStore
    from gateway.fine_tuning.laying import Tray
    from gateway.fine_tuning.store import FineTuningStore

POLL_SECONDS: Final = 2.0
AWAY_SECONDS: Final = 15.0
EMBEDDED: Final = "kala-embedded"
RANK: Final = 16
"""The training guide's lower end."""

PASSED: Final = "GATE_OUTCOME_PASSED"
LICENCE: Final = "LicenseRef-uploaded"

Json = dict[str, Any]  # Any: JSON
Outcome = tuple[Job, list[Event]]


class FineTuningWorker:
    """Works on jobs until it is stopped; one per process."""

    def __init__(
        self,
        store: FineTuningStore,
        files: FileStore,
        tray: Tray,
        *,
        trainer: TrainerCalls,
        holder: str,
        lease: timedelta,
        gate: str | None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`gate` is the profile of every job; None takes the base's own."""
        self._store = store
        self._files = files
        self._tray = tray
        self._trainer = trainer
        self._holder = holder
        self._lease = lease
        self._gate = gate
        self._poll_seconds = poll_seconds
        self._steps = {
            model.LAY: self._lay,
            model.BUILD: self._build,
            model.START: self._start,
            model.TRAIN: self._train,
            model.PROMOTE: self._promote,
            model.STOP: self._stop,
        }

    async def run(self) -> None:
        """Work for ever; what is away is waited for."""
        while True:
            try:
                has_worked = await self.step()
            except KalaError as error:
                structlog.get_logger().warning("fine-tuning jobs stand still", reason=error.reason)
                has_worked = False
            if not has_worked:
                await asyncio.sleep(self._poll_seconds)

    async def step(self) -> bool:
        """Do the next step of one job; False when none is due."""
        job = await asyncio.to_thread(self._store.claim, self._holder)
        if job is None:
            return False
        pause = self._poll_seconds
        try:
            renew = partial(self._store.renew, job.id, self._holder)
            every = self._lease.total_seconds() / 3
            after, events = await while_held(self._next(job), renew, every_seconds=every)
            if after.step not in {model.LAY, model.BUILD}:
                # A dataset holds the rows now, and finds them again for an erasure; or there is none.
                await asyncio.to_thread(self._tray.clear, job.id)
            await asyncio.to_thread(self._store.save, after, self._holder, *events)
            pause = 0.0 if after.step != job.step else self._poll_seconds
        except LeaseLostError:
            structlog.get_logger().info("a fine-tuning job was cancelled or taken over", job=job.id)
            await self._end_what_began(job)
        except KalaError as error:
            structlog.get_logger().warning("a fine-tuning job waits", job=job.id, reason=error.reason)
            pause = AWAY_SECONDS
        except Exception as error:  # noqa: BLE001 - the edge of this work: a bug in one job must not end the others
            structlog.get_logger().exception("a fine-tuning job met a bug", job=job.id, exc_info=error)
            pause = AWAY_SECONDS
        finally:
            release = partial(self._store.release, job.id, self._holder, pause=timedelta(seconds=pause))
            await asyncio.shield(asyncio.to_thread(release))
        return True

    async def _next(self, job: Job) -> Outcome:
        try:
            return await self._steps[job.step](job)
        except TrainerRefusedError as error:
            if error.reason == KEY_ENDED and job.trainer_job and job.step == model.TRAIN:
                await self._trainer.end(job, job.trainer_job)
            return _failed(job, error.reason, error.message)
        except InvalidArgumentError as error:
            return _failed(job, "invalid_training_file", error.message, param="training_file")
        except (NotFoundError, DataLossError) as error:
            return _failed(job, error.reason.lower(), error.message, param="training_file")

    async def _lay(self, job: Job) -> Outcome:
        trainer = self._trainer
        laid = await asyncio.to_thread(self._laid, job)
        checked = await trainer.post(job, "datasets:check", {"spec": _dataset(job, laid)})
        if not checked.get("buildable"):
            return _failed(job, "invalid_training_file", _problems(checked), param="training_file")
        body = {"request_id": job.id, "spec": checked["spec"]}
        operation = await trainer.post(job, "datasets:build", body)
        notes = job.notes | {"operation": operation["name"]}
        return replace(job, notes=notes, step=model.BUILD), [Event("Validating training file.")]

    def _laid(self, job: Job) -> Json:
        file = self._files.get(job.tenant, job.training_file)
        laid = self._tray.lay(job.id, self._files.read(file), subject=file.subject)
        try:
            self._store.renew(job.id, self._holder)
        except LeaseLostError:
            # Cancelled or erased meanwhile: then nobody else takes the file away.
            if self._has_ended(job):
                self._tray.clear(job.id)
            raise
        return laid | {"sha256": base64.b64encode(bytes.fromhex(laid["sha256"])).decode()}

    def _has_ended(self, job: Job) -> bool:
        try:
            return self._store.get(job.tenant, job.id).status in model.ENDED
        except NotFoundError:
            return True

    async def _build(self, job: Job) -> Outcome:
        operation = await self._trainer.get(job, job.notes["operation"])
        if error := operation.get("error"):
            return _failed(job, "invalid_training_file", str(error.get("message", "")), param="training_file")
        if not operation.get("done"):
            return job, []
        notes = job.notes | {"dataset": operation["response"]["reference"]}
        after = replace(job, notes=notes, step=model.START, status=model.QUEUED)
        return after, [Event("Files validated, moving job to queued state.")]

    async def _start(self, job: Job) -> Outcome:
        trainer = self._trainer
        planned = await self._planned(trainer, job, {})
        multiplier = job.notes["hyperparameters"]["learning_rate_multiplier"]
        if multiplier != "auto":
            rate = float(planned["spec"]["hyperparameters"]["learning_rate"])
            planned = await self._planned(trainer, job, {"learning_rate": rate * multiplier})
        if problems := planned.get("problems"):
            return _failed(job, "cannot_be_trained", "; ".join(map(str, problems)), param="model")
        body = {"request_id": job.id, "spec": planned["spec"]}
        operation = await trainer.post(job, "trainingJobs", body)
        trainer_job = str(operation["metadata"]["job"])
        after = replace(job, trainer_job=trainer_job, step=model.TRAIN, status=model.QUEUED)
        return after, [Event(f"The trainer took the job up as {trainer_job}.")]

    async def _planned(self, trainer: TrainerCalls, job: Job, settings: Mapping[str, float]) -> Json:
        # A document of JSON is one of YAML.
        text = json.dumps(_document(job, self._gate or _gate_of(job), settings))
        plan: Json = (await trainer.post(job, "jobs:plan", {"yaml": text}))["plan"]
        return plan

    async def _train(self, job: Job) -> Outcome:
        found = (await self._trainer.get(job, str(job.trainer_job)))["job"]
        progress = found.get("progress") or {}
        state = str(progress.get("state", ""))
        events = _progress_events(job, progress)
        notes = job.notes | {
            "last_step": int(progress.get("step", 0)),
            "tokens": int(progress.get("tokens", 0)),
        }
        job = replace(job, notes=notes, adapter=found.get("adapter") or None)
        if state == "JOB_STATE_FAILED":
            code = str(found.get("error_reason") or "training_failed").lower()
            return _failed(job, code, str(found.get("error") or "the training failed"), events=events)
        if state == "JOB_STATE_CANCELLED":
            return replace(job, status=model.CANCELLED, step=model.DONE), [
                *events,
                Event("The trainer ended the job."),
            ]
        if state == "JOB_STATE_SUCCEEDED":
            return replace(job, status=model.RUNNING, step=model.PROMOTE), [
                *events,
                Event("Trained; looking at its gate."),
            ]
        status = STATUS_OF.get(state, model.RUNNING)
        if status != job.status:
            events = [
                Event("Fine-tuning job started.") if status == model.RUNNING else Event("Queued."),
                *events,
            ]
        return replace(job, status=status), events

    async def _promote(self, job: Job) -> Outcome:
        """Name the model, once its adapter has passed its gate and its manifest is signed; never before."""
        trainer = self._trainer
        adapter = (await trainer.get(job, str(job.adapter)))["adapter"]
        passed = await self._passed(trainer, job, adapter)
        if passed is None:
            return _failed(
                job,
                "gate_failed",
                f"{job.adapter} was trained but did not pass its gate, so that it may not serve; its evaluations say why",
            )
        if adapter.get("state") != "ADAPTER_STATE_PROMOTED":
            result = base64.b64decode(passed["evidence"]["result"])
            reference = {
                "name": passed["name"],
                "sha256": base64.b64encode(hashlib.sha256(result).digest()).decode(),
                "bytes": len(result),
            }
            body = {"request_id": f"{job.id}-p", "adapter": adapter["reference"], "evaluation": reference}
            await trainer.post(job, "adapters:promote", body)
        after = replace(job, status=model.SUCCEEDED, step=model.DONE, fine_tuned_model=job.adapter)
        return after, [
            Event(f"The gate is passed; the model is {job.adapter}."),
            Event("The job has succeeded."),
        ]

    async def _passed(self, trainer: TrainerCalls, job: Job, adapter: Json) -> Json | None:
        for name in adapter.get("evaluations") or ():
            found: Json = (await trainer.get(job, str(name)))["evaluation"]
            if found.get("outcome") == PASSED:
                return found
        return None

    async def _stop(self, job: Job) -> Outcome:
        """End what runs at the trainer for a cancelled job."""
        known = job.trainer_job or job.notes.get("operation")
        targets = [] if job.trainer_job else await self._begun(job)
        for target in targets or ([str(known)] if known else []):
            await self._trainer.end(job, target)
        return replace(job, step=model.DONE), []

    async def _begun(self, job: Job) -> list[str]:
        """Name what runs at the trainer for a job that was cut off before it could note that it began."""
        if "dataset" not in job.notes:
            return []
        found = await self._trainer.get(job, "trainingJobs", adapter=f"adapters/{job.adapter_name}")
        return [str(each["name"]) for each in found.get("jobs") or ()]

    async def _end_what_began(self, job: Job) -> None:
        """End a training that began while its job was cancelled or erased: no other worker knows of it."""
        try:
            if job.step == model.START and await asyncio.to_thread(self._has_ended, job):
                for target in await self._begun(job):
                    await self._trainer.end(job, target)
        except KalaError as error:
            structlog.get_logger().error(
                "a cancelled job may still run at the trainer", job=job.id, reason=error.reason
            )


def _failed(
    job: Job, code: str, message: str, *, param: str | None = None, events: list[Event] | None = None
) -> Outcome:
    # A cancelled job stays that, whatever became of its end.
    status = model.CANCELLED if job.status == model.CANCELLED else model.FAILED
    notes = job.notes | {"error": {"code": code.lower(), "message": message, "param": param}}
    after = replace(job, status=status, step=model.DONE, notes=notes)
    return after, [*(events or []), Event(message, "error")]


def _dataset(job: Job, laid: Json) -> Json:
    files = {"files": [laid], "format": "SOURCE_FORMAT_MESSAGES", "licence": LICENCE}
    return {
        "name": f"datasets/{job.adapter_name}",
        "sources": [{"name": "training_file", "files": files}],
        "duplicate_similarity": 1.0,
        "seed": str(job.notes["seed"]),
        "summary": f"Uploaded for {job.id}.",
    }


def _document(job: Job, gate: str, settings: Mapping[str, float]) -> Json:
    """Write the job as the trainer's YAML has it."""
    numbers = job.notes["hyperparameters"]
    dataset = job.notes["dataset"]
    asked: Json = {"seed": job.notes["seed"], **settings}
    if numbers["n_epochs"] != "auto":
        asked["epochs"] = numbers["n_epochs"]
    if numbers["batch_size"] != "auto":
        asked["batch_size"] = numbers["batch_size"]
    return {
        "adapter": job.adapter_name,
        "summary": f"Fine-tuning job {job.id}.",
        "base_model": job.model,
        "stage": "custom",
        "objective": "sft",
        "rank": RANK,
        "gate_profile": gate,
        "hyperparameters": asked,
        "datasets": [
            {
                "dataset": dataset["name"],
                "sha256": base64.b64decode(dataset["sha256"]).hex(),
                "bytes": int(dataset["bytes"]),
                "use": "train",
            }
        ],
    }


def _gate_of(job: Job) -> str:
    return "embedded" if job.model == EMBEDDED else "standard"


def _problems(checked: Json) -> str:
    problems = checked.get("report", {}).get("problems") or ()
    said = [f"row {each.get('row', 0)}: {each.get('message', '')}" for each in problems[:5]]
    return "; ".join(said) or "the file holds nothing that can be trained on"


def _progress_events(job: Job, progress: Json) -> list[Event]:
    step = int(progress.get("step", 0))
    if step <= int(job.notes.get("last_step", 0)):
        return []
    data: Json = {"step": step, "total_steps": int(progress.get("total_steps", 0))}
    for name, field in (("train_loss", "loss"), ("valid_loss", "validation_loss")):
        if field in progress:
            data[name] = float(progress[field])
    loss = f": training loss={data['train_loss']:.3f}" if "train_loss" in data else ""
    return [Event(f"Step {step}/{data['total_steps']}{loss}", data=data)]
