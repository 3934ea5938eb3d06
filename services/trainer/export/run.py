"""Writes one export, in a process of its own, and compares it with what was trained before anybody gets it."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from google.protobuf import json_format
from google.protobuf.message import Message

from kala.common.v1.adapter_pb2 import AdapterDescription, AdapterManifest
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, VerificationError
from kala.trainer.v1.registry_pb2 import (
    EXPORT_FORMAT_GGUF_LORA,
    EXPORT_FORMAT_GGUF_MERGED,
    EXPORT_FORMAT_MERGED,
    EXPORT_FORMAT_MLX,
    EXPORT_FORMAT_PEFT,
    ExportAdapterMetadata,
    ExportCheck,
    ExportFormat,
)
from services.common.adapter_manifest import MANIFEST_FILE, adapter_digest, read_signed_manifest
from services.common.file_set import file_set_digest
from services.common.strict_parsing import require_same
from services.trainer.export.card import CARD_FILE, write_card
from services.trainer.export.comparing import (
    Spoken,
    Untyped,
    compared,
    compared_tokens,
    hf_logits,
    reference_of,
    require_passed,
)
from services.trainer.export.gguf_reading import read_gguf
from services.trainer.export.gguf_writing import (
    LORA_FILE,
    MODEL_FILE,
    own_format,
    write_lora_gguf,
    write_merged_gguf,
)
from services.trainer.export.merging import write_merged
from services.trainer.export.mlx_layout import write_mlx
from services.trainer.export.modelfile import modelfile
from services.trainer.export.source import AdapterSource, BaseSource, read_adapter, read_base
from services.trainer.registry.bases import MANIFEST, base_files
from services.trainer.work.order import Order

FOLDER: Final = "export"
MODELFILE: Final = "Modelfile"

# By number format: how far a logit may lie from PEFT's in fp32, and how many of the prompts must go on with the very same
# text. Rounding weights moves logits: a near tie may fall to the other side. llama.cpp and MLX approximate GELU, which moves
# them by some hundredths even in fp32.
BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "f32": (0.01, 1.0),
    "f16": (0.25, 0.99),
    "bf16": (2.0, 0.95),
    "q8_0": (4.0, 0.90),
}
APPROXIMATION: Final = 0.1


class Events(Protocol):
    """Hears how far it is."""

    def write(self, message: Message) -> None:
        """Append one event."""
        ...


@dataclass(frozen=True, slots=True)
class _Job:
    """What is exported, into what, and who hears of it."""

    name: str
    format: ExportFormat.ValueType
    weight_format: str
    base: BaseSource
    adapter: AdapterSource
    description: AdapterDescription
    digest: bytes
    target: Path
    tell: Callable[[str, int], None]

    def wrote(self, count: int) -> None:
        """Tells how many bytes are there."""
        self.tell("writing", count)


def main(order: Order, events: Events) -> dict[str, Any]:  # JSON
    """Does what the order says; its result names every file, every check and a merge's model digest."""
    if order.adapter is None or order.base is None:
        raise FailedPreconditionError("the order names no adapter or no base", reason="ORDER_INCOMPLETE")
    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(order.threads)
    # A log holds lines, not bars.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers annotates parts only
    kind = _format(order.settings)
    description, digest = read_description(order.adapter.directory, order.adapter.digest)
    target = order.folder / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()

    def tell(phase: str, count: int) -> None:
        events.write(
            ExportAdapterMetadata(adapter=description.name, format=kind, phase=phase, written_bytes=count)
        )

    if kind == EXPORT_FORMAT_PEFT:
        tell("writing", 0)
        for name in [MANIFEST_FILE, *(file.name for file in description.files)]:
            shutil.copyfile(order.adapter.directory / name, target / name)
        return _result(target, [], b"")
    require_same(
        "base: digest of its files", file_set_digest(base_files(order.base.directory)), order.base.digest
    )
    job = _Job(
        name=description.name,
        format=kind,
        weight_format=str(order.settings.get("weight_format") or ""),
        base=read_base(order.base.directory),
        adapter=read_adapter(order.adapter.directory),
        description=description,
        digest=digest,
        target=target,
        tell=tell,
    )
    return _exported(job)


def read_description(folder: Path, manifest_digest: bytes) -> tuple[AdapterDescription, bytes]:
    """What the adapter is, its files held against it; raises VerificationError where they are not what was signed."""
    data = (folder / MANIFEST_FILE).read_bytes()
    require_same("adapter: digest of its manifest", hashlib.sha256(data).digest(), manifest_digest)
    manifest = AdapterManifest.FromString(read_signed_manifest(data).manifest)
    description = AdapterDescription.FromString(manifest.adapter)
    for file in description.files:
        require_same(
            f"file {file.name}: SHA-256", _reference(folder / file.name, file.name).sha256, file.sha256
        )
    return description, adapter_digest(manifest.adapter)


def _exported(job: _Job) -> dict[str, Any]:  # JSON
    job.tell("merging", 0)
    writers: Mapping[ExportFormat.ValueType, Callable[[_Job], None]] = {
        EXPORT_FORMAT_MERGED: _write_merged,
        EXPORT_FORMAT_MLX: lambda job: write_mlx(
            job.base, job.adapter, job.target, job.weight_format, job.wrote
        ),
        EXPORT_FORMAT_GGUF_MERGED: _write_gguf,
        EXPORT_FORMAT_GGUF_LORA: lambda job: write_lora_gguf(job.base, job.adapter, job.target, job.wrote),
    }
    writers[job.format](job)
    job.tell("comparing", _size(job.target))
    spoken = reference_of(job.base.directory, job.adapter.directory, chat_template=job.adapter.chat_template)
    # Two models at a time would need twice the memory.
    gc.collect()
    checks = _checks(job, spoken)
    require_passed(checks)
    (job.target / CARD_FILE).write_text(write_card(job.description, job.digest, job.format, checks))
    model_digest = b""
    if job.format == EXPORT_FORMAT_MERGED:
        model_digest = file_set_digest(base_files(job.target))
        _write_manifest(job)
    return _result(job.target, checks, model_digest)


def _write_merged(job: _Job) -> None:
    write_merged(job.base, job.adapter, job.target, job.weight_format, job.wrote)


def _write_gguf(job: _Job) -> None:
    write_merged_gguf(job.base, job.adapter, job.target, job.weight_format, job.wrote)
    tokenizer = _tokenizer(job.base.directory)
    template = job.adapter.chat_template or tokenizer.chat_template

    def render(messages: Sequence[dict[str, str]], opens: bool) -> str:  # noqa: FBT001 - called by position
        text: str = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=opens, tokenize=False
        )
        return text

    text = modelfile(
        MODEL_FILE,
        render=render if template else None,
        stop=tokenizer.eos_token or "",
        context_tokens=int(job.base.config["max_position_embeddings"]),
        facts=[f"{job.name} merged into {job.description.base.name}; it has left KALA's guard"],
    )
    (job.target / MODELFILE).write_text(text)


def _checks(job: _Job, spoken: Sequence[Spoken]) -> list[ExportCheck]:
    own = own_format(job.base)
    difference, equal = BOUNDS[job.weight_format or own]
    if job.format in {EXPORT_FORMAT_MERGED, EXPORT_FORMAT_MLX}:
        # MLX reads the very tensors that transformers reads here.
        return compared(spoken, hf_logits(job.target), most_difference=difference, least_equal=equal)
    if job.format == EXPORT_FORMAT_GGUF_LORA:
        return _compared_lora(job, spoken)
    model = read_gguf(job.target / MODEL_FILE)
    tokenizer = model.tokenizer()
    checks = compared(
        spoken, model.logits, most_difference=difference + APPROXIMATION, least_equal=min(equal, 0.995)
    )
    return [compared_tokens(spoken, lambda text: _ids(tokenizer, text)), *checks]


def _compared_lora(job: _Job, spoken: Sequence[Spoken]) -> list[ExportCheck]:
    """Beside the base as GGUF in fp32, which is written for this alone."""
    beside = job.target.with_name("base")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        bare = replace(job.adapter, pairs={})
        write_merged_gguf(job.base, bare, beside, "f32", lambda _: None)
        model = read_gguf(beside / MODEL_FILE, lora=job.target / LORA_FILE)
        difference, equal = BOUNDS["f32"]
        return compared(
            spoken, model.logits, most_difference=difference + APPROXIMATION, least_equal=min(equal, 0.995)
        )
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_manifest(job: _Job) -> None:
    """Lets inference serve the directory as a base, every file held against this list."""
    files = {
        path.name: {"sha256": _reference(path, path.name).sha256.hex(), "bytes": path.stat().st_size}
        for path in sorted(job.target.iterdir())
    }
    document = {
        "model": job.name,
        "purpose": f"{job.name} merged into {job.description.base.name}",
        "files": files,
    }
    (job.target / MANIFEST).write_text(json.dumps(document, indent=2) + "\n")


def _result(target: Path, checks: Sequence[ExportCheck], model_digest: bytes) -> dict[str, Any]:  # JSON
    files = [
        _reference(path, path.relative_to(target).as_posix())
        for path in sorted(target.rglob("*"))
        if path.is_file()
    ]
    return {
        "files": [json_format.MessageToDict(file) for file in files],
        "checks": [json_format.MessageToDict(check) for check in checks],
        "model_digest": model_digest.hex(),
    }


def _reference(path: Path, name: str) -> ContentReference:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            return ContentReference(name=name, sha256=digest, bytes=file.tell())
    except OSError as error:
        raise VerificationError(f"file {name}: cannot be read") from error


def _format(settings: Mapping[str, Any]) -> ExportFormat.ValueType:  # the order's JSON
    asked = settings.get("format")
    found = next((number for number in ExportFormat.values() if number and number == asked), None)
    if found is None:
        raise FailedPreconditionError("the order names no export format", reason="ORDER_INCOMPLETE")
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _tokenizer(directory: Path) -> Untyped:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def _ids(tokenizer: Untyped, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
