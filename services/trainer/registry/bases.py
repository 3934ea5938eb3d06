"""A base model as manifests describe it, read from its files without loading it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Final

from kala.common.v1.adapter_pb2 import QUANTIZATION_NONE, QUANTIZATION_UNSPECIFIED, BaseModel, Quantization
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, VerificationError
from services.common.adapter_weights import read_header
from services.common.file_set import file_set_digest
from services.common.strict_parsing import require_same
from services.trainer.registry.buffers import read_buffer

CONFIG: Final = "config.json"
MANIFEST: Final = "manifest.json"
BASE_SUFFIXES: Final = frozenset({".safetensors", ".json"})
"""What makes up a base: weights, configuration, tokenizer; as inference sees it."""

BUFFERS: Final = ("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq")
"""Constants that published Pythia files hold beside their parameters."""

ANY_SIZE: Final = 1 << 62
PYTHIA_LICENCE: Final = "Apache-2.0"


def base_files(directory: Path) -> list[ContentReference]:
    """Every file of the base with its digest, by name; reads all of it."""
    try:
        return [
            _reference(path)
            for path in sorted(directory.iterdir(), key=lambda path: path.name)
            if path.suffix in BASE_SUFFIXES and path.name != MANIFEST
        ]
    except OSError as error:
        raise FailedPreconditionError(
            f"the base in {directory} cannot be read: {error.strerror}", reason="BASE_UNREADABLE"
        ) from error


def describe_base(
    directory: Path,
    name: str,
    *,
    expected_digest: bytes,
    quantization: Quantization.ValueType,
    root_digest: bytes = b"",
) -> BaseModel:
    """The base, verified against the digest that it was named by; raises VerificationError where it is another."""
    files = base_files(directory)
    digest = file_set_digest(files)
    require_same(f"base {name}: digest of its files", digest, expected_digest)
    config = _read_config(directory / CONFIG)
    return BaseModel(
        name=name,
        digest=digest,
        files=files,
        architecture=str(config["model_type"]),
        parameters=sum(_parameters(path) for path in sorted(directory.glob("*.safetensors"))),
        context_tokens=int(config["max_position_embeddings"]),
        quantization=QUANTIZATION_NONE if quantization == QUANTIZATION_UNSPECIFIED else quantization,
        licence=PYTHIA_LICENCE if name.startswith("pythia-") else "",
        root_digest=root_digest or digest,
    )


def _reference(path: Path) -> ContentReference:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        return ContentReference(name=path.name, sha256=digest, bytes=file.tell())


def _read_config(path: Path) -> dict[str, Any]:  # parsed JSON of any kind
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
        is_whole = bool(config["model_type"]) and 0 < int(config["max_position_embeddings"]) < 1 << 32
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise VerificationError(f"{path}: is not the configuration of a model") from error
    if not is_whole:
        raise VerificationError(f"{path}: names no architecture or no context")
    return config


def _parameters(path: Path) -> int:
    tensors, _ = read_header(f"file {path.name}", read_buffer(path, ANY_SIZE))
    return sum(math.prod(shape) for name, (_, shape, _, _) in tensors.items() if not name.endswith(BUFFERS))
