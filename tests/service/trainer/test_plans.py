"""PlanJob over gRPC: plans are told, mistakes in YAML are the caller's, and tenants see their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from kala.errors import InvalidArgumentError
from kala.trainer.v1 import trainer_pb2 as pb
from tests.fakes.served_trainer import BEN, ScriptedExecutor, served_trainer

JOB = """
adapter: larger
base_model: kala-embedded
rank: 4-8
target_modules: [query_key_value, embed_out]
datasets: [{dataset: larger}]
gate_profile: embedded
"""


async def test_a_job_in_yaml_is_planned_whole_and_only_for_those_whose_data_it_is(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor()) as served:
        await served.dataset()
        plan = (await served.ask("PlanJob", pb.PlanJobRequest(yaml=JOB))).plan
        assert list(plan.problems) == []
        assert plan.spec.lora.rank == 4
        assert plan.spec.gate_profile.sha256
        assert [target.module for target in plan.targets] == ["query_key_value", "lm_head"]
        again = (await served.ask("PlanJob", pb.PlanJobRequest(spec=plan.spec))).plan
        assert again.spec == plan.spec
        others = (await served.ask("PlanJob", pb.PlanJobRequest(yaml=JOB), principal=BEN)).plan
        assert any("there is no datasets/larger" in problem for problem in others.problems)


async def test_a_mistake_in_yaml_is_told_with_its_place(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor()) as served:
        with pytest.raises(InvalidArgumentError, match=r"line 3, column 1: 'bas_model' is no key") as raised:
            await served.ask("PlanJob", pb.PlanJobRequest(yaml=JOB.replace("base_model", "bas_model")))
        assert raised.value.field == "yaml"
