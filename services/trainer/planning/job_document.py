"""A training job as people write it: the training guide's block, and what a whole job says beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration

from kala.common.v1 import adapter_pb2 as common
from kala.common.v1.reference_pb2 import ContentReference
from kala.trainer.v1 import job_pb2 as pb
from services.trainer.planning.limits import BOUNDS, MAX_DATASETS, MAX_LABELS, Bound
from services.trainer.planning.yaml_document import Section, Value, read_document

KEYS: Final = (
    "adapter", "summary", "base_model", "quantization", "parents", "method", "objective", "stage", "specialist",
    "rank", "alpha", "dropout", "target_modules", "rank_stabilised", "datasets", "build", "hyperparameters",
    "placement", "constitutional", "labels", "gate_profile", "trackers", "deadline",
)  # fmt: skip

LORA_KEYS: Final = ("rank", "alpha", "dropout", "target_modules", "rank_stabilised")

METHODS: Final = {"lora": pb.TRAINING_METHOD_LORA, "full": pb.TRAINING_METHOD_FULL}
OBJECTIVES: Final = {
    "sft": pb.TRAINING_OBJECTIVE_SFT,
    "dpo": pb.TRAINING_OBJECTIVE_DPO,
    "constitutional": pb.TRAINING_OBJECTIVE_CONSTITUTIONAL,
    "classification": pb.TRAINING_OBJECTIVE_CLASSIFICATION,
}
STAGES: Final = {
    "constitutional": common.ADAPTER_STAGE_CONSTITUTIONAL,
    "capability": common.ADAPTER_STAGE_CAPABILITY,
    "specialist": common.ADAPTER_STAGE_SPECIALIST,
    "custom": common.ADAPTER_STAGE_CUSTOM,
}
SPECIALISTS: Final = {
    "code": common.SPECIALIST_CODE,
    "math": common.SPECIALIST_MATH,
    "physics": common.SPECIALIST_PHYSICS,
    "guardian": common.SPECIALIST_GUARDIAN,
}
QUANTIZATIONS: Final = {
    "none": common.QUANTIZATION_NONE,
    "8bit": common.QUANTIZATION_INT8,
    "8-bit": common.QUANTIZATION_INT8,
    "int8": common.QUANTIZATION_INT8,
    "4bit": common.QUANTIZATION_NF4,
    "4-bit": common.QUANTIZATION_NF4,
    "nf4": common.QUANTIZATION_NF4,
}
USES: Final = {
    "train": common.DATASET_USE_TRAIN,
    "replay": common.DATASET_USE_REPLAY,
    "validation": common.DATASET_USE_VALIDATION,
}
REVISERS: Final = {"model": pb.REVISER_MODEL, "template": pb.REVISER_TEMPLATE}
SCHEDULES: Final = {
    "constant": pb.SCHEDULE_CONSTANT,
    "linear": pb.SCHEDULE_LINEAR,
    "cosine": pb.SCHEDULE_COSINE,
}
PRECISIONS: Final = {"fp32": pb.PRECISION_FP32, "bf16": pb.PRECISION_BF16}
EXECUTORS: Final = {"local": pb.EXECUTOR_LOCAL, "ray": pb.EXECUTOR_RAY}
PARALLELISMS: Final = {"ddp": pb.PARALLELISM_DDP, "fsdp": pb.PARALLELISM_FSDP}
TRACKERS: Final = {"tensorboard": pb.TRACKER_TENSORBOARD, "mlflow": pb.TRACKER_MLFLOW}

_RANGE: Final = re.compile(r"([0-9]{1,5}) ?(?:-|\N{EN DASH}|to|\.\.) ?([0-9]{1,5})")
_BASE: Final = re.compile(r"(?:EleutherAI/)?([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?: ?\(([^()]{1,40})\))?")
_HELD: Final = re.compile(r"(.*?)[ -]*(?:quanti[sz]ed)?")

Read = Callable[[Value], Any]  # Any: the reader of each field gives the field's own kind


@dataclass
class JobDraft:
    """A job as it was written: names stand without digests, and what was not said is unset."""

    spec: pb.TrainingSpec = field(default_factory=pb.TrainingSpec)
    choices: list[pb.PlanChoice] = field(default_factory=list)
    builds: dict[str, int] = field(default_factory=dict)
    """Datasets that the document itself says how to build, "datasets/<name>", and the rows that generators give them."""


def read_job(text: str) -> JobDraft:
    """Read a job's YAML; raises InvalidArgumentError with line and column for whatever it does not take."""
    top = read_document(text).section(KEYS)
    draft = JobDraft()
    spec = draft.spec
    _read_what(top, draft)
    if any(top.get(key) for key in LORA_KEYS):
        _read_lora(top, draft)
    for key, read in (("datasets", _share), ("parents", _parent)):
        if value := top.get(key):
            getattr(spec, key).extend(read(each) for each in value.items(most=MAX_DATASETS))
    for key, fields in _SECTIONS.items():
        if value := top.get(key):
            _fill(getattr(spec, key), value.section(fields), fields)
            getattr(spec, key).SetInParent()
    if value := top.get("labels"):
        spec.labels.extend(each.text(most=64) for each in value.items(most=MAX_LABELS))
    if value := top.get("trackers"):
        spec.trackers.extend(each.choice(TRACKERS) for each in value.items(most=len(TRACKERS)))
    if value := top.get("gate_profile"):
        spec.gate_profile.name = value.text(most=64)
    if value := top.get("build"):
        draft.builds = dict(_build(each) for each in value.items(most=MAX_DATASETS))
    return draft


def _read_what(top: Section, draft: JobDraft) -> None:
    spec = draft.spec
    if value := top.get("adapter"):
        spec.adapter = prefixed(value.text(most=128), "adapters/")
    if value := top.get("summary"):
        spec.summary = value.text()
    words: Mapping[str, Mapping[str, Any]] = {  # Any: enumerations of several kinds
        "method": METHODS,
        "objective": OBJECTIVES,
        "stage": STAGES,
        "specialist": SPECIALISTS,
        "quantization": QUANTIZATIONS,
    }
    for key, choices in words.items():
        if value := top.get(key):
            setattr(spec, key, value.choice(choices))
    if value := top.get("base_model"):
        _read_base(value, draft)
    if value := top.get("deadline"):
        spec.deadline.CopyFrom(Duration(seconds=int(value.seconds())))


def _read_base(value: Value, draft: JobDraft) -> None:
    """A name such as "pythia-6.9b", or the training guide's "pythia-6.9b (8-bit quantized)"."""
    spec, text = draft.spec, value.text(most=128)
    found = _BASE.fullmatch(text.strip())
    if not found:
        raise value.wrong(f'is {text!r}; it must be a name such as "pythia-6.9b (8-bit quantized)"')
    spec.base.name = found[1].lower()
    if found[2] is None:
        return
    held = _HELD.fullmatch(found[2].strip().lower())
    quantization = QUANTIZATIONS.get(held[1] if held else "")
    if quantization is None:
        raise value.wrong(f'is held in {found[2]!r}; it must be "8-bit quantized" or "4-bit quantized"')
    if spec.quantization not in {common.QUANTIZATION_UNSPECIFIED, quantization}:
        raise value.wrong("says another quantization than the key quantization; keep one of them")
    spec.quantization = quantization
    taken = common.Quantization.Name(quantization).removeprefix("QUANTIZATION_").lower()
    draft.choices.append(
        pb.PlanChoice(field="quantization", asked=text, taken=taken, reason="named with the base")
    )


def _read_lora(top: Section, draft: JobDraft) -> None:
    lora = draft.spec.lora
    lora.SetInParent()
    if value := top.get("rank"):
        lora.rank = _lower_end(value, "rank", draft)
    if value := top.get("alpha"):
        lora.alpha = _lower_end(value, "alpha", draft)
    if value := top.get("dropout"):
        lora.dropout = _bounded(BOUNDS["lora"]["dropout"])(value)
    if value := top.get("rank_stabilised"):
        lora.rank_stabilised = value.flag()
    if value := top.get("target_modules"):
        lora.target_modules.extend(each.text(most=64) for each in value.items(most=64))


def _lower_end(value: Value, key: str, draft: JobDraft) -> int:
    """A whole number, or the lower end of a range such as "16-32"."""
    text = value.text(most=32)
    found = _RANGE.fullmatch(text.strip())
    if not found:
        return int(_bounded(BOUNDS["lora"][key])(value))
    most = int(BOUNDS["lora"][key].most)
    low, high = int(found[1]), int(found[2])
    if not 1 <= low <= high <= most:
        raise value.wrong(f"is {text!r}; a range must rise and lie between 1 and {most}")
    reason = "a range becomes its lower end, which costs the least memory; write one number for another"
    draft.choices.append(pb.PlanChoice(field=f"lora.{key}", asked=text, taken=str(low), reason=reason))
    return low


def _share(value: Value) -> pb.DatasetShare:
    entry = value.section(("dataset", "sha256", "bytes", "use", "weight"))
    share = pb.DatasetShare(use=common.DATASET_USE_TRAIN, weight=1)
    share.dataset.CopyFrom(_reference(entry, "dataset", "datasets/"))
    if use := entry.get("use"):
        share.use = use.choice(USES)
    if weight := entry.get("weight"):
        share.weight = _bounded(Bound(is_above=True))(weight)
    return share


def _parent(value: Value) -> ContentReference:
    return _reference(value.section(("adapter", "sha256", "bytes")), "adapter", "adapters/")


def _reference(entry: Section, key: str, prefix: str) -> ContentReference:
    reference = ContentReference(name=prefixed(entry.need(key).text(most=256), prefix))
    if digest := entry.get("sha256"):
        if not re.fullmatch(r"[0-9a-f]{64}", digest.text(most=64)):
            raise digest.wrong("must be 64 hexadecimal characters")
        reference.sha256 = bytes.fromhex(digest.text())
    if size := entry.get("bytes"):
        reference.bytes = size.whole()
    return reference


def _build(value: Value) -> tuple[str, int]:
    """Only name and rows: how it is built is a matter of BuildDataset, which is asked before the job is submitted."""
    fields = ("name", "sources", "duplicate_similarity", "evaluation_files", "contamination_words")
    more = ("validation_share", "seed", "licences", "max_tokens", "tokenizer", "summary")
    entry = value.section((*fields, *more))
    sources = entry.get("sources")
    rows = sum(_generated(each) for each in sources.items(most=MAX_DATASETS)) if sources else 0
    return prefixed(entry.need("name").text(most=80), "datasets/"), rows


def _generated(value: Value) -> int:
    """Rows of a source from templates; 0 for files, whose rows nobody has counted."""
    generator = value.section(("name", "generator", "files", "hub", "max_rows")).get("generator")
    rows = generator.section(("category", "rows", "seed")).get("rows") if generator else None
    return rows.whole() if rows else 0


def prefixed(name: str, prefix: str) -> str:
    """A resource name, which people may write without its collection."""
    return name if name.startswith(prefix) else prefix + name


def _fill(message: Any, section: Section, fields: Mapping[str, Read]) -> None:  # Any: one of several messages
    for key, read in fields.items():
        if value := section.get(key):
            setattr(message, key, read(value))


def _word(choices: Mapping[str, Any]) -> Read:  # Any: enumerations of several kinds
    return lambda value: value.choice(choices)


def _bounded(bound: Bound) -> Read:
    def read(value: Value) -> float:
        number = value.whole() if bound.is_whole else value.number()
        if problem := bound.problem(number):
            raise value.wrong(problem)
        return number

    return read


def _readers(section: str, **words_and_flags: Read) -> dict[str, Read]:
    return {key: _bounded(bound) for key, bound in BOUNDS[section].items()} | words_and_flags


_SECTIONS: Final[Mapping[str, Mapping[str, Read]]] = {
    "hyperparameters": _readers(
        "hyperparameters",
        schedule=_word(SCHEDULES),
        packing=Value.flag,
        precision=_word(PRECISIONS),
        gradient_checkpointing=Value.flag,
    ),
    "placement": _readers("placement", executor=_word(EXECUTORS), parallelism=_word(PARALLELISMS)),
    "constitutional": _readers("constitutional", reviser=_word(REVISERS)),
}
