"""Small training jobs on the shipped embedded model: a dataset, a cleared order and a way to run it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from kala.common.v1.adapter_pb2 import DATASET_USE_TRAIN
from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.reference_pb2 import ContentReference
from kala.trainer.v1 import job_pb2, trainer_pb2
from services.common.file_set import file_set_digest
from services.trainer.datasets.manifest import write_manifest
from services.trainer.registry.bases import base_files
from services.trainer.training.recipe import DatasetFolder, Lora, Recipe, Stage, Work
from services.trainer.work.order import TRAIN, BasePlace, DatasetPlace, Order, write_order
from tests.fakes.clearances import FakeEthics

EMBEDDED = Path(__file__).parents[2] / "services/inference/embedded/model"
ALL_TARGETS = ("query_key_value", "dense", "embed_in", "embed_out")
AUDIENCE = "/kala.trainer.v1.TrainerService/CreateTrainingJob"


def larger(seed: int) -> dict[str, Any]:
    numbers = random.Random(seed)
    a, b = numbers.randint(0, 99), numbers.randint(0, 99)
    question = {"role": "user", "content": f"Which is larger: {a} or {b}?"}
    return {"messages": [question, {"role": "assistant", "content": f"{max(a, b)}."}]}


def preference(seed: int) -> dict[str, Any]:
    question, answer = larger(seed)["messages"]
    return {"prompt": question["content"], "chosen": answer["content"], "rejected": "I do not know."}


def claim(seed: int) -> dict[str, Any]:
    numbers = random.Random(seed)
    a, b = numbers.randint(0, 99), numbers.randint(0, 99)
    return {"text": f"{a} is larger than {b}.", "label": "supported" if a > b else "refuted"}


def write_dataset(directory: Path, make=larger, *, rows: int = 60, validation: int = 8) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(make(number)) + "\n" for number in range(rows + validation)]
    (directory / "train.jsonl").write_text("".join(lines[:rows]))
    (directory / "validation.jsonl").write_text("".join(lines[rows:]))
    (directory / "CARD.md").write_text("# A few rows\n")
    write_manifest(directory, "datasets/larger@1", {}, {"train_rows": rows}, "")
    return directory


def manifest_digest(directory: Path) -> bytes:
    return hashlib.sha256((directory / "manifest.json").read_bytes()).digest()


def work(root: Path, *, recipe: Recipe | None = None, make=larger, **changes: Any) -> Work:
    """Work in `root/job` on data in `root/data`, which is made when it is not there."""
    data = root / "data"
    if not data.is_dir():
        write_dataset(data, make)
    folder = root / "job"
    folder.mkdir(exist_ok=True)
    recipe = recipe or Recipe(
        max_steps=6, batch_size=4, micro_batch_size=2, max_sequence_tokens=64, learning_rate=3e-3
    )
    stage = Stage(recipe, (DatasetFolder("datasets/larger@1", data),))
    given: dict[str, Any] = {
        "folder": folder, "base": EMBEDDED, "base_name": "kala-embedded", "stages": (stage,),
        "lora": Lora(4, 8, 0.05, ALL_TARGETS), "checkpoint_steps": 2, "seed": 3,
    }  # fmt: skip
    return Work(**given | changes)


@dataclass
class Told:
    """Keeps what a run tells."""

    messages: list[Message] = field(default_factory=list)

    def write(self, message: Message, *, force: bool = False) -> None:
        self.messages.append(message)

    def of(self, kind: type[Message]) -> list[Any]:
        return [message for message in self.messages if isinstance(message, kind)]


def spec(**changes: Any) -> job_pb2.TrainingSpec:
    given: dict[str, Any] = {
        "adapter": "adapters/larger",
        "base": ContentReference(name="kala-embedded", sha256=bytes(32), bytes=1),
        "method": job_pb2.TRAINING_METHOD_LORA,
        "objective": job_pb2.TRAINING_OBJECTIVE_SFT,
        "lora": job_pb2.LoraSpec(rank=4, alpha=8, dropout=0.05, target_modules=ALL_TARGETS),
        "hyperparameters": job_pb2.Hyperparameters(
            learning_rate=3e-3, max_steps=6, batch_size=4, max_sequence_tokens=64, checkpoint_steps=2, packing=True
        ),
    }  # fmt: skip
    return job_pb2.TrainingSpec(**given | changes)


def order(root: Path, wanted: job_pb2.TrainingSpec | None = None) -> Path:
    """Write a cleared order into `root/job` and give the folder."""
    data = root / "data"
    if not data.is_dir():
        write_dataset(data)
    ethics = FakeEthics()
    cleared = job_pb2.TrainingSpec()
    cleared.CopyFrom(wanted or spec())
    cleared.base.sha256 = file_set_digest(base_files(EMBEDDED))
    share = cleared.datasets.add(use=DATASET_USE_TRAIN, weight=1.0)
    share.dataset.name, share.dataset.sha256 = "datasets/larger@1", manifest_digest(data)
    sealed = ethics.seal(trainer_pb2.CreateTrainingJobAction(spec=cleared), audience=AUDIENCE)
    made = Order(
        kind=TRAIN,
        name="trainingJobs/" + "1" * 32,
        folder=root / "job",
        principal=Principal(),
        deadline=time.time() + 600,
        base=BasePlace("kala-embedded", EMBEDDED, file_set_digest(base_files(EMBEDDED))),
        datasets=(DatasetPlace("datasets/larger@1", data, DATASET_USE_TRAIN, 1.0, manifest_digest(data)),),
    )
    write_order(made, sealed=sealed, audience=AUDIENCE, public_keys=[ethics.public_key_file(root)])
    return made.folder


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Begin the work of a folder in a process of its own, as the service does."""
    return subprocess.Popen(
        [sys.executable, "-m", "services.trainer.work", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
