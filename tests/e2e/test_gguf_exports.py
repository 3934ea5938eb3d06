"""GGUF exports in a real llama-server: the tokens and the greedy text of 200 prompts are PEFT's.

It is not built here: KALA_TEST_LLAMA_SERVER names the program, or it is on PATH.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from services.inference.config import EMBEDDED_MODEL_DIR
from services.trainer.export.comparing import Spoken, reference_of
from services.trainer.export.gguf_writing import write_lora_gguf, write_merged_gguf
from services.trainer.export.source import AdapterSource, BaseSource, read_adapter, read_base
from tests.fakes.gguf_server import PROGRAM, gguf_server, share_of_equal_cuts, share_of_equal_texts
from tests.fakes.tiny_adapters import TinyAdapter

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.skipif(
        PROGRAM is None, reason="no llama-server on PATH and none named by KALA_TEST_LLAMA_SERVER"
    ),
]

MODULES = {
    **{f"gpt_neox.layers.{layer}.attention.query_key_value": (160, 480) for layer in range(4)},
    **{f"gpt_neox.layers.{layer}.attention.dense": (160, 160) for layer in range(4)},
    "gpt_neox.embed_in": (1792, 160),
    "lm_head": (160, 1792),
}


@dataclass(frozen=True, slots=True)
class World:
    """An adapter of the embedded model that changes what it says, and what PEFT makes of it."""

    base: BaseSource
    adapter: AdapterSource
    spoken: Sequence[Spoken]
    folder: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("gguf")
    # As training leaves it: the first matrices random, the second ones small.
    TinyAdapter(EMBEDDED_MODEL_DIR, modules=MODULES, strength=0.05).write(folder / "adapter")
    spoken = reference_of(EMBEDDED_MODEL_DIR, folder / "adapter", chat_template="")
    return World(read_base(EMBEDDED_MODEL_DIR), read_adapter(folder / "adapter"), spoken, folder)


# Rounded weights may tip a near tie; what is written in full tips none.
@pytest.mark.parametrize(("weight_format", "least"), [("f32", 1.0), ("f16", 0.99)])
async def test_a_merged_model_says_what_peft_says(
    world: World, tmp_path: Path, weight_format: str, least: float
) -> None:
    write_merged_gguf(world.base, world.adapter, tmp_path, weight_format, lambda _: None)
    async with gguf_server("-m", str(tmp_path / "model.gguf")) as client:
        assert await share_of_equal_cuts(client, world.spoken) == 1
        assert await share_of_equal_texts(client, world.spoken) >= least


async def test_an_adapter_beside_its_base_says_what_peft_says(world: World, tmp_path: Path) -> None:
    write_merged_gguf(world.base, replace(world.adapter, pairs={}), tmp_path, "f32", lambda _: None)
    write_lora_gguf(world.base, world.adapter, tmp_path, lambda _: None)
    async with gguf_server(
        "-m", str(tmp_path / "model.gguf"), "--lora", str(tmp_path / "adapter.gguf")
    ) as client:
        assert await share_of_equal_texts(client, world.spoken) == 1
    async with gguf_server("-m", str(tmp_path / "model.gguf")) as client:
        assert await share_of_equal_texts(client, world.spoken) < 1
