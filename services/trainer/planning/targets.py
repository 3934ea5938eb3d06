"""Which modules of a GPT-NeoX base a LoRA target means, and what training them takes; without the base's weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kala.common.v1.adapter_pb2 import LoraTarget
from kala.errors import InvalidArgumentError
from services.trainer.planning.shapes import Shape
from services.trainer.planning.yaml_document import did_you_mean, shown

DEFAULT_TARGETS: Final = ("query_key_value", "dense")

RENAMED: Final = {"embed_out": "lm_head"}
"""What files and guides call a module, and what transformers 5 calls it: a target by the old name would train nothing."""

EMBEDDING_MODULES: Final = frozenset({"embed_in", "lm_head"})

FIELD: Final = "lora.target_modules"


def find_targets(shape: Shape, requested: Iterable[str]) -> list[LoraTarget]:
    """One entry per requested name; raises InvalidArgumentError where one matches nothing or cannot be trained."""
    features = _features(shape)
    found: list[LoraTarget] = []
    for name in requested:
        module = RENAMED.get(name, name)
        if module not in features:
            known = [*features, *RENAMED]
            raise InvalidArgumentError(
                FIELD, f"{shown(name)} matches no module of the base{did_you_mean(name, known, known)}"
            )
        if module in {each.module for each in found}:
            raise InvalidArgumentError(FIELD, f"{name!r} names {module} a second time; keep one of them")
        if shape.is_tied and module in EMBEDDING_MODULES:
            raise InvalidArgumentError(
                FIELD,
                f"{name!r} cannot be trained: the base's embedding and head are one matrix (tie_word_embeddings), "
                "and its merge would be wrong; leave embed_in and embed_out out",
            )
        matched, inputs, outputs = features[module]
        found.append(
            LoraTarget(
                module=module,
                requested="" if module == name else name,
                matched=matched,
                in_features=inputs,
                out_features=outputs,
            )
        )
    return found


def trained_parameters(targets: Iterable[LoraTarget], rank: int) -> int:
    """Parameters of the LoRA matrices: rank times inputs plus outputs, for every module."""
    return sum(rank * (each.in_features + each.out_features) * each.matched for each in targets)


def _features(shape: Shape) -> dict[str, tuple[int, int, int]]:
    """Modules, inputs and outputs by the last part of the modules' name."""
    hidden, inner = shape.hidden, shape.inner
    return {
        "query_key_value": (shape.layers, hidden, 3 * hidden),
        "dense": (shape.layers, hidden, hidden),
        "dense_h_to_4h": (shape.layers, hidden, inner),
        "dense_4h_to_h": (shape.layers, inner, hidden),
        "embed_in": (1, shape.vocabulary, hidden),
        "lm_head": (1, hidden, shape.vocabulary),
    }
