"""What a process is given is what was cleared: its datasets' files are held against their manifests right before use."""

from __future__ import annotations

from services.trainer.datasets.manifest import open_dataset, verify_files
from services.trainer.work.order import Order


def require_datasets(order: Order) -> None:
    """Raises VerificationError unless every dataset is, file by file, the one whose manifest was cleared."""
    for place in order.datasets:
        verify_files(open_dataset(place.directory, place.digest))
