"""Shapes, parameters and memory of the published bases, against figures that were computed apart from this code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kala.common.v1 import adapter_pb2 as common
from kala.errors import InvalidArgumentError, VerificationError
from kala.trainer.v1 import job_pb2 as pb
from services.trainer.planning.memory import GIB, Load, disk_bytes, estimate
from services.trainer.planning.shapes import PRESETS, Shape, read_shape
from services.trainer.planning.targets import find_targets, trained_parameters

EMBEDDED = Path("services/inference/embedded/model/config.json")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("pythia-70m", 70_426_624),
        ("pythia-160m", 162_322_944),
        ("pythia-410m", 405_334_016),
        ("pythia-1b", 1_011_781_632),
        ("pythia-1.4b", 1_414_647_808),
        ("pythia-2.8b", 2_775_208_960),
        ("pythia-6.9b", 6_857_302_016),
        ("pythia-12b", 11_846_072_320),
    ],
)
def test_a_preset_has_the_parameters_that_its_publisher_states(name: str, parameters: int):
    assert PRESETS[name].parameters == parameters


def test_the_embedded_models_configuration_is_read():
    shape = read_shape(EMBEDDED)
    assert (shape.layers, shape.hidden, shape.vocabulary, shape.is_tied) == (4, 160, 1792, False)


@pytest.mark.parametrize(
    "change",
    [{"model_type": "llama"}, {"hidden_size": 0}, {"vocab_size": "many"}, {"num_hidden_layers": True}],
    ids=["architecture", "zero", "text", "flag"],
)
def test_a_configuration_of_no_such_model_is_refused(tmp_path: Path, change: dict[str, object]):
    config = json.loads(EMBEDDED.read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationError, match=r"config\.json"):
        read_shape(tmp_path / "config.json")


def test_embed_out_finds_the_head():
    targets = find_targets(PRESETS["pythia-6.9b"], ["query_key_value", "dense", "embed_in", "embed_out"])
    head = targets[-1]
    assert (head.module, head.requested, head.matched) == ("lm_head", "embed_out", 1)
    assert trained_parameters(targets, 16) == 14_327_808


@pytest.mark.parametrize(
    ("requested", "told"),
    [
        (["query_key_valu"], "did you mean 'query_key_value'"),
        (["q_proj"], "matches no module"),
        (["embed_out", "lm_head"], "a second time"),
    ],
)
def test_a_target_that_matches_nothing_or_twice_is_refused(requested: list[str], told: str):
    with pytest.raises(InvalidArgumentError, match=told):
        find_targets(PRESETS["pythia-70m"], requested)


@pytest.mark.parametrize("target", ["embed_in", "embed_out", "lm_head"])
def test_tied_embeddings_are_no_targets(target: str):
    tied = Shape(2, 64, 4, 256, 512, 128, is_tied=True)
    with pytest.raises(InvalidArgumentError, match="tie_word_embeddings"):
        find_targets(tied, [target])
    assert find_targets(tied, ["dense"])


def spec_of(**fields: object) -> pb.TrainingSpec:
    spec = pb.TrainingSpec(
        method=pb.TRAINING_METHOD_LORA,
        quantization=common.QUANTIZATION_INT8,
        hyperparameters=pb.Hyperparameters(
            micro_batch_size=4,
            max_sequence_tokens=2048,
            precision=pb.PRECISION_BF16,
            gradient_checkpointing=True,
            checkpoints_kept=3,
        ),
        placement=pb.Placement(workers=1, gpus_per_worker=1),
    )
    for name, value in fields.items():
        setattr(spec, name, value)
    return spec


def test_the_guides_6_9b_in_8_bits_fits_a_card_of_24_gib():
    shape = PRESETS["pythia-6.9b"]
    made = estimate(Load(shape, spec_of(), 14_327_808, 2), 24 * GIB)
    assert made.weights_bytes / GIB == pytest.approx(6.8, abs=0.1)
    assert made.training_bytes / GIB == pytest.approx(0.21, abs=0.01)
    assert made.activation_bytes / GIB == pytest.approx(2.0 + 3.8, abs=0.1)
    assert made.total_bytes / GIB == pytest.approx(14, abs=0.5)
    assert not made.cures


def test_full_training_is_shared_among_the_workers_of_fsdp():
    spec = spec_of(method=pb.TRAINING_METHOD_FULL, quantization=common.QUANTIZATION_NONE)
    spec.placement.workers, spec.placement.parallelism = 8, pb.PARALLELISM_FSDP
    shape = PRESETS["pythia-6.9b"]
    made = estimate(Load(shape, spec, shape.parameters, 4), None)
    assert (made.weights_bytes + made.training_bytes) / GIB == pytest.approx(12.8, abs=0.1)
    assert not made.HasField("available_bytes")


def test_what_does_not_fit_names_cures_the_mildest_first():
    spec = spec_of(quantization=common.QUANTIZATION_NONE)
    spec.hyperparameters.gradient_checkpointing = False
    made = estimate(Load(PRESETS["pythia-12b"], spec, 19_500_000, 2), 24 * GIB)
    assert made.total_bytes > made.available_bytes
    assert "gradient_checkpointing" in made.cures[0]
    assert any("8-bit" in cure for cure in made.cures)


def test_disk_holds_one_checkpoint_more_than_are_kept():
    assert disk_bytes(Load(PRESETS["pythia-70m"], spec_of(), 1_000_000, 2)) > 4 * 12_000_000
