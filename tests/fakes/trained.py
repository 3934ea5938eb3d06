"""What a training job leaves, small and without torch: a base, an adapter's folder, a dataset, and the order's facts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1 import adapter_pb2 as pb
from kala.common.v1.gate_pb2 import GATE_OUTCOME_PASSED, GateEvidence, GateResult
from kala.trainer.v1 import dataset_pb2, job_pb2, registry_pb2, trainer_pb2
from services.common.adapter_weights import CONFIG_FILE, WEIGHTS_FILE
from services.common.file_set import file_set_digest
from services.trainer.registry.bases import base_files, describe_base
from services.trainer.registry.describe import Training, datasets_used
from tests.fakes.adapters import (
    CONSTITUTION,
    EVALUATION,
    RANK,
    AdapterWorld,
    peft_config,
    reference,
    safetensors,
    tensors,
)

STARTED, FINISHED = Timestamp(seconds=1_700_000_000), Timestamp(seconds=1_700_000_600)
RESULT: dict[str, Any] = {
    "steps": 120, "tokens": 9_000, "resumes": 1, "software": ["torch 2.13.0"], "hardware": "cpu",
    "metrics": {"train_loss": 0.25},
}  # fmt: skip


@dataclass
class TrainedWorld:
    """A finished training below `root`, in tests' own handwriting; change a piece before `trained` is asked."""

    root: Path
    tenant: str = "default"
    owner: str = "key-1"
    stem: str = "adapters/new-task"
    targets: tuple[str, ...] = ("embed_in", "query_key_value")
    parents: tuple[registry_pb2.Adapter, ...] = ()
    result: dict[str, Any] = field(default_factory=lambda: dict(RESULT))
    files: dict[str, bytes] = field(
        default_factory=lambda: {
            WEIGHTS_FILE: safetensors(tensors()),
            CONFIG_FILE: peft_config(),
            "README.md": b"# A card\n",
        }
    )
    ancestors: tuple[pb.Ancestor, ...] = ()

    @property
    def base(self) -> Path:
        """The base's directory."""
        directory = self.root / "base"
        if not directory.exists():
            directory.mkdir(parents=True)
            config = {"model_type": "gpt_neox", "max_position_embeddings": 256}
            (directory / "config.json").write_text(json.dumps(config))
            (directory / "model.safetensors").write_bytes(safetensors({"gpt_neox.embed_in.weight": [8, 4]}))
            (directory / "manifest.json").write_text("{}")
        return directory

    @property
    def base_digest(self) -> bytes:
        """The base's digest."""
        return file_set_digest(base_files(self.base))

    @property
    def adapter(self) -> Path:
        """The folder that training left, written anew."""
        folder = self.root / "adapter"
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder

    @property
    def dataset(self) -> dataset_pb2.Dataset:
        """The dataset that was trained on."""
        files = [reference("manifest.json", b"{}"), reference("train.jsonl", b"{}\n")]
        return dataset_pb2.Dataset(
            name="datasets/tasks@1",
            tenant=self.tenant,
            owner=self.owner,
            files=files,
            digest=file_set_digest(files),
            reference=reference("datasets/tasks@1", b"{}"),
            report=dataset_pb2.DatasetReport(
                train_rows=100,
                validation_rows=10,
                sources=[dataset_pb2.SourceCount(source="tasks", licence="CC0-1.0")],
            ),
        )

    @property
    def spec(self) -> job_pb2.TrainingSpec:
        """What was asked."""
        return job_pb2.TrainingSpec(
            adapter=self.stem,
            objective=job_pb2.TRAINING_OBJECTIVE_SFT,
            stage=pb.ADAPTER_STAGE_CUSTOM,
            lora=job_pb2.LoraSpec(rank=RANK, alpha=4, target_modules=self.targets),
            datasets=[
                job_pb2.DatasetShare(dataset=self.dataset.reference, use=pb.DATASET_USE_TRAIN),
                job_pb2.DatasetShare(dataset=self.dataset.reference, use=pb.DATASET_USE_REPLAY, weight=3),
                job_pb2.DatasetShare(dataset=self.dataset.reference, use=pb.DATASET_USE_VALIDATION),
            ],
            parents=[parent.reference for parent in self.parents],
            summary="Names the law that a request would break.",
        )

    @property
    def trained(self) -> Training:
        """The finished training."""
        spec = self.spec
        action = trainer_pb2.CreateTrainingJobAction(request_id="r" * 16, spec=spec)
        root_digest = self.ancestors[0].base_digest if self.ancestors else b""
        return Training(
            job="trainingJobs/" + "1" * 32,
            tenant=self.tenant,
            owner=self.owner,
            action=action.SerializeToString(deterministic=True),
            decision_id="2" * 32,
            constitution_digest=CONSTITUTION,
            intent_receipt="rcpt_" + "3" * 32,
            base=describe_base(
                self.base,
                "tiny",
                expected_digest=self.base_digest,
                quantization=pb.QUANTIZATION_UNSPECIFIED,
                root_digest=root_digest,
            ),
            datasets=datasets_used([(self.dataset, share) for share in spec.datasets]),
            started_at=STARTED,
            finished_at=FINISHED,
            result=self.result,
            ancestors=self.ancestors,
        )


def gate_of(world: AdapterWorld, adapter: registry_pb2.Adapter) -> GateEvidence:
    """A passed gate of this adapter, as `world` would have measured it."""
    world.digest = adapter.adapter_digest
    world.base_digest = adapter.description.base.digest
    return world.evidence()


def evaluation_of(evidence: GateEvidence, adapter: registry_pb2.Adapter) -> registry_pb2.Evaluation:
    """The evaluation that a gate came from."""
    return registry_pb2.Evaluation(
        name=EVALUATION,
        adapter=adapter.name,
        profile="test",
        outcome=GATE_OUTCOME_PASSED,
        evidence=evidence,
        result=GateResult.FromString(evidence.result),
    )


def evaluation_reference(evaluation: registry_pb2.Evaluation):
    """How PromoteAdapterAction names it."""
    return reference(evaluation.name, evaluation.evidence.result)


def digest_of(data: bytes) -> bytes:
    """SHA-256."""
    return sha256(data).digest()
