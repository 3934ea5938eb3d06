"""Whether an objective can learn from the rows of its datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from kala.trainer.v1 import job_pb2 as pb
from kala.trainer.v1.dataset_pb2 import Dataset
from services.trainer.datasets.formats import LABELS, PREFERENCES, SFT
from services.trainer.datasets.spec_checks import kind_of

NEEDED: Final[Mapping[int, frozenset[str]]] = {
    pb.TRAINING_OBJECTIVE_SFT: frozenset({SFT}),
    pb.TRAINING_OBJECTIVE_DPO: frozenset({PREFERENCES}),
    pb.TRAINING_OBJECTIVE_CLASSIFICATION: frozenset({LABELS}),
    # Of either only the requests are taken.
    pb.TRAINING_OBJECTIVE_CONSTITUTIONAL: frozenset({SFT, PREFERENCES}),
}


def wrong_kinds(spec: pb.TrainingSpec, datasets: Sequence[Dataset | None]) -> Iterator[str]:
    """What the job would only find out when it reads its first row; a dataset not built yet is not known."""
    needed = NEEDED.get(spec.objective, frozenset())
    for index, dataset in enumerate(datasets):
        if not needed or dataset is None or not dataset.spec.sources:
            continue
        kind = kind_of(dataset.spec.sources[0])
        if kind not in needed:
            objective = pb.TrainingObjective.Name(spec.objective).removeprefix("TRAINING_OBJECTIVE_").lower()
            yield (
                f"datasets[{index}]: {dataset.name} has {kind}, and objective {objective} learns from "
                f"{' or '.join(sorted(needed))}; take another dataset or another objective"
            )
