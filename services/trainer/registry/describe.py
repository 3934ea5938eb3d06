"""Describes what training left: an AdapterDescription from an order, its result and the adapter's own files.

Of the result only figures for people are believed; shape, sizes and digests are read from the files themselves.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1.adapter_pb2 import (
    ADAPTER_TASK_CAUSAL_LM,
    ADAPTER_TASK_CLASSIFICATION,
    DATASET_USE_VALIDATION,
    AdapterDescription,
    AdapterTask,
    Ancestor,
    BaseModel,
    DatasetUse,
    DatasetUsed,
    TrainingRecord,
)
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, VerificationError
from kala.trainer.v1 import dataset_pb2, job_pb2, trainer_pb2
from services.common.adapter_manifest import MAX_ANCESTORS, SCHEMA, training_action_digest
from services.common.adapter_weights import CONFIG_FILE, WEIGHTS_FILE
from services.common.strict_parsing import require_same
from services.trainer.registry.shape import MICROS, read_shape
from services.trainer.registry.shelf import TEMPLATE_FILE, Folder

MAX_METRICS: Final = 64
MAX_SOFTWARE: Final = 32
MAX_SUMMARY_CHARS: Final = 4_096
MAX_LICENCES: Final = 64
# Of a folder whose weights are mapped; the rest is small.
_READ_BYTES: Final = 1 << 62
_METRIC: Final = re.compile(r"[a-z0-9_]{1,64}")


@dataclass(frozen=True, slots=True)
class Training:
    """A finished training, as the service knows it from what was cleared, logged and stored."""

    job: str
    tenant: str
    owner: str
    action: bytes
    """The exact bytes of the CreateTrainingJobAction that ethics cleared."""
    decision_id: str
    constitution_digest: bytes
    intent_receipt: str
    base: BaseModel
    datasets: Sequence[DatasetUsed]
    started_at: Timestamp
    finished_at: Timestamp
    result: Mapping[str, Any]
    """The process's `result.json`: steps, tokens, seed, resumes, software, hardware, metrics, all of them optional but
    `steps`; parsed JSON of any kind."""
    ancestors: Sequence[Ancestor] = ()

    @property
    def spec(self) -> job_pb2.TrainingSpec:
        """What was cleared."""
        return trainer_pb2.CreateTrainingJobAction.FromString(self.action).spec


def describe(trained: Training, folder: Folder, files: Sequence[ContentReference]) -> AdapterDescription:
    """The description of what lies in `folder`, whose files were hashed as `files`; its name is still to be given.

    Raises VerificationError where the files are no adapter, or not one of what was asked for.
    """
    spec = trained.spec
    names = {file.name for file in files}
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in names:
            raise VerificationError(f"file {name}: training did not leave it")
    lora = read_shape(
        folder.read(CONFIG_FILE, _READ_BYTES),
        folder.read(WEIGHTS_FILE, _READ_BYTES),
        requested=spec.lora.target_modules,
    )
    if lora.rank != spec.lora.rank:
        raise VerificationError(f"lora: has rank {lora.rank}, not {spec.lora.rank} as was asked")
    return AdapterDescription(
        schema=SCHEMA,
        tenant=trained.tenant,
        owner=trained.owner,
        base=trained.base,
        lora=lora,
        files=files,
        stage=spec.stage,
        specialist=spec.specialist,
        task=_task(spec),
        labels=spec.labels,
        ancestors=trained.ancestors,
        datasets=trained.datasets,
        training=_record(trained),
        chat_template=TEMPLATE_FILE if TEMPLATE_FILE in names else "",
        summary=spec.summary[:MAX_SUMMARY_CHARS],
        created_at=trained.finished_at,
    )


def lineage(
    parents: Sequence[tuple[AdapterDescription, bytes]],
    base_digest: bytes,
    *,
    merges: Mapping[bytes, Collection[bytes]],
) -> list[Ancestor]:
    """The ancestors of an adapter whose base is the merge of `parents` (description and digest), the oldest first.

    `merges` says which models each adapter, by its digest, was merged into. Raises FailedPreconditionError where the parents do
    not lead to the base: it is then not what they say it is.
    """
    if len(parents) > MAX_ANCESTORS:
        raise FailedPreconditionError(f"parents: there are {len(parents)}, at most {MAX_ANCESTORS}")
    ancestors: list[Ancestor] = []
    for index, (description, digest) in enumerate(parents):
        follower = parents[index + 1][0].base.digest if index + 1 < len(parents) else base_digest
        if follower not in merges.get(digest, ()):
            raise FailedPreconditionError(
                f"parents[{index}]: the merge of {description.name} is not what comes next; export it as MERGED and "
                "train on that",
                reason="LINEAGE_BROKEN",
            )
        if [item.name for item in description.ancestors] != [item.name for item in ancestors]:
            raise FailedPreconditionError(
                f"parents[{index}]: {description.name} was itself built on other adapters than those before it",
                reason="LINEAGE_BROKEN",
            )
        ancestors.append(
            Ancestor(
                name=description.name,
                adapter_digest=digest,
                base_digest=description.base.digest,
                merged_digest=follower,
                stage=description.stage,
            )
        )
    return ancestors


def datasets_used(
    shares: Sequence[tuple[dataset_pb2.Dataset, job_pb2.DatasetShare]],
) -> list[DatasetUsed]:
    """The datasets of a job as its manifest names them; raises VerificationError where one is not the one cleared."""
    trained_on = sum(_weight(share) for _, share in shares if share.use != DATASET_USE_VALIDATION)
    used: list[DatasetUsed] = []
    for dataset, share in shares:
        require_same(
            f"{dataset.name}: digest of its manifest", dataset.reference.sha256, share.dataset.sha256
        )
        is_validation = share.use == DATASET_USE_VALIDATION
        used.append(
            DatasetUsed(
                name=dataset.name,
                digest=dataset.digest,
                files=sorted(dataset.files, key=lambda file: file.name),
                rows=_rows(dataset.report, share.use),
                use=share.use,
                share_micros=0 if is_validation else round(_weight(share) / trained_on * MICROS),
                licences=sorted({item.licence for item in dataset.report.sources if item.licence})[
                    :MAX_LICENCES
                ],
                contamination_digest=dataset.report.contamination_digest,
            )
        )
    return used


def _weight(share: job_pb2.DatasetShare) -> float:
    return share.weight or 1.0


def _rows(report: dataset_pb2.DatasetReport, use: DatasetUse.ValueType) -> int:
    return report.validation_rows if use == DATASET_USE_VALIDATION else report.train_rows


def _task(spec: job_pb2.TrainingSpec) -> AdapterTask.ValueType:
    is_classifier = spec.objective == job_pb2.TRAINING_OBJECTIVE_CLASSIFICATION
    return ADAPTER_TASK_CLASSIFICATION if is_classifier else ADAPTER_TASK_CAUSAL_LM


def _record(trained: Training) -> TrainingRecord:
    result = trained.result
    record = TrainingRecord(
        job=trained.job,
        action=trained.action,
        action_digest=training_action_digest(trained.action),
        decision_id=trained.decision_id,
        intent_receipt=trained.intent_receipt,
        constitution_digest=trained.constitution_digest,
        steps=_count(result, "steps"),
        tokens=_count(result, "tokens"),
        seed=trained.spec.hyperparameters.seed,
        resumes=_count(result, "resumes"),
        software=[str(item)[:128] for item in _list(result, "software")][:MAX_SOFTWARE],
        hardware=str(result.get("hardware") or "")[:128],
        started_at=trained.started_at,
        finished_at=trained.finished_at,
    )
    metrics = result.get("metrics")
    for name, value in sorted(metrics.items() if isinstance(metrics, Mapping) else ()):
        if _METRIC.fullmatch(str(name)) and isinstance(value, int | float):
            record.metrics.add(name=str(name), value=float(value))
    del record.metrics[MAX_METRICS:]
    if not record.steps:
        raise VerificationError("training: took no step, so there is nothing to sign")
    return record


def _count(result: Mapping[str, Any], key: str) -> int:  # parsed JSON of any kind
    value = result.get(key)
    return value if type(value) is int and 0 <= value < 1 << 63 else 0


def _list(result: Mapping[str, Any], key: str) -> list[Any]:  # parsed JSON of any kind
    value = result.get(key)
    return value if isinstance(value, list) else []
