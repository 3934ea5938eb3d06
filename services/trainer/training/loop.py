"""The loop: steps until the work is done, checkpoints on the way, and the same bytes in the end however often it is cut.

Randomness is drawn anew for every step from seed, step and worker, so a position is all that has to be kept.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from google.protobuf.message import Message

from kala.errors import CancelledError, DeadlineExceededError, FailedPreconditionError
from kala.trainer.v1 import job_pb2
from services.trainer.training import models, state
from services.trainer.training.batches import collate
from services.trainer.training.checkpoints import Checkpoint, Checkpoints
from services.trainer.training.encoding import Counts, Encoded, Encoder, Item, Pair
from services.trainer.training.failures import cured
from services.trainer.training.objectives import make_objective
from services.trainer.training.progress import Pace, peak_memory_bytes, remaining
from services.trainer.training.recipe import Work
from services.trainer.training.references import References
from services.trainer.training.stages import ReadyStage, make_ready, weight_of_all
from services.trainer.training.world import World, without_meeting, wrap

if TYPE_CHECKING:
    import torch

# Unknown to every stub: torch's modules and optimisers are used through a handful of calls.
Untyped = Any

BETAS: Final = (0.9, 0.999)


class Events(Protocol):
    """Where progress, checkpoints and incidents are told; see services.trainer.work.events."""

    def write(self, message: Message, *, force: bool = False) -> None: ...


class Metrics(Protocol):
    """Where the numbers of each step go; see services.trainer.training.trackers."""

    def log(self, step: int, values: dict[str, float]) -> None: ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a run tells, and asks."""

    events: Events
    metrics: Metrics | None = None
    should_stop: Callable[[], bool] = lambda: False
    """Whether to end after this step, with a checkpoint."""
    clock: Callable[[], float] = time.time
    on_resume: Callable[[int], None] = lambda _: None
    """Told, before the first step, the step that the run goes on from; 0 where it begins. Only the worker that leads tells."""
    on_checkpoint: Callable[[Checkpoint], None] = lambda _: None
    """Told each checkpoint that is on disk."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that came to its end; the trained model is still in memory."""

    position: state.Position
    loaded: models.Loaded
    template: str
    counts: dict[str, Counts]
    device: str


class Trainer:
    """One run of some work in this worker; `run` may be called once."""

    def __init__(self, work: Work, hooks: Hooks, world: World | None = None) -> None:
        self._work = work
        self._hooks = hooks
        self._world = world or World()
        self._checkpoints = Checkpoints(work.folder, kept=work.checkpoints_kept)
        self._position = state.Position(state.fingerprint(work))
        self._saved_step = 0
        self._pace = Pace()

    def run(self) -> Outcome:
        """Train to the end; raises KalaError with a reason and a cure, after whatever could be saved was saved."""
        with cured(self._work):
            return self._run()

    def _run(self) -> Outcome:
        self._tell(job_pb2.JOB_STATE_STARTING, force=True)
        self._device = self._world.torch_device()
        loaded = self._loaded = models.load(self._work, self._device)
        stages, encoder, counts = self._make_ready(loaded)
        self._total = sum(stage.steps for stage in stages)
        checkpoint = self._resume()
        if self._world.leads:
            self._hooks.on_resume(self._position.step)
        self._plain: Untyped = make_objective(self._work.stages[0].recipe.objective, loaded.model)
        # Once for all stages: a model that was wrapped twice would let its gradients meet twice.
        self._objective: Untyped = wrap(
            self._plain, self._world, parallelism=self._work.parallelism, precision=loaded.precision
        )
        # Whoever asked while all this was read need not wait for a step.
        self._leave_if_asked()
        self._tell(job_pb2.JOB_STATE_TRAINING, force=True)
        # Reading the base is no part of any step.
        self._pace = Pace()
        for number, stage in enumerate(stages):
            if number >= self._position.stage:
                # Each stage begins with a fresh optimiser; only the one that was cut goes on with its old one.
                self._train(number, stage, checkpoint if number == self._position.stage else None)
                checkpoint = None
        return Outcome(self._position, loaded, encoder.template, counts, str(self._device))

    def _make_ready(self, loaded: models.Loaded) -> tuple[list[ReadyStage], Encoder, dict[str, Counts]]:
        stages: list[ReadyStage] = []
        counts: dict[str, Counts] = {}
        encoder: Encoder | None = None
        for number, stage in enumerate(self._work.stages):
            recipe = stage.recipe
            self._world.require_batch(recipe.batch_size, parallelism=self._work.parallelism)
            max_tokens = min(recipe.max_sequence_tokens or loaded.context_tokens, loaded.context_tokens)
            encoder = Encoder(loaded.tokenizer, max_tokens=max_tokens, labels=recipe.labels)
            ready = make_ready(stage, encoder, max_tokens=max_tokens, seed=self._work.seed + number)
            stages.append(ready)
            counts |= ready.counts
        if encoder is None:
            raise FailedPreconditionError("stages: there is none")
        return stages, encoder, counts

    def _resume(self) -> Checkpoint | None:
        """Take up the newest checkpoint that holds and is this work's; the other workers take the one that leads found."""
        if self._world.leads:
            self._checkpoints.tidy()
        checkpoint = self._agreed(self._checkpoints.latest(self._on_damage) if self._world.leads else None)
        if checkpoint is None:
            return None
        found = state.read_position(checkpoint)
        if found.fingerprint != self._position.fingerprint:
            raise FailedPreconditionError(
                f"{checkpoint.directory.name} is of another job; begin in an empty folder",
                reason="FOREIGN_CHECKPOINT",
            )
        state.restore_weights(checkpoint, self._loaded.model)
        found.resumes += 1
        self._position, self._saved_step = found, checkpoint.step
        return checkpoint

    def _agreed(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        import torch

        step = torch.tensor([checkpoint.step if checkpoint else 0], device=self._device)
        agreed = int(self._world.sum(step).item())
        if not agreed:
            return None
        return checkpoint or self._checkpoints.find(agreed)

    def _on_damage(self, step: int, problem: str) -> None:
        self._incident("CHECKPOINT_DAMAGED", f"step {step}: {problem}; an older one is used")

    def _train(self, number: int, stage: ReadyStage, checkpoint: Checkpoint | None) -> None:
        import torch

        recipe, position, model = stage.recipe, self._position, self._loaded.model
        self._plain.pursue(recipe.objective, recipe.dpo_beta)
        self._optimizer: Untyped = torch.optim.AdamW(
            _groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=BETAS
        )
        if checkpoint is not None:
            state.restore_optimizer(checkpoint, model, self._optimizer)
        if checkpoint is None:
            position.stage, position.stage_step = number, 0
        saved = state.restore_reference(checkpoint) if checkpoint is not None else None
        self._references = References(stage, saved) if recipe.objective == "dpo" else None
        if self._references:
            self._references.compute(
                stage, self._objective, self._world, padding=self._padding(), arithmetic=self.arithmetic
            )
        while position.stage_step < stage.steps:
            self._step(stage)
            is_last = position.step == self._total
            if recipe.validation_steps and (
                position.stage_step % recipe.validation_steps == 0 or position.stage_step == stage.steps
            ):
                self._validate(stage)
            self._leave_if_asked()
            if position.step % self._work.checkpoint_steps == 0 or is_last:
                self._save()

    def _step(self, stage: ReadyStage) -> None:
        import torch

        recipe, position = stage.recipe, self._position
        began = time.monotonic()
        sequences = stage.rows(position.stage_step * recipe.batch_size, recipe.batch_size)
        weight = weight_of_all(sequences)
        rate = stage.learning_rate(position.stage_step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_drawn_from(self._work.seed, position.step, self._world.rank))
        self._loaded.model.train()
        total = self._passes(stage, sequences, weight)
        norm = self._gradient_norm(recipe.max_gradient_norm)
        loss = float(self._world.sum(total).item()) / weight
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise FailedPreconditionError(
                f"the loss was no number at step {position.step + 1}; lower hyperparameters.learning_rate "
                f"(it was {rate:g}), clip with max_gradient_norm, or use PRECISION_FP32. "
                f"The last checkpoint is of step {self._saved_step}",
                reason="NAN_LOSS",
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        position.step += 1
        position.stage_step += 1
        position.loss = loss
        tokens = _tokens(sequences)
        position.tokens += tokens
        position.seconds += time.monotonic() - began
        self._pace.step(tokens)
        self._report(stage, rate, norm)

    def _passes(self, stage: ReadyStage, sequences: list[Any], weight: int) -> torch.Tensor:
        """Forward and backward over this worker's part; gives the sum of its losses."""
        import torch

        size = stage.recipe.micro_batch_size
        mine = list(self._world.share(sequences))
        total = torch.zeros((), device=self._device)
        for first in range(0, len(mine), size):
            part = mine[first : first + size]
            batch = collate(part, padding=self._padding()).to(self._device)
            reference = self._references.of(part, self._device) if self._references else None
            with without_meeting(self._objective, until_last=first + size < len(mine)):
                with self.arithmetic():
                    loss = self._objective(batch, reference)
                # Workers' gradients are averaged, and the loss is a mean over all of them.
                (loss * (self._world.size / weight)).backward()
            total += loss.detach()
        return total

    def arithmetic(self) -> Any:
        """Give the context of a forward pass: bf16 where that is the precision."""
        import torch

        return torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=self._loaded.precision == "bf16"
        )

    def _padding(self) -> int:
        return int(self._loaded.tokenizer.pad_token_id)

    def _gradient_norm(self, most: float) -> float:
        import torch

        parameters = [value for value in self._loaded.model.parameters() if value.requires_grad]
        norm: Untyped = torch.nn.utils.clip_grad_norm_(parameters, most or math.inf)
        return float((norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item())

    def _validate(self, stage: ReadyStage) -> None:
        """Mean loss over rows that are kept apart; every worker computes its part of them."""
        import torch

        if len(stage.validation) < self._world.size:
            return
        size, model = stage.recipe.micro_batch_size, self._loaded.model
        model.eval()
        total = torch.zeros((), device=self._device)
        # As many for each worker: a model in parts is gathered by all of them.
        usable = len(stage.validation) // self._world.size * self._world.size
        rows = [[item] for item in stage.validation[:usable]]
        mine = list(self._world.share(rows))
        with torch.no_grad():
            for first in range(0, len(mine), size):
                part = mine[first : first + size]
                batch = collate(part, padding=self._padding()).to(self._device)
                reference = self._references.of(part, self._device) if self._references else None
                with self.arithmetic():
                    total += self._objective(batch, reference)
        loss = float(self._world.sum(total).item()) / weight_of_all(rows)
        self._position.validation_loss = loss
        if self._world.leads and self._hooks.metrics:
            self._hooks.metrics.log(self._position.step, {"validation_loss": loss})

    def _leave_if_asked(self) -> None:
        """End with a checkpoint when it was asked for or time is over; all workers agree on it."""
        import torch

        late = bool(self._work.deadline) and self._hooks.clock() > self._work.deadline
        wishes = torch.tensor([float(self._hooks.should_stop()), float(late)], device=self._device)
        stopped, is_late = (value > 0 for value in self._world.sum(wishes).tolist())
        if not stopped and not is_late:
            return
        self._save()
        if is_late:
            raise DeadlineExceededError(
                f"the job's deadline was over at step {self._position.step} of {self._total}; "
                "ask for a later deadline or fewer steps"
            )
        raise CancelledError(f"ended as asked at step {self._position.step}", reason="STOPPED")

    def _save(self) -> None:
        if self._saved_step == self._position.step:
            return
        reference = self._references.likelihoods if self._references else None
        files = state.files_of(self._position, self._loaded.model, self._optimizer, reference)
        if self._world.leads:
            checkpoint = self._checkpoints.save(self._position.step, files)
            self._hooks.events.write(
                job_pb2.CheckpointEvent(
                    step=checkpoint.step, sha256=checkpoint.sha256, bytes=checkpoint.bytes
                )
            )
            self._hooks.on_checkpoint(checkpoint)
        self._saved_step = self._position.step
        self._world.wait()

    def _report(self, stage: ReadyStage, rate: float, norm: float) -> None:
        if not self._world.leads:
            return
        position, total = self._position, self._total
        speed = self._pace.tokens_per_second()
        if self._hooks.metrics:
            values = {"loss": position.loss or 0.0, "learning_rate": rate, "gradient_norm": norm}
            self._hooks.metrics.log(position.step, values | {"tokens_per_second": speed})
        progress = job_pb2.TrainingProgress(
            state=job_pb2.JOB_STATE_TRAINING,
            epoch=stage.layout.passes(position.stage_step * stage.recipe.batch_size),
            learning_rate=rate,
            gradient_norm=norm,
            tokens_per_second=speed,
            remaining=remaining(self._pace.seconds_per_step(), total - position.step),
        )
        self._fill(progress)
        self._hooks.events.write(progress, force=position.step in {1, total})

    def _tell(self, where: job_pb2.JobState.ValueType, *, force: bool = False) -> None:
        if self._world.leads:
            progress = job_pb2.TrainingProgress(state=where)
            self._fill(progress)
            self._hooks.events.write(progress, force=force)

    def _fill(self, progress: job_pb2.TrainingProgress) -> None:
        position = self._position
        progress.step, progress.total_steps = position.step, getattr(self, "_total", 0)
        progress.tokens, progress.workers = position.tokens, self._world.size
        progress.checkpoint_step, progress.resumes = self._saved_step, position.resumes
        progress.peak_memory_bytes = peak_memory_bytes()
        if position.loss is not None:
            progress.loss = position.loss
        if position.validation_loss is not None:
            progress.validation_loss = position.validation_loss

    def _incident(self, kind: str, message: str) -> None:
        self._hooks.events.write(job_pb2.IncidentEvent(kind=kind, message=message))


def _groups(model: Untyped, weight_decay: float) -> list[dict[str, Any]]:  # what torch's optimisers take
    """Matrices decay; biases, norms and LoRA's single rows do not."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    return [
        {"params": [value for value in parameters if value.dim() > 1], "weight_decay": weight_decay},
        {"params": [value for value in parameters if value.dim() <= 1], "weight_decay": 0.0},
    ]


def _drawn_from(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each step of each worker."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _tokens(sequences: list[Any]) -> int:
    """Tokens that bear loss; a classifier's rows count as one each."""
    halves = (half for row in sequences for item in row for half in _halves(item))
    return sum(half.weight or 1 for half in halves)


def _halves(item: Item) -> tuple[Encoded, ...]:
    return (item.chosen, item.rejected) if isinstance(item, Pair) else (item,)
