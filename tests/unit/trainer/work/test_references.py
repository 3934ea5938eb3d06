"""An order is signed by nobody: whatever it names must be in the action that was cleared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kala.errors import VerificationError
from services.trainer.work.order import ORDER, read_order
from services.trainer.work.references import require_datasets
from tests.fakes.training_jobs import order


def changed(folder: Path, **parts: Any) -> None:
    document = json.loads((folder / ORDER).read_text())
    for part, changes in parts.items():
        target = document[part][0] if part == "datasets" else document[part]
        target |= changes
    (folder / ORDER).write_text(json.dumps(document))
    require_datasets(read_order(folder))


def test_an_order_names_what_was_cleared(tmp_path: Path) -> None:
    require_datasets(read_order(order(tmp_path)))


@pytest.mark.parametrize("digest", ["", "00" * 32], ids=["none", "another"])
def test_another_base_with_its_own_digest_is_refused(tmp_path: Path, digest: str) -> None:
    folder = order(tmp_path)

    with pytest.raises(VerificationError, match="its base is not the one that was cleared"):
        changed(folder, base={"digest": digest})


@pytest.mark.parametrize(
    "change", [{"digest": "00" * 32}, {"use": 3}, {"weight": 9.0}], ids=["digest", "use", "weight"]
)
def test_another_dataset_or_another_use_of_it_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = order(tmp_path)

    with pytest.raises(VerificationError, match="its datasets are not those that were cleared"):
        changed(folder, datasets=change)


def test_a_parent_that_nobody_cleared_is_refused(tmp_path: Path) -> None:
    folder = order(tmp_path)
    document = json.loads((folder / ORDER).read_text())
    document["parents"] = [{"name": "adapters/p@1", "directory": "/", "digest": "00" * 32}]
    (folder / ORDER).write_text(json.dumps(document))

    with pytest.raises(VerificationError, match="its parents are not those that were cleared"):
        require_datasets(read_order(folder))
