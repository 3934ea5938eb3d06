"""Erases a person from batches: theirs, those whose lines name them, and those that no worker has read yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gateway.batches.lines import persons_in
from kala.audit.v1 import audit_pb2
from kala.errors import DataLossError, NotFoundError

if TYPE_CHECKING:
    from gateway.batches.store import BatchStore
    from gateway.erasure import Eraser
    from gateway.files.store import FileStore


def batches_eraser(
    store: BatchStore, files: FileStore, *, subject_of: Callable[[str, str], str], max_line_bytes: int
) -> Eraser:
    """Erases batches that are a person's or name them, with the files that they read and wrote."""

    def names(tenant: str, subject: str, file_id: str) -> bool:
        try:
            parts = files.read(files.get(tenant, file_id))
            persons = set(persons_in(parts, max_line_bytes=max_line_bytes))
        except (NotFoundError, DataLossError):
            return False  # gone, or not to be read by anybody
        return any(subject_of(tenant, person) == subject for person in persons)

    def erase_blocking(tenant: str, subject: str) -> tuple[int, int]:
        unread = store.unread(tenant)
        naming = {file for file in {*unread.values()} if names(tenant, subject, file)}
        also = [batch_id for batch_id, file in unread.items() if file in naming]
        count, of_batches = store.erase(tenant, subject, also=also)
        return count, files.erase(tenant, subject, also=of_batches)

    async def erase(subject: str, tenant: str) -> Sequence[audit_pb2.ErasedStore]:
        count, of_files = await asyncio.to_thread(erase_blocking, tenant, subject)
        return [
            audit_pb2.ErasedStore(store="gateway.batches", items=count),
            audit_pb2.ErasedStore(store="gateway.batch_files", items=of_files),
        ]

    return erase
