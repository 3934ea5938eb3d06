"""Every example in examples/train/ plans, and names datasets that it says how to build."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kala.dataset_file import datasets_in
from services.trainer.planning.job_document import read_job
from tests.unit.trainer.planning.test_planner import plan_of

EXAMPLES = sorted(Path("examples/train").glob("*.yaml"))


def test_there_is_an_example_for_every_stage():
    assert {path.stem for path in EXAMPLES} == {
        "capability", "code", "constitutional", "guardian", "math", "physics", "pythia-6.9b",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", [path.read_text() for path in EXAMPLES], ids=[path.stem for path in EXAMPLES]
)
async def test_only_what_is_not_there_yet_stands_between_an_example_and_its_job(text: str):
    plan = await plan_of(text)
    expected = ("the weights of", "builds it first", "gate_profile: there is no")
    assert [problem for problem in plan.problems if not any(told in problem for told in expected)] == []
    assert plan.memory.total_bytes
    assert plan.trained_parameters
    assert plan.steps or "files:" in text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_builds_every_dataset_that_it_names(path: Path):
    built = [spec["name"] for spec in datasets_in(yaml.safe_load(path.read_text()))]
    assert built == list(read_job(path.read_text()).builds)
    assert [share.dataset.name for share in read_job(path.read_text()).spec.datasets] == built
