"""What an adapter's own files say of it: which modules it changes, of what size, in what numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kala.common.v1.adapter_pb2 import LoraConfig, LoraTarget, TensorType
from kala.errors import VerificationError
from services.common.adapter_weights import (
    CONFIG_FILE,
    DTYPES,
    MATRIX,
    WEIGHTS_FILE,
    read_header,
    require_config,
    require_sane_lora,
    require_weights,
)

MICROS: Final = 1_000_000
REQUESTED_AS: Final[Mapping[str, str]] = {"lm_head": "embed_out"}
"""The name that users and Pythia's own files have for a module, by the name that it has once it is loaded."""


@dataclass(frozen=True, slots=True)
class _Matrices:
    """The matrices of one target, as the header has them."""

    matched: int
    in_features: int
    out_features: int


def read_shape(config: bytes, weights: bytes, *, requested: Iterable[str]) -> LoraConfig:
    """The shape of an adapter, from its configuration and the header of its weights; `requested` are the user's targets.

    Raises VerificationError where the two do not agree with each other, or with what any adapter may hold.
    """
    asked = set(requested)
    value = _read_config(config)
    tensors, _ = read_header(f"file {WEIGHTS_FILE}", weights)
    found = _targets(tensors)
    lora = LoraConfig(
        rank=_number(value, "r"),
        alpha=_number(value, "lora_alpha"),
        dropout_micros=round(float(value.get("lora_dropout") or 0) * MICROS),
        rank_stabilised=value.get("use_rslora") is True,
        tensor_type=_tensor_type(dtype for dtype, _, _, _ in tensors.values()),
        full_modules=sorted(value.get("modules_to_save") or []),
        targets=[
            LoraTarget(
                module=module,
                requested=_requested(module, asked),
                matched=matrices.matched,
                in_features=matrices.in_features,
                out_features=matrices.out_features,
            )
            for module, matrices in sorted(found.items())
        ],
    )
    require_sane_lora("lora", lora)
    require_config(f"file {CONFIG_FILE}", config, lora)
    require_weights(f"file {WEIGHTS_FILE}", weights, lora)
    return lora


def _targets(tensors: Mapping[str, tuple[str, list[int], int, int]]) -> dict[str, _Matrices]:
    counts: Counter[str] = Counter()
    sizes: dict[str, list[int]] = {}
    for name, (_, shape, _, _) in tensors.items():
        matrix = MATRIX.fullmatch(name)
        if matrix is None or len(shape) != len(("rows", "columns")):
            continue
        module = matrix["path"].rpartition(".")[2]
        side = "AB".index(matrix["side"])
        counts[module] += 1 - side
        # A is [rank, inputs], B is [outputs, rank].
        sizes.setdefault(module, [0, 0])[side] = shape[1 - side]
    return {module: _Matrices(counts[module], *size) for module, size in sizes.items()}


def _requested(module: str, asked: set[str]) -> str:
    name = REQUESTED_AS.get(module, "")
    return name if name in asked and module not in asked else ""


def _tensor_type(dtypes: Iterable[str]) -> TensorType.ValueType:
    found = set(dtypes)
    kinds = [kind for kind, (name, _) in DTYPES.items() if found == {name}]
    if not kinds:
        raise VerificationError(f"file {WEIGHTS_FILE}: its tensors are {', '.join(sorted(found)) or 'none'}")
    return kinds[0]


def _number(config: Mapping[str, Any], key: str) -> int:  # parsed JSON of any kind
    value = config.get(key)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise VerificationError(f"file {CONFIG_FILE}: {key} is {value!r}, no whole number above 0")
    return value


def _read_config(data: bytes) -> dict[str, Any]:  # parsed JSON of any kind
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"file {CONFIG_FILE}: is not JSON") from error
    if not isinstance(value, dict):
        raise VerificationError(f"file {CONFIG_FILE}: is not a JSON object")
    return value
