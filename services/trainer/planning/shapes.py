"""The shapes of GPT-NeoX models: presets of the published Pythias, and what a configuration says; no weights needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kala.errors import VerificationError

ARCHITECTURE: Final = "gpt_neox"
MAX_CONFIG_BYTES: Final = 1 << 20
MAX_SIZE: Final = 1 << 24
"""Larger than any dimension of a model, small enough that no product of two overflows what a message holds."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that decide parameters, memory and targets."""

    layers: int
    hidden: int
    heads: int
    inner: int
    """Width of the MLP."""
    vocabulary: int
    context_tokens: int
    is_tied: bool = False

    @property
    def layer_parameters(self) -> int:
        """Parameters of all layers and of the norm after them."""
        hidden, inner = self.hidden, self.inner
        attention = hidden * 3 * hidden + 3 * hidden + hidden * hidden + hidden
        mlp = 2 * hidden * inner + inner + hidden
        return self.layers * (attention + mlp + 4 * hidden) + 2 * hidden

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding and the head."""
        return self.vocabulary * self.hidden * (1 if self.is_tied else 2)

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.layer_parameters + self.embedding_parameters


EMBEDDED: Final = "kala-embedded"

_CONTEXT: Final = 2_048
_VOCABULARY: Final = 50_304

PRESETS: Final = {
    "pythia-70m": Shape(6, 512, 8, 2_048, _VOCABULARY, _CONTEXT),
    "pythia-160m": Shape(12, 768, 12, 3_072, _VOCABULARY, _CONTEXT),
    "pythia-410m": Shape(24, 1_024, 16, 4_096, _VOCABULARY, _CONTEXT),
    "pythia-1b": Shape(16, 2_048, 8, 8_192, _VOCABULARY, _CONTEXT),
    "pythia-1.4b": Shape(24, 2_048, 16, 8_192, _VOCABULARY, _CONTEXT),
    "pythia-2.8b": Shape(32, 2_560, 32, 10_240, _VOCABULARY, _CONTEXT),
    "pythia-6.9b": Shape(32, 4_096, 32, 16_384, 50_432, _CONTEXT),
    "pythia-12b": Shape(36, 5_120, 40, 20_480, 50_688, _CONTEXT),
}
"""The published Pythias; the vocabulary is padded to another multiple in the two largest."""


def read_shape(config_file: Path) -> Shape:
    """The shape that a model's config.json states; raises VerificationError naming what is wrong."""
    try:
        with config_file.open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
        architecture = config["model_type"]
        layers, hidden, heads, inner, vocabulary, context = sizes = [
            config[key]
            for key in (
                "num_hidden_layers",
                "hidden_size",
                "num_attention_heads",
                "intermediate_size",
                "vocab_size",
                "max_position_embeddings",
            )
        ]
        is_tied = bool(config.get("tie_word_embeddings", False))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(f"{config_file.name}: is not the configuration of a model") from error
    if architecture != ARCHITECTURE:
        raise VerificationError(
            f"{config_file.name}: is a {architecture} model; only {ARCHITECTURE} is trained"
        )
    if not all(type(size) is int and 0 < size <= MAX_SIZE for size in sizes):
        raise VerificationError(f"{config_file.name}: names sizes that no model has")
    return Shape(layers, hidden, heads, inner, vocabulary, context, is_tied)
