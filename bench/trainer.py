"""What training costs: our loop beside a bare torch loop, two Ray workers beside one, and what a kill loses.

`python -m bench.trainer` prints Markdown; `--no-ray` leaves the cluster out. All on the embedded model, on CPUs.
Load decides what the scaling comes to: it is reported beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from kala.common.v1.adapter_pb2 import LoraTarget
from kala.trainer.v1 import job_pb2
from services.trainer.executors.model import Task
from services.trainer.executors.ray import RayExecutor
from services.trainer.planning.shapes import read_shape
from services.trainer.planning.targets import find_targets, trained_parameters
from services.trainer.training.recipe import Lora, Recipe, Work
from services.trainer.work.events import EventReader
from tests.fakes.training_jobs import ALL_TARGETS, EMBEDDED, order, spec, start, work, write_dataset

STEPS: Final = 40
WARM_UP: Final = 5
BATCH: Final = 16
TOKENS: Final = 128
KILLS: Final = 20
RAY_STEPS: Final = 150
RAY_BATCH: Final = 32

# Unknown to every stub: torch and transformers are used through a handful of calls.
Untyped = Any


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians of the rounds."""

    loop: float
    """Tokens per CPU-second of the job's own loop, as the others."""
    bare: float
    """The same model, rows and loss in a loop of forward, backward and step, with batches laid out before."""
    plain: float
    """As a person writes it: all logits, cross entropy with ignored places."""
    adapter_share: float
    """Bytes of the weights file over 4 r (in + out)."""
    kills: int
    lost: int
    """Checkpoints that were told and not found after a kill."""
    is_equal: bool
    """Whether a run that was killed so often ends with the bytes of one that was not."""
    one_worker: float = 0.0
    """Tokens with loss per second, on Ray."""
    two_workers: float = 0.0
    load: float = 0.0

    @property
    def share(self) -> float:
        """How much of the bare loop's speed the job's loop has; the goal is 0.95."""
        return self.loop / self.bare

    @property
    def scaling(self) -> float:
        """Two workers over one; the goal is 1.6 on two idle cores."""
        return self.two_workers / self.one_worker if self.one_worker else 0.0


class Clock:
    """Takes the CPU time at the steps between which a loop is measured."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def log(self, step: int, values: dict[str, float]) -> None:  # noqa: ARG002 - a tracker's
        """Called by the loop after each step."""
        self.at[step] = time.process_time()

    @property
    def seconds(self) -> float:
        """CPU time between the warm-up and the last step."""
        return self.at[STEPS] - self.at[WARM_UP]


class Silent:
    """Takes events."""

    def write(self, message: object, *, force: bool = False) -> None:
        """Drop it."""


def speed_work(folder: Path) -> Work:
    """A run of packed sequences, one thread."""
    recipe = Recipe(
        max_steps=STEPS,
        batch_size=BATCH,
        micro_batch_size=BATCH,
        max_sequence_tokens=TOKENS,
        learning_rate=1e-3,
    )
    write_dataset(folder / "data", rows=600)
    made = work(folder, recipe=recipe, checkpoint_steps=10 * STEPS)
    return replace(made, lora=Lora(16, 32, 0.05, ALL_TARGETS))


def prepared(made: Work) -> tuple[Untyped, list[Untyped]]:
    """The model, and the batches of every step."""
    import torch

    from services.trainer.training import models
    from services.trainer.training.batches import collate
    from services.trainer.training.encoding import Encoder
    from services.trainer.training.stages import make_ready

    loaded = models.load(made, torch.device("cpu"))
    encoder = Encoder(loaded.tokenizer, max_tokens=TOKENS, labels=())
    ready = make_ready(made.stages[0], encoder, max_tokens=TOKENS, seed=made.seed)
    padding = int(loaded.tokenizer.pad_token_id)
    rows = [ready.rows(step * BATCH, BATCH) for step in range(STEPS)]
    return loaded.model, [collate(each, padding=padding) for each in rows]


def run_loop(made: Work) -> float:
    """CPU-seconds of the job's own loop."""
    from services.trainer.training.loop import Hooks, Trainer

    shutil.rmtree(made.folder / "checkpoints", ignore_errors=True)
    clock = Clock()
    Trainer(made, Hooks(events=Silent(), metrics=clock)).run()
    return clock.seconds


def run_bare(made: Work, *, is_plain: bool) -> float:
    """CPU-seconds of a loop by hand."""
    import torch

    from services.trainer.training.objectives import make_objective

    model, batches = prepared(made)
    model.train()
    objective = make_objective("sft", model, beta=0.1)
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    clock = Clock()
    for step, batch in enumerate(batches, start=1):
        loss = plain_loss(model, batch) if is_plain else objective(batch) / batch.weight
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.log(step, {})
    return clock.seconds


def plain_loss(model: Untyped, batch: Untyped) -> Untyped:
    """Mean cross entropy over all places, most of which are ignored."""
    import torch
    from torch.nn import functional

    logits = model(input_ids=batch.ids, attention_mask=batch.sees, position_ids=batch.positions).logits
    labels = torch.full((batch.ids.numel(),), -100)
    labels[batch.predicts] = batch.targets
    return functional.cross_entropy(logits.flatten(0, 1).float(), labels)


def measure_speed(folder: Path, rounds: int) -> tuple[float, float, float]:
    """Tokens per CPU-second of the three, in turn."""
    import torch

    torch.set_num_threads(1)
    made = speed_work(folder)
    tokens = sum(batch.ids.numel() for batch in prepared(made)[1][WARM_UP:])
    arms: dict[str, Callable[[], float]] = {
        "loop": lambda: run_loop(made),
        "bare": lambda: run_bare(made, is_plain=False),
        "plain": lambda: run_bare(made, is_plain=True),
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        # Each is first as often as the others.
        names = list(arms)[number % 3 :] + list(arms)[: number % 3]
        for name in names:
            found[name].append(tokens / arms[name]())
    loop, bare, plain = (statistics.median(found[name]) for name in arms)
    return loop, bare, plain


def adapter_share(folder: Path) -> float:
    """The weights file over the bytes of its matrices; the goal is 1.02."""
    targets: Sequence[LoraTarget] = find_targets(read_shape(EMBEDDED / "config.json"), ALL_TARGETS)
    path = folder / "adapter" / "adapter_model.safetensors"
    return path.stat().st_size / (4 * trained_parameters(targets, 16))


def measure_kills(folder: Path, kills: int) -> tuple[int, bool, float]:
    """Checkpoints lost over that many kills at random moments, whether the bytes are equal, and the adapter's size."""
    wanted = spec(lora=job_pb2.LoraSpec(rank=16, alpha=32, dropout=0.05, target_modules=ALL_TARGETS))
    wanted.hyperparameters.max_steps, wanted.hyperparameters.checkpoint_steps = 400, 5
    (folder / "whole").mkdir()
    (folder / "cut").mkdir()
    whole, cut = order(folder / "whole", wanted), order(folder / "cut", wanted)
    finish(whole)
    moments, lost = random.Random(1), 0
    for _ in range(kills):
        process = start(cut)
        # Somewhere between the start of Python and some dozens of steps.
        wait_for_more(cut, process)
        time.sleep(moments.uniform(0, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        told = [each.message.step for each in checkpoints(cut)]
        there = [int(path.name.removeprefix("step-")) for path in (cut / "checkpoints").glob("step-*")]
        lost += bool(told) and max(told) > max(there, default=0)
    finish(cut)
    return lost, digest(whole) == digest(cut), adapter_share(cut)


def finish(folder: Path) -> None:
    """Run the work to its end."""
    process = start(folder)
    output, _ = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(output.decode()[-2000:])


def wait_for_more(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the process has written a checkpoint, or has ended."""
    before, until = len(checkpoints(folder)), time.monotonic() + 120
    while len(checkpoints(folder)) == before and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


def checkpoints(folder: Path) -> list[Untyped]:
    """What was told of checkpoints."""
    events = EventReader(folder).read(limit=100_000)
    return [event for event in events if isinstance(event.message, job_pb2.CheckpointEvent)]


def digest(folder: Path) -> str:
    """Of the adapter's weights."""
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


async def measure_ray(folder: Path) -> tuple[float, float]:
    """Tokens with loss per second of one worker and of two, on a local Ray; the same batches for both."""
    rates = []
    async with RayExecutor(address=None, token_file=None).held() as executor:
        for workers in (1, 2):
            placement = job_pb2.Placement(executor=job_pb2.EXECUTOR_RAY, workers=workers, cpus_per_worker=1)
            wanted = spec(placement=placement)
            values = wanted.hyperparameters
            values.max_steps, values.batch_size, values.micro_batch_size = RAY_STEPS, RAY_BATCH, 16
            values.max_sequence_tokens, values.checkpoint_steps = TOKENS, 10 * RAY_STEPS
            root = folder / f"workers-{workers}"
            write_dataset(root / "data", rows=600)
            made = order(root, wanted)
            ended = await executor.run(Task(made, 1, placement), ignore)
            if ended.crashed:
                raise RuntimeError(ended.last_lines)
            rates.append(rate(made))
    return rates[0], rates[1]


async def ignore(_: str) -> None:
    """Nobody asks for the job's id."""


def rate(folder: Path) -> float:
    """Tokens with loss per second between the first second of steps and the last step."""
    events = EventReader(folder).read(limit=100_000)
    steps = [
        (event.at, event.message.tokens)
        for event in events
        if isinstance(event.message, job_pb2.TrainingProgress)
        and event.message.state == job_pb2.JOB_STATE_TRAINING
        and event.message.step
    ]
    first, last = steps[1], steps[-1]
    return (last[1] - first[1]) / (last[0] - first[0])


def measure(rounds: int = 3, *, kills: int = KILLS, with_ray: bool = True) -> Figures:
    """Everything."""
    folder = Path(tempfile.mkdtemp(prefix="kala-bench-trainer-"))
    try:
        speeds = folder / "speed"
        speeds.mkdir()
        loop, bare, plain = measure_speed(speeds, rounds)
        lost, is_equal, share = measure_kills(folder, kills)
        load = os.getloadavg()[0]
        one, two = asyncio.run(measure_ray(folder)) if with_ray else (0.0, 0.0)
        return Figures(loop, bare, plain, share, kills, lost, is_equal, one, two, load)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lines(figures: Figures) -> list[str]:
    """The report."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    shape = f"LoRA rank 16 on all four targets, batches of {BATCH} x {TOKENS}, fp32, one thread"
    found = [
        f"Machine: {machine}; embedded model, {shape}.",
        "",
        "| training | figure | goal |",
        "| --- | --- | --- |",
        f"| the job's loop, tokens per CPU-second | {figures.loop:,.0f} | |",
        f"| a bare loop with the same loss | {figures.bare:,.0f} | |",
        f"| a bare loop with all logits | {figures.plain:,.0f} | |",
        f"| job's loop / bare loop with the same loss | {figures.share:.3f} | >= 0.95 |",
        f"| adapter file / r (in + out) | {figures.adapter_share:.3f} | <= 1.02 |",
        f"| saved checkpoints lost over {figures.kills} SIGKILLs | {figures.lost} | 0 |",
        f"| killed run equals an uninterrupted one, bit for bit | {'yes' if figures.is_equal else 'NO'} | yes |",
    ]
    if figures.one_worker:
        found += [
            f"| Ray, one worker, tokens with loss per second | {figures.one_worker:,.0f} | |",
            f"| Ray, two workers | {figures.two_workers:,.0f} | |",
            f"| two workers / one (load before: {figures.load:.1f}) | {figures.scaling:.2f} | >= 1.6 idle |",
        ]
    return found


def document(figures: Figures) -> dict[str, Any]:  # Any: JSON
    """The same as JSON."""
    return {**asdict(figures), "share": figures.share, "scaling": figures.scaling}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.rounds, kills=options.kills, with_ray=not options.no_ray)
    print(json.dumps(document(figures), indent=1) if options.json else "\n".join(lines(figures)))


if __name__ == "__main__":
    main()
