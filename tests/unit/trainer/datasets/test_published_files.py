"""Published files as they are, for those who have them: KALA_TEST_TRAINER_DATA names their folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kala.common.v1.reference_pb2 import ContentReference
from kala.trainer.v1 import dataset_pb2 as pb
from services.trainer.datasets.build import Reading, Tools
from services.trainer.datasets.build_run import known_evaluations
from services.trainer.datasets.files import Access

FOLDER = Path(os.environ.get("KALA_TEST_TRAINER_DATA", "/nonexistent"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="KALA_TEST_TRAINER_DATA names no folder")


def read(name: str, form: pb.SourceFormat.ValueType) -> pb.DatasetReport:
    if not (FOLDER / name).is_file():
        pytest.skip(f"{name} is not in the folder")
    known, _ = known_evaluations(
        sorted(FOLDER.glob("*[Tt]est.jsonl.gz")) + sorted(FOLDER.glob("HumanEval*.gz")), 13
    )
    spec = pb.DatasetSpec(name="datasets/published")
    files = pb.FileSource(files=[ContentReference(name=name)], format=form, licence="MIT")
    spec.sources.add(name="rows", files=files)
    reading = Reading(spec, Tools(Access(FOLDER), known), lambda *_: None)
    reading.run()
    assert not reading.damaged
    return reading.report


def test_gsm8ks_training_rows_are_right_and_its_test_rows_are_all_known() -> None:
    train = read("gsm8k_train_first3000.jsonl.gz", pb.SOURCE_FORMAT_GSM8K).sources[0]
    test = read("gsm8k_test.jsonl.gz", pb.SOURCE_FORMAT_GSM8K).sources[0]

    assert (train.wrong, test.wrong) == (0, 0)
    assert train.kept >= 0.99 * train.read
    assert test.contaminated == test.read


def test_hh_is_split_into_prompts_and_answers() -> None:
    count = read("hh_harmless_test.jsonl.gz", pb.SOURCE_FORMAT_PREFERENCE).sources[0]

    assert count.wrong < 0.01 * count.read


def test_quixbugs_gives_pairs() -> None:
    count = read("quixbugs_python.tar.gz", pb.SOURCE_FORMAT_BUG_FIX).sources[0]

    assert count.kept >= 35
