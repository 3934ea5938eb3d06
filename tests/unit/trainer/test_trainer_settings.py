"""What the trainer may be told."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from kala.errors import InvalidArgumentError
from services.common.settings import load, settings_table
from services.trainer.config import SECTION, TrainerSettings
from services.trainer.metrics import OperationCounter

README = Path(__file__).parents[3] / "services" / "trainer" / "README.md"


def test_the_readme_has_the_table_of_settings() -> None:
    table = settings_table(TrainerSettings, section=SECTION).replace(str(Path.home()), "~")
    assert table in README.read_text()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_JOBS", "0"),
        ("MAX_QUEUED", "-1"),
        ("MAX_SECONDS", str(15 * 86_400)),
        ("STATE_DIR", "here"),
        ("SPOOL_DIR", "/spool"),
        ("THREADS", "many"),
        ("RAY_ADDRESS", "ray://head:10001"),
        ("FAST", "1"),
    ],
)
def test_a_setting_that_cannot_be_meant_stops_the_process_and_names_its_variable(
    tmp_path: Path, name: str, value: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        load(TrainerSettings, section=SECTION, argv=[], environ={f"KALA_TRAINER_{name}": value}, cwd=tmp_path)
    assert name in caught.value.message or name.lower() in caught.value.message


def test_rays_own_name_for_its_address_is_read(tmp_path: Path) -> None:
    environ = {"RAY_ADDRESS": "http://head:8265"}
    settings = load(TrainerSettings, section=SECTION, argv=[], environ=environ, cwd=tmp_path)
    assert settings.ray_address == "http://head:8265"


def test_long_work_is_counted_as_it_begins_and_ends() -> None:
    registry = CollectorRegistry()
    observe = OperationCounter(registry)
    observe.began("train")
    observe.began("train")
    observe.ended("train", "ok")
    assert registry.get_sample_value("kala_trainer_operations_present", {"kind": "train"}) == 1
    ended = {"kind": "train", "status": "ok"}
    assert registry.get_sample_value("kala_trainer_operations_total", ended) == 1
