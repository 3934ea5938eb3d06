"""Jobs as people write them: the training guide's block, whole jobs, and every way to get them wrong."""

from __future__ import annotations

import pytest

from kala.common.v1 import adapter_pb2 as common
from kala.errors import InvalidArgumentError
from kala.trainer.v1 import job_pb2 as pb
from services.trainer.planning.job_document import read_job

SEED_BLOCK = """
rank: 16-32
alpha: 32
dropout: 0.05
target_modules:
  - query_key_value
  - dense
  - embed_in
  - embed_out
base_model: pythia-6.9b (8-bit quantized)
"""


def test_the_training_guides_block_parses_as_it_stands():
    draft = read_job(SEED_BLOCK)
    assert draft.spec.lora == pb.LoraSpec(
        rank=16, alpha=32, dropout=0.05, target_modules=["query_key_value", "dense", "embed_in", "embed_out"]
    )
    assert draft.spec.base.name == "pythia-6.9b"
    assert draft.spec.quantization == common.QUANTIZATION_INT8


def test_a_range_becomes_its_lower_end_and_says_so():
    choice = next(each for each in read_job(SEED_BLOCK).choices if each.field == "lora.rank")
    assert (choice.asked, choice.taken) == ("16-32", "16")
    assert "lower end" in choice.reason


@pytest.mark.parametrize(
    ("written", "name", "held"),
    [
        ("pythia-12b", "pythia-12b", common.QUANTIZATION_UNSPECIFIED),
        ("EleutherAI/pythia-410m", "pythia-410m", common.QUANTIZATION_UNSPECIFIED),
        ("Pythia-6.9B (4-bit quantised)", "pythia-6.9b", common.QUANTIZATION_NF4),
        ("pythia-6.9b (nf4)", "pythia-6.9b", common.QUANTIZATION_NF4),
    ],
)
def test_a_base_may_say_how_it_is_held(written: str, name: str, held: int):
    spec = read_job(f"base_model: {written}").spec
    assert (spec.base.name, spec.quantization) == (name, held)


def test_a_whole_job_is_read():
    spec = read_job(
        """
        adapter: laws
        base_model: kala-embedded
        objective: constitutional
        datasets:
          - {dataset: laws@3, use: train}
          - {dataset: datasets/old, use: replay, weight: 0.5}
        parents: [{adapter: first@1}]
        hyperparameters: {learning_rate: 2e-3, max_steps: 40, packing: false, precision: fp32}
        placement: {executor: ray, workers: 2}
        constitutional: {reviser: template, sft_share: 0}
        gate_profile: embedded
        trackers: [tensorboard]
        deadline: 30m
        """
    ).spec
    assert spec.adapter == "adapters/laws"
    assert [share.dataset.name for share in spec.datasets] == ["datasets/laws@3", "datasets/old"]
    assert spec.datasets[1].use == common.DATASET_USE_REPLAY
    assert spec.parents[0].name == "adapters/first@1"
    assert spec.hyperparameters.learning_rate == 0.002
    assert spec.hyperparameters.HasField("packing")
    assert spec.constitutional.HasField("sft_share")
    assert spec.placement.workers == 2
    assert spec.deadline.seconds == 1800


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param("- a", "must be a mapping", id="list"),
        pytest.param("rank: [", "is no YAML", id="broken"),
        pytest.param(
            "rank: 8\nrnak: 9", "line 2, column 1: 'rnak' is no key here; did you mean 'rank'", id="typo"
        ),
        pytest.param("rank: 8\nrank: 9", "line 2, column 1: 'rank' comes twice", id="twice"),
        pytest.param("rank: 0", "line 1, column 7: rank: is 0; it must be from 1 to 1024", id="zero"),
        pytest.param("rank: 32-16", "a range must rise", id="falling range"),
        pytest.param("rank: many", "it must be a whole number", id="words"),
        pytest.param("alpha: 1.5", "it must be a whole number", id="half"),
        pytest.param("dropout: 1", "dropout: is 1; it must be from 0 to 1", id="dropout"),
        pytest.param("dropout: .nan", "it must be a number", id="nan"),
        pytest.param("dropout: 1e999", "it must be a number", id="huge"),
        pytest.param("base_model: a (b (c))", 'such as "pythia-6.9b', id="base"),
        pytest.param("base_model: ../../etc", 'such as "pythia-6.9b', id="base outside"),
        pytest.param("base_model: pythia-70m (3-bit)", "is held in '3-bit'", id="held"),
        pytest.param("quantization: none\nbase_model: pythia-70m (8-bit)", "another quantization", id="both"),
        pytest.param("objective: sftt", "did you mean 'sft'", id="word"),
        pytest.param("datasets: x", "must be a list", id="no list"),
        pytest.param("datasets: [{use: train}]", "datasets[0]: has no dataset", id="nameless"),
        pytest.param("datasets: [{dataset: x, sha256: zz}]", "64 hexadecimal", id="digest"),
        pytest.param(
            "hyperparameters:\n  learning_rat: 1",
            "line 2, column 3: hyperparameters: 'learning_rat'",
            id="inner",
        ),
        pytest.param("hyperparameters: {packing: maybe}", "must be true or false", id="flag"),
        pytest.param("deadline: soon", 'such as "90s"', id="time"),
        pytest.param("a: &x [1]\nb: *x", "references are not taken", id="alias"),
        pytest.param("labels: " + "[" * 40 + "]" * 40, "nested too deeply", id="deep"),
        pytest.param("summary: '" + "x" * 300_000 + "'", "longer than 262144 bytes", id="gigantic"),
        pytest.param("summary: \x00", "is no YAML", id="control"),
        pytest.param("rank: 8\n---\nrank: 9", "is no YAML", id="two documents"),
        pytest.param("summary: {a: b}", "must be a text", id="mapping for text"),
        pytest.param("? [a]\n: b", "is no key here", id="odd key"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, told: str):
    with pytest.raises(InvalidArgumentError) as raised:
        read_job(text)
    assert told in raised.value.message
    assert raised.value.field == "yaml"


def test_a_job_may_say_how_its_datasets_are_built():
    assert read_job("build: [{name: laws, sources: []}]").builds == {"datasets/laws": 0}
    rows = "{generator: {category: law_0, rows: 20}}, {generator: {category: law_1, rows: 22}}, {files: {}}"
    assert read_job(f"build: [{{name: laws, sources: [{rows}]}}]").builds == {"datasets/laws": 42}
