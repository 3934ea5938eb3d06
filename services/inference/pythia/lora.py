"""Applies LoRA adapters to single rows of a batch, so that requests with different adapters share one pass.

The base's weights are never changed: each target module's output gets `scale * B(A(x))` added in the rows that ask for
it.  It does what merging would do, whatever numbers the base is held in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kala.errors import VerificationError

if TYPE_CHECKING:
    import torch

    from kala.common.v1.adapter_pb2 import LoraConfig

PREFIX: Final = "base_model.model."
"""What PEFT puts before a module's name."""

# Unknown to every stub: torch's modules are used through a handful of calls.
Untyped = Any


@dataclass(frozen=True, slots=True)
class Pair:
    """The two matrices of one module: A is [rank, inputs], B is [outputs, rank] and already scaled."""

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LoraAdapter:
    """An adapter in memory."""

    name: str
    digest: bytes
    pairs: Mapping[str, Pair]
    """By the module's full name."""
    chat_template: str = ""


def read_pairs(weights: bytes, lora: LoraConfig, model: Untyped) -> dict[str, Pair]:
    """Read verified weights for this model; raises VerificationError for a module that it does not have so."""
    from safetensors.torch import load

    modules: dict[str, Untyped] = dict(model.named_modules())
    scale = lora.alpha / (math.sqrt(lora.rank) if lora.rank_stabilised else lora.rank)
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load(weights).items():
        path, _, side = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
        sides.setdefault(path, {})[side.removeprefix("embedding_")] = tensor
    pairs: dict[str, Pair] = {}
    for path, matrices in sides.items():
        module = modules.get(path)
        if module is None or _shape(module) != (matrices["B"].shape[0], matrices["A"].shape[1]):
            raise VerificationError(f"adapter: the model has no module {path} of the adapter's shape")
        to = {"device": model.device, "dtype": model.dtype}
        pairs[path] = Pair(matrices["A"].to(**to), (matrices["B"] * scale).to(**to))
    return pairs


class AdapterRows:
    """Which rows of the present pass use which adapter; hooks in the model look here."""

    def __init__(self, model: Untyped) -> None:
        self._modules: dict[str, Untyped] = dict(model.named_modules())
        self._hooks: dict[str, Untyped] = {}
        self._present: list[tuple[LoraAdapter, torch.Tensor | None]] = []

    def hook(self, adapter: LoraAdapter) -> None:
        """Let the modules that an adapter changes look for it; stays, and costs nothing while nobody uses it."""
        for path in adapter.pairs:
            if path not in self._hooks:
                module = self._modules[path]
                add = _add_to_embedding if _is_embedding(module) else _add_to_linear
                self._hooks[path] = module.register_forward_hook(self._hooked(path, add))

    def use(self, rows: Sequence[Iterable[LoraAdapter]], device: torch.device) -> None:
        """Say which adapters each row of the next passes uses."""
        import torch

        by_adapter: dict[LoraAdapter, list[int]] = {}
        for row, adapters in enumerate(rows):
            for adapter in adapters:
                by_adapter.setdefault(adapter, []).append(row)
        self._present = [
            # All rows are no choice of rows: nothing is gathered then.
            (adapter, None if len(chosen) == len(rows) else torch.tensor(chosen, device=device))
            for adapter, chosen in by_adapter.items()
        ]

    def _hooked(self, path: str, add: Untyped) -> Untyped:
        def hook(_: Untyped, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            for adapter, rows in self._present:
                pair = adapter.pairs.get(path)
                if pair is not None:
                    add(pair, inputs[0], output, rows)

        return hook


def _add_to_linear(pair: Pair, given: torch.Tensor, output: torch.Tensor, rows: torch.Tensor | None) -> None:
    chosen = given if rows is None else given[rows]
    delta = (chosen.to(pair.a.dtype) @ pair.a.T @ pair.b.T).to(output.dtype)
    _add(output, delta, rows)


def _add_to_embedding(pair: Pair, ids: torch.Tensor, output: torch.Tensor, rows: torch.Tensor | None) -> None:
    chosen = ids if rows is None else ids[rows]
    _add(output, (pair.a.T[chosen] @ pair.b.T).to(output.dtype), rows)


def _add(output: torch.Tensor, delta: torch.Tensor, rows: torch.Tensor | None) -> None:
    if rows is None:
        output += delta
    else:
        output.index_add_(0, rows, delta)


def _is_embedding(module: Untyped) -> bool:
    return hasattr(module, "num_embeddings")


def _shape(module: Untyped) -> tuple[int, int]:
    if _is_embedding(module):
        return module.embedding_dim, module.num_embeddings
    return getattr(module, "out_features", 0), getattr(module, "in_features", 0)
