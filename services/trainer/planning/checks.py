"""What stops a job and what speaks against it, by its spec alone; names are resolved elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from kala.common.v1 import adapter_pb2 as common
from kala.errors import InvalidArgumentError
from kala.trainer.v1 import job_pb2 as pb
from services.trainer.names import ADAPTERS, require_stem
from services.trainer.planning.limits import (
    BOUNDS,
    MAX_DATASETS,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_SECONDS,
    MAX_SUMMARY_CHARS,
)
from services.trainer.planning.shapes import Shape
from services.trainer.planning.site import Site
from services.trainer.planning.spec_bounds import unknown_words
from services.trainer.planning.targets import EMBEDDING_MODULES, RENAMED

NF4_BLOCK: Final = 64
"""Weights that share one scale in 4 bits; bitsandbytes' kernel for CPUs wants rows of whole blocks."""

CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def problems(spec: pb.TrainingSpec, shape: Shape | None, site: Site) -> Iterator[str]:
    """What CreateTrainingJob refuses; each names the field and the cure."""
    yield from _names(spec)
    yield from unknown_words(spec)
    yield from numbers(spec)
    yield from _kind(spec)
    yield from _method(spec)
    yield from _data(spec)
    yield from _batches(spec)
    yield from _placement(spec)
    if shape is not None:
        yield from _fit(spec, shape)
    if pb.TRACKER_MLFLOW in spec.trackers and not site.has_mlflow:
        yield "trackers: the operator has configured no MLflow server; take mlflow out or ask the operator"


def warnings(spec: pb.TrainingSpec, shape: Shape | None, site: Site) -> Iterator[str]:
    """What does not stop it."""
    values, placement = spec.hyperparameters, spec.placement
    on_gpu = placement.gpus_per_worker > 0
    if values.precision == pb.PRECISION_BF16 and not on_gpu:
        yield "hyperparameters.precision: bf16 is slower than fp32 on CPUs that were measured"
    if not spec.HasField("gate_profile"):
        yield "gate_profile: none is named; the adapter serves only after `kala eval` has passed it"
    uses = {share.use for share in spec.datasets}
    is_chat = spec.objective != pb.TRAINING_OBJECTIVE_CLASSIFICATION
    if spec.datasets and is_chat and common.DATASET_USE_REPLAY not in uses:
        yield (
            "datasets: without a dataset of use replay an adapter tends to forget refusals; give about as much "
            "replay as new data"
        )
    if placement.executor == pb.EXECUTOR_RAY and not site.has_cluster:
        yield "placement.executor: no Ray cluster is configured; a local Ray is started, which takes 15 to 35 s"
    if 0 < placement.min_workers < placement.workers:
        yield "placement.min_workers: with fewer workers after a loss the result is not the same to the bit"
    trained = {RENAMED.get(name, name) for name in spec.lora.target_modules}
    if shape is not None and trained and not trained & EMBEDDING_MODULES and shape.layers and spec.labels:
        yield "labels: the classifier's head is trained in full beside the LoRA matrices"


def _names(spec: pb.TrainingSpec) -> Iterator[str]:
    if not spec.adapter:
        yield "adapter: is not set; name the adapter to make, e.g. adapter: my-adapter"
    else:
        try:
            require_stem(ADAPTERS, spec.adapter, field="adapter")
        except InvalidArgumentError as error:
            yield error.message
    if not spec.base.name:
        yield "base_model: is not set; name the base, e.g. base_model: kala-embedded"
    if len(spec.summary) > MAX_SUMMARY_CHARS:
        yield f"summary: is longer than {MAX_SUMMARY_CHARS} characters; shorten it"
    if CONTROL.search(spec.summary):
        yield "summary: has control characters; take them out"
    if not 0 < spec.deadline.seconds <= MAX_SECONDS:
        yield "deadline: must be above 0 and at most 14 days"


def numbers(spec: pb.TrainingSpec) -> Iterator[str]:
    """Those about numbers that are out of bounds."""
    for section, bounds in BOUNDS.items():
        if not spec.HasField(section):  # type: ignore[arg-type]  # one of the spec's messages
            continue
        message = getattr(spec, section)
        for key, bound in bounds.items():
            field = message.DESCRIPTOR.fields_by_name[key]
            if field.has_presence and not message.HasField(key):
                continue
            if problem := bound.problem(getattr(message, key)):
                yield f"{section}.{key}: {problem}"


def _kind(spec: pb.TrainingSpec) -> Iterator[str]:
    is_specialist = spec.stage == common.ADAPTER_STAGE_SPECIALIST
    if is_specialist != bool(spec.specialist):
        yield "specialist: goes with stage specialist and with no other; set both or neither"
    is_constitutional = spec.objective == pb.TRAINING_OBJECTIVE_CONSTITUTIONAL
    if spec.HasField("constitutional") and not is_constitutional:
        yield "constitutional: goes only with objective constitutional; take it out or change the objective"
    if is_constitutional and spec.method == pb.TRAINING_METHOD_FULL:
        yield "method: constitutional training makes an adapter; set method to lora"
    is_classifier = spec.objective == pb.TRAINING_OBJECTIVE_CLASSIFICATION
    if is_classifier and not 2 <= len(spec.labels) <= MAX_LABELS:  # noqa: PLR2004 - one label decides nothing
        yield f"labels: a classifier needs 2 to {MAX_LABELS} labels; name them in output order"
    if spec.labels and not is_classifier:
        yield "labels: go only with objective classification; take them out or change the objective"
    if len(set(spec.labels)) != len(spec.labels) or not all(spec.labels):
        yield "labels: each must be a text of its own; one is empty or comes twice"
    if not all(len(label) <= MAX_LABEL_CHARS and label.isprintable() for label in spec.labels):
        yield f"labels: each must be a word of at most {MAX_LABEL_CHARS} characters on one line; shorten it"
    if spec.specialist == common.SPECIALIST_GUARDIAN and not is_classifier:
        yield "objective: the Guardian is a classifier; set objective to classification"


def _method(spec: pb.TrainingSpec) -> Iterator[str]:
    is_quantized = spec.quantization in {common.QUANTIZATION_INT8, common.QUANTIZATION_NF4}
    if spec.method == pb.TRAINING_METHOD_FULL:
        if spec.HasField("lora"):
            yield "lora: goes only with method lora; take rank, alpha, dropout and target_modules out"
        if is_quantized:
            yield "quantization: quantised weights cannot be trained; set quantization to none or method to lora"
    elif is_quantized and spec.placement.parallelism == pb.PARALLELISM_FSDP:
        yield "placement.parallelism: a quantised base is not shared among workers; set it to ddp"


def _data(spec: pb.TrainingSpec) -> Iterator[str]:
    if not 1 <= len(spec.datasets) <= MAX_DATASETS:
        yield f"datasets: names {len(spec.datasets)}, not 1 to {MAX_DATASETS}; `kala data list` shows what there is"
    elif all(share.use != common.DATASET_USE_TRAIN for share in spec.datasets):
        yield "datasets: none is of use train; one must be what is learned"
    seen: set[str] = set()
    for index, share in enumerate(spec.datasets):
        if share.dataset.name in seen:
            yield f"datasets[{index}]: {share.dataset.name} is named twice; keep one and give it a weight"
        seen.add(share.dataset.name)
        if not share.use:
            yield f"datasets[{index}].use: is not set; it must be train, replay or validation"
        if not 0 <= share.weight <= BOUNDS["hyperparameters"]["learning_rate"].most:
            yield f"datasets[{index}].weight: must be a number above 0"


def _batches(spec: pb.TrainingSpec) -> Iterator[str]:
    values, workers = spec.hyperparameters, max(spec.placement.workers, 1)
    piece = values.micro_batch_size * workers
    if piece and values.batch_size % piece:
        yield (
            f"hyperparameters.batch_size: is {values.batch_size}, no multiple of {workers} workers times a "
            f"micro_batch_size of {values.micro_batch_size}; set it to {max(1, values.batch_size // piece) * piece}"
        )
    packs = {pb.TRAINING_OBJECTIVE_SFT, pb.TRAINING_OBJECTIVE_CONSTITUTIONAL}
    if values.packing and spec.objective not in packs:
        yield "hyperparameters.packing: only whole answers are packed, not pairs or labels; set it to false"


def _placement(spec: pb.TrainingSpec) -> Iterator[str]:
    placement = spec.placement
    if placement.executor == pb.EXECUTOR_LOCAL and placement.workers > 1:
        yield "placement.workers: the local executor has one worker; set executor to ray"
    if placement.min_workers > placement.workers:
        yield f"placement.min_workers: is above the {placement.workers} workers; lower it"
    if placement.parallelism == pb.PARALLELISM_FSDP and placement.min_workers < placement.workers:
        yield "placement.min_workers: a shared model needs all its workers; take min_workers out"
    if placement.gpus_per_worker > 1 and placement.gpus_per_worker != int(placement.gpus_per_worker):
        yield "placement.gpus_per_worker: above 1 it must be whole"


def _fit(spec: pb.TrainingSpec, shape: Shape) -> Iterator[str]:
    length = spec.hyperparameters.max_sequence_tokens
    if length > shape.context_tokens:
        yield f"hyperparameters.max_sequence_tokens: is {length}, above the base's {shape.context_tokens}; lower it"
    drafted = spec.constitutional.max_new_tokens
    if spec.HasField("constitutional") and drafted >= shape.context_tokens:
        yield f"constitutional.max_new_tokens: leaves no room in the base's {shape.context_tokens}; lower it"
    widths = (shape.hidden, shape.inner)
    on_cpu = not spec.placement.gpus_per_worker
    if spec.quantization == common.QUANTIZATION_NF4 and on_cpu and any(width % NF4_BLOCK for width in widths):
        yield (
            f"quantization: a CPU holds only models of widths that {NF4_BLOCK} divides in 4 bits, and this one's are "
            f"{widths[0]} and {widths[1]}; set it to 8-bit or none"
        )
