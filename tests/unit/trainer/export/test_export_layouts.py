"""Every layout says what PEFT says, and one that does not is not handed out; on a tiny random model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kala.common.v1.clearance_pb2 import Principal
from kala.errors import FailedPreconditionError, InvalidArgumentError, VerificationError
from kala.trainer.v1.registry_pb2 import ExportFormat
from services.common.adapter_manifest import MANIFEST_FILE
from services.common.file_set import file_set_digest
from services.inference.config import EMBEDDED_MODEL_DIR
from services.inference.pythia.weights import check as check_weights
from services.trainer.export import comparing, gguf_writing, run
from services.trainer.export.comparing import (
    Spoken,
    compared,
    compared_tokens,
    hf_logits,
    reference_of,
    require_passed,
)
from services.trainer.export.gguf_reading import read_gguf
from services.trainer.export.gguf_writing import pre_tokenizer_of, write_lora_gguf, write_merged_gguf
from services.trainer.export.merging import write_merged
from services.trainer.export.mlx_layout import write_mlx
from services.trainer.export.source import AdapterSource, BaseSource, read_adapter, read_base
from services.trainer.registry.bases import base_files
from services.trainer.work.order import EXPORT, AdapterPlace, BasePlace, Order
from tests.fakes.tiny_adapters import TinyAdapter

pytestmark = pytest.mark.torch

HEAVY = {
    **{f"gpt_neox.layers.{layer}.attention.query_key_value": (32, 96) for layer in range(2)},
    **{f"gpt_neox.layers.{layer}.mlp.dense_h_to_4h": (32, 128) for layer in range(2)},
    "gpt_neox.embed_in": (1792, 32),
    "lm_head": (32, 1792),
}
FEW = 12
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"


def quiet(_: int) -> None:
    """Nobody asks how far it is."""


@dataclass(frozen=True, slots=True)
class World:
    """A base, an adapter and what PEFT makes of them."""

    base: BaseSource
    adapter: AdapterSource
    spoken: Sequence[Spoken]
    folder: Path

    def check(self, logits: Callable[[list[int]], Any], *, most: float = 1e-3) -> None:
        require_passed(compared(self.spoken, logits, most_difference=most, least_equal=1))


def make_base(directory: Path) -> Path:
    """Random weights, and the embedded model's tokenizer, which merges and cuts digits."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(3)
    config = GPTNeoXConfig(
        vocab_size=1792, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=160, bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EMBEDDED_MODEL_DIR / name, directory / name)
    return directory


@pytest.fixture(scope="module", params=[False, True], ids=["alpha over rank", "rank stabilised"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("exports")
    base = make_base(folder / "base")
    adapter = TinyAdapter(base, modules=HEAVY, rank_stabilised=request.param, template=TEMPLATE, strength=0.1)
    adapter.write(folder / "adapter")
    patch = pytest.MonkeyPatch()
    few = comparing.prompts()[:: comparing.PROMPTS // FEW]
    with patch.context() as context:
        context.setattr(comparing, "prompts", lambda: few)
        context.setattr(comparing, "LOGITS_EVERY", 1)
        spoken = reference_of(base, folder / "adapter", chat_template=TEMPLATE)
    return World(read_base(base), read_adapter(folder / "adapter"), spoken, folder)


def test_prompts_are_200_and_no_two_alike() -> None:
    assert len(set(comparing.prompts())) == comparing.PROMPTS


def test_a_merge_says_what_peft_says_and_the_base_does_not(world: World, tmp_path: Path) -> None:
    write_merged(world.base, world.adapter, tmp_path, "", quiet)
    world.check(hf_logits(tmp_path))
    # The names are those of Pythia's files, whatever this release calls its head.
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert "embed_out.weight" in set(file.keys())
    with pytest.raises(FailedPreconditionError, match="differs from what was trained"):
        world.check(hf_logits(world.base.directory))


def test_a_merge_keeps_the_template_that_was_trained_with(world: World, tmp_path: Path) -> None:
    write_merged(world.base, world.adapter, tmp_path, "f16", quiet)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"


def test_an_adapter_that_meets_no_weight_is_not_merged_in_part(world: World, tmp_path: Path) -> None:
    stray = {"gpt_neox.layers.9.attention.dense.weight": next(iter(world.adapter.pairs.values()))}
    lost = replace(world.adapter, pairs={**world.adapter.pairs, **stray})
    with pytest.raises(VerificationError, match=r"the base has no gpt_neox\.layers\.9"):
        write_merged(world.base, lost, tmp_path, "", quiet)


@pytest.mark.parametrize(("weight_format", "most"), [("f32", 0.02), ("f16", 0.1), ("bf16", 1), ("q8_0", 3)])
def test_a_merged_gguf_has_the_same_tokens_and_text(
    world: World, tmp_path: Path, weight_format: str, most: float
) -> None:
    write_merged_gguf(world.base, world.adapter, tmp_path, weight_format, quiet)
    model = read_gguf(tmp_path / "model.gguf")
    tokenizer = model.tokenizer()
    assert compared_tokens(
        world.spoken, lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    ).passed
    assert model.facts["tokenizer.chat_template"] == TEMPLATE
    assert (model.facts["gptneox.rope.dimension_count"], model.facts["gptneox.rope.freq_base"]) == (4, 10_000)
    # Random weights lie nearer to ties than trained ones: of rounded ones only the logits are held.
    least = 1 if weight_format == "f32" else 0
    require_passed(compared(world.spoken, model.logits, most_difference=most, least_equal=least))


def test_an_adapter_s_gguf_beside_the_base_says_what_peft_says(world: World, tmp_path: Path) -> None:
    write_merged_gguf(world.base, replace(world.adapter, pairs={}), tmp_path, "f32", quiet)
    write_lora_gguf(world.base, world.adapter, tmp_path, quiet)
    world.check(read_gguf(tmp_path / "model.gguf", lora=tmp_path / "adapter.gguf").logits, most=0.02)
    with pytest.raises(FailedPreconditionError, match="differs from what was trained"):
        world.check(read_gguf(tmp_path / "model.gguf").logits, most=0.02)


def test_heads_in_the_wrong_order_are_found(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_writing, "_arranged", lambda name, tensor, heads: tensor)
    write_merged_gguf(world.base, world.adapter, tmp_path, "f32", quiet)
    with pytest.raises(FailedPreconditionError, match="max_logit_difference"):
        world.check(read_gguf(tmp_path / "model.gguf").logits, most=0.02)


@pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed")
def test_mlx_reads_its_layout_and_says_what_peft_says(world: World, tmp_path: Path) -> None:
    import mlx.core as mx
    import numpy as np
    import torch
    from mlx_lm.utils import load_model

    write_mlx(world.base, world.adapter, tmp_path, "f32", quiet)
    assert (tmp_path / "chat_template.jinja").read_text() == TEMPLATE
    model, _ = load_model(tmp_path)
    world.check(lambda ids: torch.from_numpy(np.array(model(mx.array([ids]))[0])), most=0.02)


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}},
        {"pre_tokenizer": {"type": "ByteLevel"}, "normalizer": {"type": "Lowercase"}},
        {},
    ],
)  # fmt: skip
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(tokenizer: dict) -> None:
    with pytest.raises(FailedPreconditionError, match="export the adapter as MERGED or MLX"):
        pre_tokenizer_of(tokenizer)


@pytest.mark.parametrize(("write", "name"), [(write_merged, "q8_0"), (write_merged_gguf, "q2_k")])
def test_an_unknown_number_format_is_named(world: World, tmp_path: Path, write, name: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        write(world.base, world.adapter, tmp_path, name, quiet)
    assert refused.value.field == "weight_format"


@pytest.mark.parametrize(
    ("change", "match"),
    [({"model_type": "llama"}, "only gpt_neox"), ({"tie_word_embeddings": True}, "ties its embeddings")],
)
def test_a_base_that_cannot_be_merged_is_refused(
    world: World, tmp_path: Path, change: dict, match: str
) -> None:
    config = json.loads((world.base.directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(FailedPreconditionError, match=match):
        read_base(tmp_path)


def test_a_classifier_is_not_exported_as_text(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"r": 2, "lora_alpha": 4, "modules_to_save": ["score"]})
    )
    with pytest.raises(FailedPreconditionError, match="as PEFT only"):
        read_adapter(tmp_path)


def order_of(world: World, folder: Path, kind: str, weight_format: str = "") -> Order:
    folder.mkdir()
    base = world.base.directory
    manifest = (world.folder / "adapter" / MANIFEST_FILE).read_bytes()
    return Order(
        kind=EXPORT, name="operations/x", folder=folder, principal=Principal(), deadline=9e9,
        base=BasePlace("tiny", base, file_set_digest(base_files(base))),
        adapter=AdapterPlace("adapters/tone@1", world.folder / "adapter", hashlib.sha256(manifest).digest()),
        settings={"format": ExportFormat.Value(f"EXPORT_FORMAT_{kind}"), "weight_format": weight_format},
    )  # fmt: skip


class Phases(list):
    """Hears how far it is."""

    def write(self, message) -> None:
        if message.phase not in self:
            self.append(message.phase)


@pytest.fixture
def fewer_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    few = comparing.prompts()[:: comparing.PROMPTS // FEW]
    monkeypatch.setattr(comparing, "prompts", lambda: few)


@pytest.mark.usefixtures("fewer_prompts")
def test_a_merged_export_is_a_base_with_its_own_digest(world: World, tmp_path: Path) -> None:
    phases = Phases()
    result = run.main(order_of(world, tmp_path / "work", "MERGED"), phases)
    made = tmp_path / "work" / "export"
    assert bytes.fromhex(result["model_digest"]) == file_set_digest(base_files(made))
    # Inference serves it as a base of that very digest, every file held against the manifest beside it.
    assert check_weights(made).base_digest.hex() == result["model_digest"]
    assert {file["name"] for file in result["files"]} >= {
        "model.safetensors",
        "tokenizer.json",
        "manifest.json",
        "README.md",
    }
    assert all(check["passed"] for check in result["checks"])
    assert phases == ["merging", "writing", "comparing"]
    assert "left KALA's guard" in (made / "README.md").read_text()


@pytest.mark.usefixtures("fewer_prompts")
def test_an_export_that_differs_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "BOUNDS", dict.fromkeys(run.BOUNDS, (0.0, 1.0)))
    with pytest.raises(FailedPreconditionError) as refused:
        run.main(order_of(world, tmp_path / "work", "MERGED", "bf16"), Phases())
    assert refused.value.reason == "EXPORT_DIFFERS"


def test_an_adapter_that_changed_since_it_was_signed_is_not_exported(world: World, tmp_path: Path) -> None:
    order = order_of(world, tmp_path / "work", "PEFT")
    changed = tmp_path / "changed"
    shutil.copytree(world.folder / "adapter", changed)
    with (changed / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    place = replace(order.adapter, directory=changed) if order.adapter else None
    with pytest.raises(VerificationError, match=r"adapter_model\.safetensors: SHA-256"):
        run.main(replace(order, adapter=place), Phases())


def test_a_peft_export_is_the_adapter_with_its_passport(world: World, tmp_path: Path) -> None:
    run.main(order_of(world, tmp_path / "work", "PEFT"), Phases())
    made, source = tmp_path / "work" / "export", world.folder / "adapter"
    assert {path.name: path.read_bytes() for path in made.iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()
    }
