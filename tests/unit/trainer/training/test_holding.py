"""How the base is held, whole or in fewer bits, and what may be trained of it."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError
from services.common.adapter_weights import WEIGHTS_FILE
from services.trainer.training.loop import Hooks, Trainer
from services.trainer.training.recipe import Lora, Recipe
from services.trainer.training.run import run_work
from tests.fakes.tiny_pythia import make_tiny_pythia
from tests.fakes.training_jobs import ALL_TARGETS, EMBEDDED, Told, work

pytestmark = pytest.mark.torch
SHORT = Recipe(max_steps=2, batch_size=2, micro_batch_size=2, max_sequence_tokens=64, learning_rate=1e-3)


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


def test_an_adapter_is_no_larger_than_its_matrices(tmp_path):
    run_work(work(tmp_path, recipe=SHORT, lora=Lora(16, 32, 0.0, ALL_TARGETS)), Told())
    size = (tmp_path / "job/adapter" / WEIGHTS_FILE).stat().st_size
    sides = 4 * (160 + 480 + 160 + 160) + 2 * (160 + 1792)
    assert size <= 1.02 * 16 * sides * 4


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_base_in_fewer_bits_trains_all_four_targets(tmp_path, quantization):
    base = make_tiny_pythia(tmp_path / "base", width=64)
    job = work(
        tmp_path, base=base, recipe=SHORT, quantization=quantization, lora=Lora(2, 4, 0.0, ALL_TARGETS)
    )
    result = run_work(job, Told())
    assert result["targets"] == {"dense": 1, "embed_in": 1, "lm_head": 1, "query_key_value": 1}


def test_a_width_that_4_bits_do_not_divide_is_refused_with_the_cure(tmp_path):
    base = make_tiny_pythia(tmp_path / "base", width=32)
    with pytest.raises(FailedPreconditionError, match="INT8"):
        run_work(work(tmp_path, base=base, recipe=SHORT, quantization="nf4"), Told())


def test_recomputed_activations_give_the_same_adapter(tmp_path):
    for name, twice in (("a", False), ("b", True)):
        (tmp_path / name).mkdir()
        run_work(work(tmp_path / name, recipe=SHORT, gradient_checkpointing=twice), Told())
    one, other = (tmp_path / name / "job/adapter" / WEIGHTS_FILE for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_a_step_in_several_passes_is_the_step_in_one(tmp_path):
    norms = []
    for name, micro in (("a", 4), ("b", 1)):
        (tmp_path / name).mkdir()
        recipe = replace(SHORT, batch_size=4, micro_batch_size=micro)
        run_work(work(tmp_path / name, recipe=recipe, lora=Lora(2, 4, 0.0)), Told())
        lines = (tmp_path / name / "job/reports/metrics.jsonl").read_text().splitlines()
        norms.append([(json.loads(line)["loss"], json.loads(line)["gradient_norm"]) for line in lines])
    for one, other in zip(*norms, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_full_training_leaves_a_base_that_inference_reads(tmp_path):
    import torch
    from transformers import GPTNeoXForCausalLM

    from services.inference.pythia.weights import check

    job = work(tmp_path, recipe=SHORT, lora=None)
    result = run_work(job, Told())
    assert result["directory"] == "base"
    base = tmp_path / "job/base"
    assert len(check(base).base_digest) == 32
    data = (base / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert "embed_out.weight" in json.loads(data[8 : 8 + length])
    read = GPTNeoXForCausalLM.from_pretrained(base, dtype=torch.float32)
    first = GPTNeoXForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    assert not torch.equal(read.lm_head.weight, first.lm_head.weight)
    # A base can be trained further.
    (tmp_path / "more").mkdir()
    assert run_work(work(tmp_path / "more", base=base, recipe=SHORT), Told())["steps"] == 2


def test_a_cut_full_training_ends_with_the_same_bytes(tmp_path):
    from kala.errors import CancelledError

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    job = {"recipe": replace(SHORT, max_steps=3), "lora": None, "checkpoint_steps": 1}
    run_work(work(tmp_path / "a", **job), Told())
    asked: list[int] = []
    with pytest.raises(CancelledError):
        run_work(work(tmp_path / "b", **job), Told(), should_stop=lambda: len(asked.append(1) or asked) == 2)
    run_work(work(tmp_path / "b", **job), Told())
    one, other = (tmp_path / name / "job/base/model.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_whole_weights_are_not_trained_in_fewer_bits(tmp_path):
    with pytest.raises(InvalidArgumentError, match="LoRA or no quantization"):
        work(tmp_path, lora=None, quantization="int8")


def test_a_base_without_a_template_gives_its_adapter_one(tmp_path):
    base = make_tiny_pythia(tmp_path / "base", template=None)
    result = run_work(work(tmp_path, base=base, recipe=SHORT), Told())
    assert result["chat_template"] == "chat_template.jinja"
    assert "eos_token" in (tmp_path / "job/adapter/chat_template.jinja").read_text()


def test_bf16_trains_where_it_is_asked_for(tmp_path):
    outcome = Trainer(work(tmp_path, recipe=SHORT, precision="bf16"), Hooks(Told())).run()
    assert outcome.loaded.precision == "bf16"
    assert 0 < outcome.position.loss < 20
