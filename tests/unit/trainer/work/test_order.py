"""A work process does what ethics cleared, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kala.common.v1.clearance_pb2 import Principal
from kala.errors import ClearanceError, FailedPreconditionError, InvalidArgumentError
from kala.trainer.v1 import trainer_pb2 as pb
from services.trainer.work.order import (
    ORDER,
    SEALED,
    TRAIN,
    AdapterPlace,
    BasePlace,
    DatasetPlace,
    Order,
    ServicePlaces,
    read_order,
    write_order,
)
from tests.fakes.clearances import FakeEthics

AUDIENCE = "/kala.trainer.v1.TrainerService/CreateTrainingJob"
ACTION = pb.CreateTrainingJobAction(request_id="r" * 16)


def written(folder: Path, *, ethics: FakeEthics | None = None, audience: str = AUDIENCE) -> Order:
    """An order with everything that one may have."""
    ethics = ethics or FakeEthics()
    order = Order(
        kind=TRAIN,
        name="trainingJobs/" + "1" * 32,
        folder=folder / "work",
        principal=Principal(tenant="acme"),
        deadline=12.5,
        base=BasePlace("kala-embedded", folder / "base", b"b" * 32),
        datasets=(DatasetPlace("datasets/a@1", folder / "a", 1, 0.5, b"d" * 32),),
        parents=(AdapterPlace("adapters/p@1", folder / "p"),),
        services=ServicePlaces(ethics_address="unix:/e.sock"),
        threads=3,
        settings={"mlflow_uri": ""},
    )
    sealed = ethics.seal(ACTION, audience=AUDIENCE, tenant="acme")
    write_order(order, sealed=sealed, audience=audience, public_keys=[ethics.public_key_file(folder)])
    return order


def test_an_order_comes_back_as_it_was_given_with_its_cleared_action(tmp_path: Path) -> None:
    given = written(tmp_path)
    read = read_order(given.folder)
    assert read.parse(pb.CreateTrainingJobAction) == ACTION
    assert (read.base, read.datasets, read.parents) == (given.base, given.datasets, given.parents)
    assert (read.services, read.threads, read.deadline) == (given.services, 3, 12.5)
    assert read.decision_id == "test"
    with pytest.raises(InvalidArgumentError, match="type_url"):
        read.parse(pb.BuildDatasetAction)


@pytest.mark.parametrize("part", ["action", "claims", "signature"])
def test_one_changed_byte_of_what_was_cleared_is_refused(tmp_path: Path, part: str) -> None:
    folder = written(tmp_path).folder
    from kala.common.v1.clearance_pb2 import SealedAction

    sealed = SealedAction.FromString((folder / SEALED).read_bytes())
    if part == "action":
        sealed.action.value += b"\x00"
    else:
        data = getattr(sealed.clearance, part)
        setattr(sealed.clearance, part, data[:-1] + bytes([data[-1] ^ 1]))
    (folder / SEALED).write_bytes(sealed.SerializeToString())
    with pytest.raises(ClearanceError):
        read_order(folder)


def test_a_clearance_for_another_call_is_refused(tmp_path: Path) -> None:
    order = written(tmp_path, audience="/kala.trainer.v1.TrainerService/BuildDataset")
    with pytest.raises(ClearanceError, match="another call"):
        read_order(order.folder)


def test_a_clearance_of_somebody_elses_key_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path).folder
    document = json.loads((folder / ORDER).read_bytes())
    document["public_keys"] = [str(FakeEthics().public_key_file(tmp_path))]
    (folder / ORDER).write_text(json.dumps(document))
    with pytest.raises(ClearanceError, match="unknown key"):
        read_order(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"kind": "shell"}', "\xff"], ids=lambda text: text or "empty"
)
def test_an_order_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    folder = written(tmp_path).folder
    (folder / ORDER).write_text(text, encoding="latin-1")
    with pytest.raises(FailedPreconditionError, match=ORDER):
        read_order(folder)


def test_unguarded_work_has_no_action(tmp_path: Path) -> None:
    order = Order("export", "exports/x", tmp_path / "work", Principal(), deadline=1.0)
    write_order(order, sealed=None, audience="", public_keys=[])
    read = read_order(order.folder)
    assert read.action is None
    with pytest.raises(FailedPreconditionError, match="without an action"):
        read.parse(pb.CreateTrainingJobAction)
