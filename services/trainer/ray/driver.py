"""The driver of a training job on Ray: starts the workers, and starts them again when one is lost."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any, Final

from kala.trainer.v1 import job_pb2, trainer_pb2
from services.trainer.ray.worker import NOTE, train_worker
from services.trainer.work.order import Order

STORAGE: Final = "ray"
"""Folder of Ray's own notes; our checkpoints are not among them."""

MAX_LOSSES: Final = 10
"""Times that workers are started again in one run of the driver; the service starts the driver again besides."""

START_SECONDS: Final = 300
"""For the processes of all workers: a busy machine takes a minute to import torch."""

GLOO_SECONDS: Final = 600


def drive(order: Order) -> None:
    """Run the order's workers to their end; what they came to is in the folder. Raises what Ray raises."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    placement = order.parse(trainer_pb2.CreateTrainingJobAction).spec.placement
    storage = order.folder / STORAGE
    shutil.rmtree(storage, ignore_errors=True)
    storage.mkdir(mode=0o700)
    (order.folder / NOTE).unlink(missing_ok=True)
    ray.init(address="auto", log_to_driver=True)
    try:
        trainer: Any = TorchTrainer(  # Any: Ray's classes are typed in part
            train_worker,
            train_loop_config={"folder": str(order.folder), "threads": _threads(placement)},
            torch_config=TorchConfig(
                backend="nccl" if placement.gpus_per_worker else "gloo", timeout_s=GLOO_SECONDS
            ),
            scaling_config=ScalingConfig(**_scaling(placement)),
            run_config=RunConfig(
                # A name of its own for each run: Ray would go on from its own notes, which may be behind ours.
                name=secrets.token_hex(8),
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=MAX_LOSSES),
            ),
        )
        trainer.fit()
    finally:
        ray.shutdown()
        _remove(storage)


def _scaling(placement: job_pb2.Placement) -> dict[str, Any]:  # Any: arguments of several kinds
    workers = max(placement.workers, 1)
    least = placement.min_workers or workers
    resources = {"CPU": placement.cpus_per_worker or 1.0}
    if placement.gpus_per_worker:
        resources["GPU"] = placement.gpus_per_worker
    return {
        "num_workers": workers if least == workers else (least, workers),
        "use_gpu": placement.gpus_per_worker > 0,
        "resources_per_worker": resources,
    }


def _threads(placement: job_pb2.Placement) -> int:
    return max(1, int(placement.cpus_per_worker or 1))


def _remove(storage: Path) -> None:
    shutil.rmtree(storage, ignore_errors=True)
