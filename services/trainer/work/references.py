"""What a process is given is what was cleared: the order's places against the action, and the datasets' files against those."""

from __future__ import annotations

import secrets

from kala.errors import VerificationError
from kala.trainer.v1.trainer_pb2 import CreateTrainingJobAction
from services.trainer.datasets.manifest import open_dataset, verify_files
from services.trainer.work.order import TRAIN, Order


def require_datasets(order: Order) -> None:
    """Raises VerificationError unless every dataset is, file by file, the one whose manifest was cleared.

    A training job's base, datasets and parents are first held against its action: the order itself is signed by nobody.
    """
    if order.kind == TRAIN:
        _require_cleared(order)
    for place in order.datasets:
        verify_files(open_dataset(place.directory, place.digest))


def _require_cleared(order: Order) -> None:
    spec = order.parse(CreateTrainingJobAction).spec
    base = b"" if order.base is None else order.base.digest
    # An empty digest would be one that nobody cleared.
    if not base or not secrets.compare_digest(base, spec.base.sha256):
        raise VerificationError(f"{order.name}: its base is not the one that was cleared")
    shares = [(share.dataset.sha256, int(share.use), share.weight or 1.0) for share in spec.datasets]
    if shares != [(place.digest, place.use, place.weight or 1.0) for place in order.datasets]:
        raise VerificationError(f"{order.name}: its datasets are not those that were cleared")
    if [parent.sha256 for parent in spec.parents] != [place.digest for place in order.parents]:
        raise VerificationError(f"{order.name}: its parents are not those that were cleared")
