"""Real LoRA adapters for the tiny GPT-NeoX model: random matrices, whole passports, and the merged model to compare with."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kala.common.v1 import adapter_pb2 as pb
from services.common import adapter_manifest as am
from services.common.adapter_weights import CONFIG_FILE, WEIGHTS_FILE
from services.common.file_set import file_set_digest
from services.inference.pythia.weights import BASE_SUFFIXES, MANIFEST
from tests.fakes.adapters import AdapterWorld, peft_config, reference

if TYPE_CHECKING:
    import torch

RANK, ALPHA = 4, 32
PREFIX = "base_model.model."
MODULES = {
    # Inputs and outputs of each, as tests.fakes.tiny_pythia makes them.
    "gpt_neox.layers.0.attention.query_key_value": (32, 96),
    "gpt_neox.embed_in": (260, 32),
    "lm_head": (32, 260),
}


@dataclass
class TinyAdapter:
    """One adapter of the model in `base`."""

    base: Path
    name: str = "adapters/tone@1"
    seed: int = 1
    template: str = ""
    rank_stabilised: bool = False
    modules: Mapping[str, tuple[int, int]] = field(default_factory=lambda: MODULES)
    strength: float = 0.2
    """How far the matrices' numbers lie from nought."""
    matrices: dict[str, torch.Tensor] = field(init=False)
    world: AdapterWorld = field(init=False)

    def __post_init__(self) -> None:
        import torch
        from safetensors.torch import save

        random = torch.Generator().manual_seed(self.seed)
        self.matrices = {}
        for path, (inputs, outputs) in self.modules.items():
            kind = "lora_embedding_{}" if path.endswith("embed_in") else "lora_{}.weight"
            for side, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                tensor = torch.randn(shape, generator=random) * self.strength
                if side == "B" and path == "lm_head":
                    # As in the base: no end token is ever the likeliest, so an answer is as long as its limit.
                    tensor[:4] = 0
                self.matrices[f"{PREFIX}{path}.{kind.format(side)}"] = tensor
        files = {
            WEIGHTS_FILE: save(self.matrices),
            CONFIG_FILE: peft_config(
                r=RANK, lora_alpha=ALPHA, use_rslora=self.rank_stabilised,
                target_modules=[path.rpartition(".")[2] for path in self.modules],
            ),
        }  # fmt: skip
        if self.template:
            files["chat_template.jinja"] = self.template.encode()
        self.world = AdapterWorld(files=files, on_description=self.describe)

    def describe(self, description: pb.AdapterDescription) -> None:
        """Turn the sample passport into this adapter's."""
        base_files = [
            reference(path.name, path.read_bytes())
            for path in sorted(self.base.iterdir())
            if path.suffix in BASE_SUFFIXES and path.name != MANIFEST
        ]
        self.world.base_digest = digest = file_set_digest(base_files)
        description.name = self.name
        description.base.digest = description.base.root_digest = digest
        del description.base.files[:]
        description.base.files.extend(base_files)
        description.chat_template = "chat_template.jinja" if self.template else ""
        description.lora.rank, description.lora.alpha = RANK, ALPHA
        description.lora.rank_stabilised = self.rank_stabilised
        del description.lora.targets[:]
        for path, (inputs, outputs) in self.modules.items():
            description.lora.targets.add(
                module=path.rpartition(".")[2], matched=1, in_features=inputs, out_features=outputs
            )

    def write(self, folder: Path) -> pb.SignedAdapterManifest:
        """Write the adapter's folder and give its signed manifest."""
        signed = self.world.signed()
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.world.files.items():
            (folder / name).write_bytes(data)
        (folder / am.MANIFEST_FILE).write_bytes(signed.SerializeToString())
        return signed

    def merge_into(self, directory: Path) -> None:
        """Add it to the weights of the model in `directory` for good."""
        import torch
        from transformers import GPTNeoXForCausalLM

        model = GPTNeoXForCausalLM.from_pretrained(directory)
        scale = ALPHA / (math.sqrt(RANK) if self.rank_stabilised else RANK)
        modules = dict(model.named_modules())
        with torch.no_grad():
            for path in self.modules:
                side = "lora_embedding_{}" if path.endswith("embed_in") else "lora_{}.weight"
                a, b = (self.matrices[f"{PREFIX}{path}.{side.format(one)}"] for one in "AB")
                change = b @ a * scale
                modules[path].weight += change.T if path.endswith("embed_in") else change
        config = json.loads((directory / "config.json").read_text())
        model.save_pretrained(directory)
        (directory / "config.json").write_text(json.dumps(config))


def merged(base: Path, directory: Path, *adapters: TinyAdapter) -> Path:
    """Make a copy of the base that the adapters are merged into."""
    shutil.copytree(base, directory)
    for adapter in adapters:
        adapter.merge_into(directory)
    return directory
