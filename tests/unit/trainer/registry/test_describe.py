"""A description says what the files are, and what was cleared; nothing else is believed."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from kala.common.v1 import adapter_pb2 as pb
from kala.errors import FailedPreconditionError, VerificationError
from services.common.adapter_manifest import training_action_digest
from services.common.adapter_weights import WEIGHTS_FILE
from services.trainer.registry.bases import describe_base
from services.trainer.registry.describe import datasets_used, describe, lineage
from services.trainer.registry.shelf import Folder
from tests.fakes.trained import TrainedWorld


def described(world: TrainedWorld) -> pb.AdapterDescription:
    folder = Folder(world.adapter)
    return describe(world.trained, folder, folder.references())


def test_it_holds_what_was_cleared_and_what_lies_there(tmp_path: Path) -> None:
    world = TrainedWorld(tmp_path)
    found = described(world)
    trained = world.trained
    assert (found.tenant, found.owner, found.stage) == ("default", "key-1", pb.ADAPTER_STAGE_CUSTOM)
    assert found.training.action == trained.action
    assert found.training.action_digest == training_action_digest(trained.action)
    assert (found.training.steps, found.training.tokens, found.training.resumes) == (120, 9_000, 1)
    assert [(item.name, item.value) for item in found.training.metrics] == [("train_loss", 0.25)]
    weights = next(file for file in found.files if file.name == WEIGHTS_FILE)
    assert weights.sha256 == sha256(world.files[WEIGHTS_FILE]).digest()
    assert (found.base.digest, found.base.parameters, found.base.context_tokens) == (
        world.base_digest,
        32,
        256,
    )


def test_datasets_have_their_shares_and_rows(tmp_path: Path) -> None:
    found = described(TrainedWorld(tmp_path)).datasets
    assert [(item.rows, item.share_micros) for item in found] == [(100, 250_000), (100, 750_000), (10, 0)]
    assert list(found[0].licences) == ["CC0-1.0"]


def test_a_dataset_that_is_not_the_one_cleared_is_refused(tmp_path: Path) -> None:
    world = TrainedWorld(tmp_path)
    dataset, share = world.dataset, world.spec.datasets[0]
    dataset.reference.sha256 = bytes(32)
    with pytest.raises(VerificationError, match=r"datasets/tasks@1: digest of its manifest"):
        datasets_used([(dataset, share)])


def test_a_base_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    world = TrainedWorld(tmp_path)
    digest = world.base_digest
    (world.base / "model.safetensors").write_bytes(b"other")
    with pytest.raises(VerificationError, match="base tiny: digest of its files"):
        describe_base(world.base, "tiny", expected_digest=digest, quantization=pb.QUANTIZATION_NONE)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"result": {}}, "took no step"),
        ({"result": {"steps": "many", "metrics": [1], "software": "x"}}, "took no step"),
        ({"files": {}}, r"adapter_config\.json: training did not leave it"),
    ],
    ids=["no result", "nonsense", "no files"],
)
def test_a_training_that_left_nothing_is_refused(tmp_path: Path, change: dict, match: str) -> None:
    with pytest.raises(VerificationError, match=match):
        described(TrainedWorld(tmp_path, **change))


def test_an_adapter_of_another_rank_than_was_cleared_is_refused(tmp_path: Path) -> None:
    world = TrainedWorld(tmp_path)
    folder = Folder(world.adapter)
    trained = world.trained
    spec = world.spec
    spec.lora.rank = 8
    other = replace(trained, action=trained.action.__class__(b"\x12" + bytes([0])))
    assert other.spec.lora.rank == 0
    with pytest.raises(VerificationError, match="has rank 2, not 0"):
        describe(other, folder, folder.references())


def parent(number: int, base: bytes, *names: str) -> tuple[pb.AdapterDescription, bytes]:
    description = pb.AdapterDescription(
        name=f"adapters/stage@{number}",
        base=pb.BaseModel(digest=base),
        stage=pb.ADAPTER_STAGE_CONSTITUTIONAL,
        ancestors=[pb.Ancestor(name=name) for name in names],
    )
    return description, sha256(description.name.encode()).digest()


def test_parents_lead_from_the_published_base_to_the_merged_one() -> None:
    published, merged, final = (sha256(text).digest() for text in (b"published", b"merged", b"final"))
    first, second = parent(1, published), parent(2, merged, "adapters/stage@1")
    found = lineage([first, second], final, merges={first[1]: [merged], second[1]: [final]})
    assert [(item.name, item.base_digest, item.merged_digest) for item in found] == [
        ("adapters/stage@1", published, merged),
        ("adapters/stage@2", merged, final),
    ]


def test_parents_that_lead_elsewhere_are_refused() -> None:
    published, merged = sha256(b"published").digest(), sha256(b"merged").digest()
    first = parent(1, published)
    with pytest.raises(FailedPreconditionError, match=r"parents\[0\]: the merge of adapters/stage@1"):
        lineage([first], merged, merges={})
    hidden = parent(2, merged, "adapters/secret@1")
    with pytest.raises(FailedPreconditionError, match="was itself built on other adapters"):
        lineage([hidden], published, merges={hidden[1]: [published]})
