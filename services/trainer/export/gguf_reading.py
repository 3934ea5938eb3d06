"""Runs a GGUF file as llama.cpp would: its tensors, its keys and its tokenizer, by llama.cpp's meaning of them.

It shares no code with the writer, so that a mistake there shows here: heads in the wrong order, a lost key, another cut of
the text. Of llama.cpp it takes the graph of `gptneox` and the approximation of GELU; it is for comparing, not for serving.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.errors import VerificationError

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

PREFIX: Final = "gptneox."
DIGITS: Final = "smollm"
PLAIN: Final = "gpt-2"
CONTROL: Final = 3
USER_DEFINED: Final = 4


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A file's facts and tensors, and an adapter's beside them."""

    facts: Mapping[str, Any]  # what GGUF's keys hold
    tensors: Mapping[str, torch.Tensor]
    lora: Mapping[str, torch.Tensor]
    lora_alpha: float

    def logits(self, ids: list[int]) -> torch.Tensor:
        """The logits after each token, [tokens, vocabulary], in fp32."""
        import torch

        with torch.no_grad():
            x = self._embedded(ids)
            for layer in range(int(self.facts[f"{PREFIX}block_count"])):
                x = self._layer(f"blk.{layer}.", x)
            x = self._norm("output_norm", x)
            return self._product("output.weight", x)

    def _layer(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        attended = self._attended(prefix, self._norm(f"{prefix}attn_norm", x))
        if not self.facts[f"{PREFIX}use_parallel_residual"]:
            x = x + attended
            return x + self._inner(prefix, self._norm(f"{prefix}ffn_norm", x))
        return x + attended + self._inner(prefix, self._norm(f"{prefix}ffn_norm", x))

    def _attended(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        heads = int(self.facts[f"{PREFIX}attention.head_count"])
        queries, keys, values = self._linear(f"{prefix}attn_qkv", x).chunk(3, dim=-1)
        split = [part.reshape(len(x), heads, -1).transpose(0, 1) for part in (queries, keys, values)]
        rotated = functional.scaled_dot_product_attention(
            self._rotated(split[0])[None], self._rotated(split[1])[None], split[2][None], is_causal=True
        )[0]
        return self._linear(f"{prefix}attn_output", rotated.transpose(0, 1).reshape(len(x), -1))

    def _inner(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        wide = functional.gelu(self._linear(f"{prefix}ffn_up", x), approximate="tanh")
        return self._linear(f"{prefix}ffn_down", wide)

    def _rotated(self, heads: torch.Tensor) -> torch.Tensor:
        """Rotates the first dimensions of each head in pairs that lie half of them apart."""
        import torch

        count = int(self.facts[f"{PREFIX}rope.dimension_count"])
        frequencies = float(self.facts[f"{PREFIX}rope.freq_base"]) ** (
            -torch.arange(0, count, 2).float() / count
        )
        angles = torch.arange(heads.shape[1]).float()[:, None] * frequencies
        half = count // 2
        first, second, rest = heads[..., :half], heads[..., half:count], heads[..., count:]
        turned = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
        return torch.cat([*turned, rest], dim=-1)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        epsilon = float(self.facts[f"{PREFIX}attention.layer_norm_epsilon"])
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], weight, bias, epsilon)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._product(f"{name}.weight", x) + self.tensors[f"{name}.bias"]

    def _product(self, name: str, x: torch.Tensor) -> torch.Tensor:
        out = x @ self.tensors[name].T
        if f"{name}.lora_a" not in self.lora:
            return out
        a, b = self.lora[f"{name}.lora_a"], self.lora[f"{name}.lora_b"]
        return out + x @ a.T @ b.T * (self.lora_alpha / b.shape[1])

    def _embedded(self, ids: list[int]) -> torch.Tensor:
        name = "token_embd.weight"
        out = self.tensors[name][ids]
        if f"{name}.lora_a" not in self.lora:
            return out
        a, b = self.lora[f"{name}.lora_a"], self.lora[f"{name}.lora_b"]
        return out + a[ids] @ b.T * (self.lora_alpha / b.shape[1])

    def tokenizer(self) -> Tokenizer:
        """How llama.cpp would cut text by this file's keys; raises VerificationError for a cut that is not known here."""
        from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

        tokens: list[str] = self.facts["tokenizer.ggml.tokens"]
        kinds: list[int] = self.facts["tokenizer.ggml.token_type"]
        merges = [tuple(item.split(" ")) for item in self.facts["tokenizer.ggml.merges"]]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        bytes_: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
        cuts: dict[str, Any] = {
            PLAIN: bytes_,
            DIGITS: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_]),
        }
        pre = self.facts["tokenizer.ggml.pre"]
        if pre not in cuts:
            raise VerificationError(f"GGUF: the pre-tokenizer {pre!r} is not one that is written here")
        made.pre_tokenizer = cuts[pre]
        special = [
            token for token, kind in zip(tokens, kinds, strict=True) if kind in {CONTROL, USER_DEFINED}
        ]
        made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        return made


def read_gguf(path: Path, *, lora: Path | None = None) -> GgufModel:
    """Reads a model's file, with an adapter's beside it where one is named; all of it is held in fp32."""
    facts, tensors = _read(path)
    adapter_facts, matrices = ({}, {}) if lora is None else _read(lora)
    architecture = facts["general.architecture"]
    if architecture != PREFIX.removesuffix(".") or (
        lora is not None
        and (adapter_facts["general.architecture"], adapter_facts["adapter.type"]) != (architecture, "lora")
    ):
        raise VerificationError(
            f"GGUF: {path.name} is a {architecture} model, or its adapter is none of that"
        )
    alpha = float(adapter_facts.get("adapter.lora.alpha", math.nan))
    return GgufModel(facts, tensors, matrices, alpha)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:  # what GGUF's keys hold
    import gguf
    import torch

    reader = gguf.GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    tensors: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        # GGUF counts dimensions from the fastest one.
        shape = [int(size) for size in reversed(tensor.shape.tolist())]
        tensors[tensor.name] = torch.from_numpy(numbers.copy()).reshape(shape).float()
    return facts, tensors
