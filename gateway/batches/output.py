"""Writes what a batch's lines came to into its output and error files, and ends it with them in one step.  Blocking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.files.model import BATCH_LIFE, BATCH_OUTPUT

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from gateway.batches.model import Batch
    from gateway.batches.store import BatchStore
    from gateway.files.store import Draft, FileStore

PAGE: Final = 200


class _Sheet:
    """One of the two files, which exists only when it has a line."""

    def __init__(self, batch: Batch, name: str, files: FileStore) -> None:
        self._batch = batch
        self._name = f"{batch.id}_{name}.jsonl"
        self._files = files
        self._draft: Draft | None = None
        self._sealed_name = b""

    @property
    def id(self) -> str | None:
        """The file's id, when there is one."""
        return None if self._draft is None else self._draft.id

    def write(self, line: bytes) -> None:
        """Add a line."""
        if self._draft is None:
            batch = self._batch
            self._draft = self._files.begin(tenant=batch.tenant, owner=batch.owner, subject=batch.subject)
        self._files.append(self._draft, line + b"\n")

    def complete(self) -> None:
        """Write everything, still out of sight."""
        if self._draft is not None:
            self._sealed_name = self._files.complete(self._draft, self._name)

    def publish(self, connection: Connection) -> None:
        """Make it visible."""
        if self._draft is not None:
            self._files.publish(
                connection,
                self._draft,
                self._sealed_name,
                purpose=BATCH_OUTPUT,
                name=self._name,
                life=self._batch.output_life or BATCH_LIFE,
            )

    def discard(self) -> None:
        """Take it back."""
        if self._draft is not None:
            self._files.discard(self._draft)


def write_files(batch: Batch, holder: str, status: str, *, store: BatchStore, files: FileStore) -> None:
    """Write both files and end the batch with this status: either all of that is seen, or none."""
    output, errors = _Sheet(batch, "output", files), _Sheet(batch, "error", files)
    try:
        after = 0
        while results := store.results(batch, limit=PAGE, after=after):
            for result in results:
                (output if result.succeeded else errors).write(result.line)
            after = results[-1].number

        def publish(connection: Connection) -> None:
            output.publish(connection)
            errors.publish(connection)

        output.complete()
        errors.complete()
        store.end(
            batch,
            holder,
            status,
            output_file_id=output.id,
            error_file_id=errors.id,
            publish=publish,
        )
    except BaseException:
        output.discard()
        errors.discard()
        raise
