"""Whether an adapter's files are what its manifest says they are: LoRA matrices of the stated shape and nothing else.

Digests show that files are unchanged; this shows that what was signed makes sense: no whole embeddings, no foreign
modules, no code-loading switches, a configuration that agrees with the manifest. Only headers are read.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from kala.common.v1.adapter_pb2 import (
    TENSOR_TYPE_BF16,
    TENSOR_TYPE_F16,
    TENSOR_TYPE_F32,
    LoraConfig,
    LoraTarget,
    TensorType,
)
from kala.errors import VerificationError

WEIGHTS_FILE: Final = "adapter_model.safetensors"
CONFIG_FILE: Final = "adapter_config.json"
MAX_RANK: Final = 1024
MAX_ALPHA: Final = 65_536
MAX_TARGETS: Final = 64
DROPOUT_BELOW_MICROS: Final = 1_000_000
# A header line is about 120 bytes; the largest adapters have some ten thousand tensors.
MAX_HEADER_BYTES: Final = 16 << 20
HEADER_LENGTH_BYTES: Final = 8
DTYPES: Final[Mapping[TensorType.ValueType, tuple[str, int]]] = {
    TENSOR_TYPE_F32: ("F32", 4),
    TENSOR_TYPE_F16: ("F16", 2),
    TENSOR_TYPE_BF16: ("BF16", 2),
}
# Keys of PEFT's configuration that describe and do not change what is computed, or whose feature another key, which must
# be off, would have to switch on. Every key that is neither here nor compared must be off: some of them import modules.
INFORMATIVE_KEYS: Final = frozenset(
    {
        "base_model_name_or_path", "inference_mode", "init_lora_weights", "lora_dropout", "megatron_core",
        "peft_version", "qalora_group_size", "revision", "task_type",
    }
)  # fmt: skip
_MODULE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
MATRIX: Final = re.compile(r"(?P<path>.+)\.lora_(?:embedding_)?(?P<side>[AB])(?:\.weight)?")


def require_sane_lora(what: str, lora: LoraConfig) -> None:
    """Raises VerificationError that begins with `what` for a shape that no adapter has."""
    if not 1 <= lora.rank <= MAX_RANK or not 1 <= lora.alpha <= MAX_ALPHA:
        raise VerificationError(f"{what}: rank {lora.rank} or alpha {lora.alpha} is out of range")
    if lora.dropout_micros >= DROPOUT_BELOW_MICROS or lora.tensor_type not in DTYPES:
        raise VerificationError(f"{what}: dropout or tensor type is out of range")
    modules = [target.module for target in lora.targets]
    if not 1 <= len(modules) <= MAX_TARGETS or len(set(modules)) != len(modules):
        raise VerificationError(f"{what}: does not name 1 to {MAX_TARGETS} targets, each once")
    for target in lora.targets:
        if not (target.matched and target.in_features and target.out_features):
            raise VerificationError(f"{what}: target {target.module!r} matches nothing")
    for module in [*modules, *lora.full_modules]:
        if not _MODULE.fullmatch(module) or (module in lora.full_modules and "embed" in module):
            raise VerificationError(f"{what}: {module!r} is not a module that an adapter may hold")


def require_weights(what: str, data: bytes, lora: LoraConfig) -> None:
    """Raises VerificationError unless `data` is a safetensors file of exactly the matrices that `lora` describes."""
    tensors, body_bytes = read_header(what, data)
    _require_contiguous(what, tensors, body_bytes)
    targets = {target.module: target for target in lora.targets}
    seen: Counter[tuple[str, str]] = Counter()
    for name, (dtype, shape, _, _) in tensors.items():
        if dtype != DTYPES[lora.tensor_type][0]:
            raise VerificationError(f"{what}: tensor {name} is {dtype}, not {DTYPES[lora.tensor_type][0]}")
        matrix = MATRIX.fullmatch(name)
        target = targets.get(matrix["path"].rpartition(".")[2]) if matrix else None
        if matrix and target:
            _require_shape(what, name, shape, matrix["side"], target, lora.rank)
            seen[target.module, matrix["side"]] += 1
        elif not _is_full(name, lora.full_modules):
            raise VerificationError(f"{what}: tensor {name} belongs to no target")
    for target in lora.targets:
        for side in "AB":
            if seen[target.module, side] != target.matched:
                count = seen[target.module, side]
                raise VerificationError(
                    f"{what}: {target.module} has {count} {side} matrices, not {target.matched}"
                )


def require_config(what: str, data: bytes, lora: LoraConfig) -> None:
    """Raises VerificationError unless `data` is a PEFT configuration that says what `lora` says and nothing more."""
    config = _read_json(what, data)
    expected: dict[str, object] = {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "bias": "none",
        "use_rslora": lora.rank_stabilised,
    }
    for key, value in expected.items():
        if config.get(key, False if value is False else None) != value:
            raise VerificationError(f"{what}: {key} is {config.get(key)!r}, not {value!r}")
    lists = {"target_modules": {t.module for t in lora.targets}, "modules_to_save": set(lora.full_modules)}
    for key, names in lists.items():
        value = config.get(key) or []
        if (
            not isinstance(value, list)
            or not all(isinstance(item, str) for item in value)
            or set(value) != names
        ):
            raise VerificationError(f"{what}: {key} is not {sorted(names)}")
    for key in config.keys() - expected.keys() - lists.keys() - INFORMATIVE_KEYS:
        if config[key]:
            raise VerificationError(f"{what}: {key} is set, which no verified adapter may use")


Tensor = tuple[str, list[int], int, int]
"""Number format, shape, first byte and byte just past the last."""


def read_header(what: str, data: bytes) -> tuple[dict[str, Tensor], int]:
    """The tensors by name and the size of what follows the header; see the safetensors format.

    Only slices of `data` are taken, so that a mapped file is read no further than its header.
    """
    length = int.from_bytes(data[:HEADER_LENGTH_BYTES], "little")
    start = HEADER_LENGTH_BYTES + length
    if len(data) < start or not 0 < length <= MAX_HEADER_BYTES:
        raise VerificationError(f"{what}: is not a safetensors file")
    header = _read_json(what, data[HEADER_LENGTH_BYTES:start])
    header.pop("__metadata__", None)
    return {name: _read_tensor(f"{what}: tensor {name[:128]}", value) for name, value in header.items()}, len(
        data
    ) - start


def _read_tensor(what: str, value: Any) -> Tensor:  # parsed JSON of any kind
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise VerificationError(f"{what} has no dtype, shape and offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != len(("begin", "end")):
        raise VerificationError(f"{what} has a broken shape or broken offsets")
    return str(dtype), shape, offsets[0], offsets[1]


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _require_contiguous(what: str, tensors: Mapping[str, Tensor], body_bytes: int) -> None:
    """Every byte belongs to exactly one tensor: nothing can hide between them."""
    widths: dict[str, int] = dict(DTYPES.values())
    position = 0
    for name, (dtype, shape, begin, end) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if begin != position or end - begin != math.prod(shape) * widths.get(dtype, 0):
            raise VerificationError(
                f"{what}: tensor {name} does not fill bytes {begin} to {end} after {position}"
            )
        position = end
    if position != body_bytes:
        raise VerificationError(f"{what}: holds {body_bytes} bytes of data, its tensors {position}")


def _require_shape(what: str, name: str, shape: list[int], side: str, target: LoraTarget, rank: int) -> None:
    expected = [rank, target.in_features] if side == "A" else [target.out_features, rank]
    if shape != expected:
        raise VerificationError(f"{what}: tensor {name} has shape {shape}, not {expected}")


def _is_full(name: str, full_modules: Iterable[str]) -> bool:
    parts = name.split(".")
    return parts[-1] in {"weight", "bias"} and len(parts) > 1 and parts[-2] in set(full_modules)


def _read_json(what: str, data: bytes) -> dict[str, Any]:  # parsed JSON of any kind
    try:
        value = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"{what}: is not JSON without repeated keys") from error
    if not isinstance(value, dict):
        raise VerificationError(f"{what}: is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # parsed JSON of any kind
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a repeated key")
    return value
