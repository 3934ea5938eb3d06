"""Plans: what is filled in, what is resolved, what is estimated, and what stops a job."""

from __future__ import annotations

import asyncio
import contextlib
import math
from pathlib import Path
from time import process_time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kala.common.v1 import adapter_pb2 as common
from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import InvalidArgumentError
from kala.trainer.v1 import dataset_pb2, trainer_pb2
from kala.trainer.v1 import job_pb2 as pb
from services.trainer.planning.bases import Bases
from services.trainer.planning.job_document import read_job
from services.trainer.planning.planner import Planner
from services.trainer.planning.site import Profile, Site
from tests.fakes.planning import FakeCatalogue, dataset_of
from tests.unit.trainer.planning.test_job_document import SEED_BLOCK

EMBEDDED = Path("services/inference/embedded/model")
ANN = Principal(id="ann", tenant="acme")

JOB = """
adapter: laws
base_model: kala-embedded
rank: 8
target_modules: [query_key_value, dense, embed_in, embed_out]
datasets: [{dataset: laws}]
"""


def planner(*datasets: str, site: Site | None = None, **named: object) -> Planner:
    gate = Profile(ContentReference(name="embedded", sha256=b"g" * 32, bytes=9), is_demo=True)
    catalogue = FakeCatalogue(
        datasets=[dataset_of(name) for name in datasets or ("datasets/laws@1", "datasets/laws@2")],
        gate_profiles={"embedded": gate},
        **named,
    )
    return Planner(Bases(None, EMBEDDED), catalogue, site or Site(memory_bytes=8 << 30))


async def plan_of(text: str, *, by: Planner | None = None) -> pb.TrainingPlan:
    request = trainer_pb2.PlanJobRequest(yaml=text)
    return (await (by or planner()).plan(request, ANN)).plan


async def test_a_job_on_the_embedded_model_can_be_started_as_planned():
    plan = await plan_of(JOB)
    assert list(plan.problems) == []
    assert plan.weights_present
    assert plan.spec.base.sha256
    assert plan.spec.base.bytes > 3_000_000
    assert plan.spec.datasets[0].dataset == ContentReference(
        name="datasets/laws@2", sha256=b"r" * 32, bytes=77
    )
    assert plan.steps == 33
    assert plan.trained_parameters == 61_952
    assert plan.memory.total_bytes < plan.memory.available_bytes


async def test_the_adapters_size_is_that_of_the_file_that_such_a_job_writes():
    plan = await plan_of(JOB.replace("rank: 8", "rank: 4"))
    assert plan.adapter_bytes == pytest.approx(126_512, rel=0.01)


async def test_planning_a_planned_spec_again_changes_nothing():
    first = await plan_of(JOB)
    again = await planner().plan_spec(first.spec, ANN)
    assert again.spec == first.spec
    assert list(again.problems) == []


async def test_the_guides_block_prints_plan_and_memory_without_the_weights():
    plan = await plan_of(SEED_BLOCK)
    assert not plan.weights_present
    assert plan.memory.total_bytes > 13 << 30
    for told in (
        "pythia-6.9b, 8-bit",
        "6.8 GiB",
        "embed_out -> lm_head",
        "'16-32' -> 16",
        "kala models pull",
    ):
        assert told in plan.text
    assert any("weights of pythia-6.9b" in problem for problem in plan.problems)
    assert plan.spec.placement.gpus_per_worker == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("base_model: pythia-6.8b", "'pythia-6.8b' is no known base; did you mean 'pythia-6.9b'?"),
        ("adapter: No Capitals!", "adapter: must be adapters/<name>"),
        ("datasets: []", "datasets: names 0, not 1 to 64"),
        ("datasets: [{dataset: none}]", "there is no datasets/none"),
        ("datasets: [{dataset: laws@x}]", "version 1 and up"),
        ("datasets: [{dataset: laws, use: replay}]", "none is of use train"),
        ("datasets: [{dataset: laws@2}, {dataset: laws@2, use: replay}]", "named twice"),
        ("target_modules: [q_proj]", "'q_proj' matches no module"),
        ("quantization: nf4", "64 divides"),
        ("method: full", "lora: goes only with method lora"),
        ("specialist: code\nstage: custom", "specialist: goes with stage specialist"),
        ("stage: specialist", "specialist: goes with stage specialist"),
        ("objective: classification", "labels: a classifier needs 2 to 64"),
        ("labels: [a, a]", "labels: each must be a text of its own"),
        ("objective: dpo\nhyperparameters: {packing: true}", "only whole answers are packed"),
        ("constitutional: {reviser: template}\nobjective: sft", "constitutional: goes only with"),
        ("hyperparameters: {max_sequence_tokens: 4096}", "above the base's 512"),
        ("hyperparameters: {batch_size: 10, micro_batch_size: 4}", "set it to 8"),
        ("placement: {executor: local, workers: 2}", "the local executor has one worker"),
        ("placement: {workers: 2, min_workers: 3}", "is above the 2 workers"),
        ("placement: {workers: 2, min_workers: 1, parallelism: fsdp}", "needs all its workers"),
        ("quantization: 8-bit\nplacement: {workers: 2, parallelism: fsdp}", "set it to ddp"),
        ("gate_profile: embeded", "there is no 'embeded'; did you mean 'embedded'?"),
        ("trackers: [mlflow]", "no MLflow server"),
        ("deadline: 20d", "at most 14 days"),
        ("parents: [{adapter: gone@1}]", "there is no adapters/gone@1"),
        ("parents: [{adapter: gone}]", "must name a version"),
    ],
)
async def test_what_stops_a_job_is_a_problem_with_its_cure(change: str, told: str):
    key = change.partition(":")[0]
    kept = [line for line in JOB.splitlines() if not line.startswith(f"{key}:")]
    plan = await plan_of("\n".join([*kept, change]))
    assert any(told in problem for problem in plan.problems), list(plan.problems)
    assert told in plan.text


async def test_another_tenants_dataset_is_not_there():
    stranger = FakeCatalogue(datasets=[dataset_of("datasets/laws@1", tenant="other")])
    plan = await plan_of(JOB, by=Planner(Bases(None, EMBEDDED), stranger, Site()))
    assert any("there is no datasets/laws" in problem for problem in plan.problems)


async def test_a_base_that_changed_since_it_was_planned_is_a_problem():
    spec = (await plan_of(JOB)).spec
    spec.base.sha256 = b"x" * 32
    plan = await planner().plan_spec(spec, ANN)
    assert any("plan again" in problem for problem in plan.problems)


async def test_numbers_of_a_raw_spec_are_held_to_the_same_bounds():
    spec = (await plan_of(JOB)).spec
    spec.lora.dropout = 1.5
    spec.hyperparameters.learning_rate = float("nan")
    problems = (await planner().plan_spec(spec, ANN)).problems
    assert any("lora.dropout" in each for each in problems)
    assert any("hyperparameters.learning_rate" in each for each in problems)


async def test_too_little_memory_is_a_problem_with_a_cure():
    plan = await plan_of(JOB, by=planner(site=Site(memory_bytes=100 << 20)))
    assert plan.memory.cures
    assert any(problem.startswith("memory:") for problem in plan.problems)


async def test_several_workers_go_to_ray_and_divide_the_batch():
    plan = await plan_of(JOB + "placement: {workers: 2}\n")
    assert plan.spec.placement.executor == pb.EXECUTOR_RAY
    assert plan.spec.placement.min_workers == 2
    assert plan.spec.hyperparameters.micro_batch_size == 8
    assert any("local Ray is started" in warning for warning in plan.warnings)


async def test_the_guardian_becomes_a_classifier():
    plan = await plan_of(JOB + "specialist: guardian\nlabels: [supported, refuted, unsure]\n")
    assert plan.spec.stage == common.ADAPTER_STAGE_SPECIALIST
    assert plan.spec.objective == pb.TRAINING_OBJECTIVE_CLASSIFICATION
    assert list(plan.problems) == []


async def test_replay_adds_steps_by_its_weight():
    both = "datasets: [{dataset: laws@2}, {dataset: laws@1, use: replay, weight: 1}]"
    plan = await plan_of(JOB.replace("datasets: [{dataset: laws}]", both))
    assert plan.steps == 66
    assert not any("forget" in warning for warning in plan.warnings)


async def test_the_time_is_told_by_what_earlier_jobs_reached():
    plan = await plan_of(JOB, by=planner(speed=100.0))
    assert plan.expected_time.seconds == plan.tokens // 100 + 1
    assert not (await plan_of(JOB)).HasField("expected_time")


async def test_a_dataset_that_the_document_builds_says_so():
    plan = await plan_of(
        JOB.replace("dataset: laws}", "dataset: new}") + "build: [{name: new, sources: []}]\n"
    )
    assert any("builds it first" in problem for problem in plan.problems)


async def test_neither_yaml_nor_spec_is_an_error():
    with pytest.raises(InvalidArgumentError, match="send yaml or spec"):
        await planner().plan(trainer_pb2.PlanJobRequest(), ANN)


async def test_the_digest_is_the_one_that_inference_serves_the_base_by():
    from services.inference.pythia.weights import check

    assert (await plan_of(JOB)).spec.base.sha256 == check(EMBEDDED).base_digest


async def test_a_base_is_found_in_the_operators_directory(tmp_path: Path):
    folder = tmp_path / "pythia-70m"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes((EMBEDDED / name).read_bytes())
    bases = Bases(tmp_path, None)
    found = await bases.find("pythia-70m")
    assert found is not None
    assert found.shape.hidden == 160
    (folder / "model.safetensors").write_bytes(b"changed")
    changed = await bases.find("pythia-70m")
    assert changed is not None
    assert changed.reference != found.reference
    assert await bases.find("..") is None


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=200) | st.binary(max_size=60).map(lambda data: data.decode("utf-8", "surrogateescape"))
)
def test_whatever_is_sent_as_yaml_is_planned_or_refused(text: str):
    # Anything else than this error would be a bug in the service.
    with contextlib.suppress(InvalidArgumentError):
        read_job(text)


NUMBERS = st.one_of(
    st.integers(0, 2**32 - 1), st.sampled_from([0.0, -1.0, 1e308, math.inf, -math.inf, math.nan, 0.5])
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    st.dictionaries(st.sampled_from(sorted(pb.Hyperparameters.DESCRIPTOR.fields_by_name)), NUMBERS), NUMBERS
)
def test_whatever_numbers_a_spec_has_it_is_planned(values: dict[str, float], weight: float):
    spec = pb.TrainingSpec(adapter="adapters/x", base=ContentReference(name="pythia-12b"))
    spec.datasets.add(use=common.DATASET_USE_TRAIN, weight=weight).dataset.name = "datasets/laws"
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        spec.placement.workers = int(values.get("seed", 0))
    for name, value in values.items():
        # A kind of number that the field does not hold is no message at all.
        with contextlib.suppress(TypeError, ValueError):
            setattr(spec.hyperparameters, name, value)
    plan = asyncio.run(planner().plan_spec(spec, ANN))
    assert any("weights of pythia-12b" in problem for problem in plan.problems)


async def test_names_that_would_move_a_terminals_cursor_are_shown_harmless():
    spec = pb.TrainingSpec(
        adapter="adapters/\x1b[2J" + "x" * 10_000, base=ContentReference(name="\x1b[31m" * 500)
    )
    spec.lora.target_modules.append("\x1b]0;title\x07" * 500)
    plan = await planner().plan_spec(spec, ANN)
    assert "\x1b" not in plan.text
    assert all(len(problem) < 500 for problem in plan.problems)


def spec_of() -> pb.TrainingSpec:
    spec = pb.TrainingSpec(adapter="adapters/laws")
    spec.base.name = "kala-embedded"
    spec.datasets.add(use=common.DATASET_USE_TRAIN).dataset.name = "datasets/laws@1"
    return spec


@pytest.mark.parametrize(
    "path",
    ["objective", "method", "quantization", "stage", "specialist", "hyperparameters.schedule", "placement.executor",
     "hyperparameters.precision", "placement.parallelism", "constitutional.reviser", "datasets.use", "trackers"],
)  # fmt: skip
async def test_a_word_that_this_release_does_not_know_is_planned_by_nobody(path: str):
    spec = spec_of()
    section, _, name = path.rpartition(".")
    target = spec.datasets[0] if section == "datasets" else getattr(spec, section) if section else spec
    if name == "trackers":
        spec.trackers.append(99)  # type: ignore[arg-type]  # what a client of a later release sends
    else:
        setattr(target, name, 99)

    plan = await planner().plan_spec(spec, ANN)
    assert any(each.startswith(f"{path}: is 99, which this release does not") for each in plan.problems)


@pytest.mark.parametrize("path", ["datasets", "parents", "labels", "trackers", "lora.target_modules"])
async def test_a_list_without_end_is_refused_before_anything_is_looked_up(path: str):
    spec = spec_of()
    section, _, name = path.rpartition(".")
    entries = getattr(spec.lora if section else spec, name)
    if path in {"datasets", "parents"}:
        for _ in range(100):
            entries.add()
    else:
        entries.extend([pb.TRACKER_MLFLOW if path == "trackers" else "x"] * 100)

    with pytest.raises(InvalidArgumentError, match="at most"):
        await planner().plan_spec(spec, ANN)


@pytest.mark.parametrize(
    ("objective", "form", "told"),
    [
        (
            pb.TRAINING_OBJECTIVE_DPO,
            dataset_pb2.SOURCE_FORMAT_MESSAGES,
            "has conversations, and objective dpo",
        ),
        (
            pb.TRAINING_OBJECTIVE_SFT,
            dataset_pb2.SOURCE_FORMAT_PREFERENCE,
            "has preferences, and objective sft",
        ),
        (pb.TRAINING_OBJECTIVE_SFT, dataset_pb2.SOURCE_FORMAT_LABELLED, "has labelled texts"),
        (pb.TRAINING_OBJECTIVE_CLASSIFICATION, dataset_pb2.SOURCE_FORMAT_GSM8K, "learns from labelled texts"),
        (
            pb.TRAINING_OBJECTIVE_CONSTITUTIONAL,
            dataset_pb2.SOURCE_FORMAT_CLAIMS,
            "conversations or preferences",
        ),
        (pb.TRAINING_OBJECTIVE_CONSTITUTIONAL, dataset_pb2.SOURCE_FORMAT_PREFERENCE, ""),
        (pb.TRAINING_OBJECTIVE_DPO, dataset_pb2.SOURCE_FORMAT_PREFERENCE, ""),
    ],
)
async def test_a_dataset_that_the_objective_cannot_read_is_a_problem(
    objective: pb.TrainingObjective.ValueType, form: dataset_pb2.SourceFormat.ValueType, told: str
):
    dataset = dataset_of("datasets/laws@1")
    dataset.spec.sources.add(name="rows").files.format = form
    by = planner()
    by._catalogue.datasets[:] = [dataset]  # type: ignore[attr-defined]  # the fake's own list
    spec = spec_of()
    spec.objective = objective
    if objective == pb.TRAINING_OBJECTIVE_CLASSIFICATION:
        spec.labels.extend(["a", "b"])
    plan = await by.plan_spec(spec, ANN)

    found = [problem for problem in plan.problems if problem.startswith("datasets[0]: ")]
    assert bool(found) == bool(told)
    assert all(told in problem for problem in found)


@pytest.mark.parametrize("label", ["x" * 65, "a\nb"], ids=["long", "two lines"])
async def test_a_label_that_no_row_can_have_is_a_problem(label: str):
    spec = spec_of()
    spec.objective = pb.TRAINING_OBJECTIVE_CLASSIFICATION
    spec.labels.extend([label, "b"])

    assert any("at most 64 characters" in each for each in (await planner().plan_spec(spec, ANN)).problems)


async def test_tokens_of_the_validation_part_take_no_steps():
    alone, halved = dataset_of("datasets/laws@1"), dataset_of("datasets/halved@1", tokens=80_000)
    halved.report.validation_rows = halved.report.train_rows
    by = planner()
    by._catalogue.datasets[:] = [alone, halved]  # type: ignore[attr-defined]  # the fake's own list
    text = JOB.replace("datasets: [{dataset: laws}]", "datasets: [{dataset: halved}]")

    assert (await plan_of(text, by=by)).steps == (await plan_of(JOB, by=by)).steps


@pytest.mark.parametrize(
    "text", ["- a\n" * 60_000, "{" + "a: b, " * 40_000 + "}", "[" + "a," * 120_000 + "]"]
)
async def test_a_text_of_countless_values_is_refused_early(text: str):
    start = process_time()
    with pytest.raises(InvalidArgumentError, match="more values than any job"):
        await plan_of(text)
    assert process_time() - start < 5
