"""What an export is made from: a base's files and an adapter's matrices, read tensor by tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.errors import FailedPreconditionError, VerificationError
from services.common.adapter_weights import CONFIG_FILE, MATRIX, WEIGHTS_FILE

if TYPE_CHECKING:
    import torch

ARCHITECTURE: Final = "gpt_neox"
TEMPLATE_FILE: Final = "chat_template.jinja"
PEFT_PREFIX: Final = "base_model.model."
BUFFERS: Final = (".attention.bias", ".attention.masked_bias", ".attention.rotary_emb.inv_freq")
"""Constants in published Pythia files that belong to no layer."""

HEAD_MODULE: Final = "lm_head"
HEAD_ON_DISK: Final = "embed_out"
EMBEDDING: Final = "embed_in"

# torch and safetensors are used through a handful of calls.
Untyped = Any


@dataclass(frozen=True, slots=True)
class Pair:
    """The two matrices of a module, as they were trained, and their scale."""

    a: torch.Tensor
    """[rank, inputs]."""
    b: torch.Tensor
    """[outputs, rank]."""
    scale: float
    is_embedding: bool

    @property
    def delta(self) -> torch.Tensor:
        """What they add to the module's weight, in fp32 and in the weight's own shape."""
        change = self.b.float() @ self.a.float() * self.scale
        return change.T if self.is_embedding else change


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """An adapter: its pairs by the name of the tensor they change, as Pythia's files name it."""

    directory: Path
    pairs: Mapping[str, Pair]
    rank: int
    alpha: int
    rank_stabilised: bool
    chat_template: str


@dataclass(frozen=True, slots=True)
class BaseSource:
    """A base's directory and configuration."""

    directory: Path
    config: Mapping[str, Any]

    @property
    def shards(self) -> list[Path]:
        """Its weight files."""
        return sorted(self.directory.glob("*.safetensors"))

    def tensors(self, shard: Path) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of one file, one at a time; constants are left out."""
        from safetensors import safe_open

        with safe_open(shard, framework="pt") as file:
            for name in sorted(file.keys()):
                if not name.endswith(BUFFERS):
                    yield name, file.get_tensor(name)

    def chat_template(self) -> str:
        """The base's own chat template; empty where it has none."""
        path = self.directory / "tokenizer_config.json"
        template = json.loads(path.read_bytes()).get("chat_template") if path.is_file() else None
        return template if isinstance(template, str) else ""


def read_base(directory: Path) -> BaseSource:
    """Opens a base; raises FailedPreconditionError for an architecture that is not exported."""
    config: dict[str, Any] = json.loads((directory / "config.json").read_bytes())
    if config.get("model_type") != ARCHITECTURE:
        raise FailedPreconditionError(
            f"the base is a {config.get('model_type')} model; only {ARCHITECTURE} is exported",
            reason="ARCHITECTURE_NOT_EXPORTED",
        )
    if config.get("tie_word_embeddings"):
        raise FailedPreconditionError(
            "the base ties its embeddings: a merge would change both; export it as PEFT",
            reason="TIED_EMBEDDINGS",
        )
    return BaseSource(directory, config)


def read_adapter(directory: Path) -> AdapterSource:
    """Reads an adapter's matrices; raises FailedPreconditionError for one that gives labels."""
    from safetensors.torch import load_file

    config: dict[str, Any] = json.loads((directory / CONFIG_FILE).read_bytes())
    if config.get("modules_to_save"):
        raise FailedPreconditionError(
            "the adapter gives labels; a classifier is exported as PEFT only",
            reason="CLASSIFIER_NOT_EXPORTED",
        )
    rank, alpha = int(config["r"]), int(config["lora_alpha"])
    is_stabilised = bool(config.get("use_rslora"))
    scale = alpha / (math.sqrt(rank) if is_stabilised else rank)
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(directory / WEIGHTS_FILE).items():
        matrix = MATRIX.fullmatch(name)
        if matrix is None:
            raise VerificationError(f"file {WEIGHTS_FILE}: tensor {name} is no LoRA matrix")
        sides.setdefault(matrix["path"].removeprefix(PEFT_PREFIX), {})[matrix["side"]] = tensor
    template = directory / TEMPLATE_FILE
    return AdapterSource(
        directory=directory,
        pairs={
            on_disk(path): Pair(pair["A"], pair["B"], scale, path.rpartition(".")[2] == EMBEDDING)
            for path, pair in sorted(sides.items())
        },
        rank=rank,
        alpha=alpha,
        rank_stabilised=is_stabilised,
        chat_template=template.read_text() if template.is_file() else "",
    )


def on_disk(module: str) -> str:
    """The name of a module's weight in Pythia's files: the head is `lm_head` in memory and `embed_out` on disk."""
    if module == HEAD_MODULE:
        return f"{HEAD_ON_DISK}.weight"
    return f"{module}.weight"


def canonical(name: str) -> str:
    """A tensor's name as Pythia's files have it, whichever release of transformers wrote it."""
    return on_disk(HEAD_MODULE) if name == f"{HEAD_MODULE}.weight" else name
