"""One of several workers that train together, joined by gloo over a file."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path


def main(root: Path, rank: int, size: int, parallelism: str, steps: int, stop_after: int) -> None:
    import torch
    import torch.distributed

    from kala.errors import CancelledError
    from services.trainer.training.recipe import DatasetFolder, Recipe, Stage
    from services.trainer.training.run import run_work
    from services.trainer.training.world import World
    from services.trainer.work.events import EventWriter
    from tests.fakes.training_jobs import work

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=size
    )
    recipe = Recipe(
        max_steps=steps,
        batch_size=4,
        micro_batch_size=1,
        max_sequence_tokens=64,
        learning_rate=3e-3,
        validation_steps=3,
    )
    job = work(root, recipe=recipe, parallelism=parallelism.removesuffix("-lora"))
    if parallelism == "ddp":
        pairs = Stage(
            Recipe(objective="dpo", max_steps=2, batch_size=4, micro_batch_size=1, max_sequence_tokens=64),
            (DatasetFolder("preferences", root / "pairs"),),
        )
        job = replace(job, stages=(*job.stages, pairs))
    if parallelism == "fsdp":
        job = replace(job, lora=None)
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == stop_after

    with suppress(CancelledError):
        result = run_work(
            job, EventWriter(job.folder), world=World(rank, size, "cpu"), should_stop=should_stop
        )
        (root / f"result-{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()
