"""Kinds of operations, the records that they begin with, and what is said of their ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from kala.errors import CancelledError, KalaError
from services.common.service_records import Facts
from services.common.status import ERROR_DOMAIN
from services.trainer.records import DATASET_STARTED, EVALUATION_STARTED, TRAINING_STARTED, Claim, claim_of
from services.trainer.running import Running
from services.trainer.store.operation_rows import OperationRow

TRAIN: Final = "train"
BUILD: Final = "build"
EVALUATE: Final = "evaluate"
EXPORT: Final = "export"

STARTED: Final[Mapping[str, str]] = {
    TRAIN: TRAINING_STARTED,
    BUILD: DATASET_STARTED,
    EVALUATE: EVALUATION_STARTED,
}


def claim_in(row: OperationRow) -> Claim | None:
    """The claim that an operation was begun under; None for unguarded work, and for work that never began."""
    if row.sealed is None or not row.intent:
        return None
    return claim_of(row.sealed, kind=STARTED[row.kind], execution_id=row.execution_id, key=row.intent)


def facts_of(running: Running, response: Message | KalaError, seconds: float) -> Facts:
    """What the log is told of an end."""
    attributes = {"operation": running.name, **running.end_attributes}
    references = tuple(running.end_references)
    if isinstance(response, CancelledError):
        return Facts("cancelled", response.reason, seconds, attributes, references)
    if isinstance(response, KalaError):
        return Facts("error", response.reason, seconds, attributes, references)
    return Facts("ok", "", seconds, attributes, references)


def restarted() -> status_pb2.Status:
    """Say that a restart cut it: ABORTED, which tells a client that the same request under a new id may succeed."""
    status = status_pb2.Status(
        code=code_pb2.ABORTED, message="the trainer was restarted meanwhile; ask again with a new request_id"
    )
    detail: Any = error_details_pb2.ErrorInfo(reason="RESTARTED", domain=ERROR_DOMAIN)  # Any: a message
    status.details.add().Pack(detail)
    return status
