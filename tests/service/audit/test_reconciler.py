"""The reconciler tells of gaps as the log grows, at a cost that follows its growth."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, event
from structlog.testing import capture_logs

from kala.audit.v1 import audit_pb2
from services.audit.reading import reconciler as module
from services.audit.reading.reconciler import INTENT_AGE_US, Reconciler, reconciling
from services.common.database import connectable
from tests.fakes.audit_log import NOW, LogFile, open_log, record


@pytest.fixture
def log(log_database: str) -> Iterator[LogFile]:
    with open_log(log_database) as opened:
        yield opened


@contextmanager
def engine_of(log: LogFile) -> Iterator[Engine]:
    engine = log.open_engine()
    yield engine
    engine.dispose()


def intent(number: int) -> audit_pb2.Record:
    made = record(number, kind="chat.intent")
    made.intent = b""
    return made


def gaps(registry: CollectorRegistry) -> tuple[float | None, float | None]:
    return (
        registry.get_sample_value("kala_audit_gaps", {"gap": "unmatched_intent"}),
        registry.get_sample_value("kala_audit_gaps", {"gap": "sequence_hole"}),
    )


def test_a_lost_outcome_and_a_lost_number_are_counted_and_named_once(log: LogFile) -> None:
    registry = CollectorRegistry()
    log.append(intent(0), intent(1), with_proof=False)
    outcome = record(4)
    outcome.intent = intent(0).idempotency_key
    log.append(outcome, with_proof=False)
    with engine_of(log) as engine, capture_logs() as lines:
        reconciler = Reconciler(engine, log.log_id, registry=registry, clock=lambda: NOW + 1)
        assert reconciler.step() is False
        assert gaps(registry) == (0, 1)  # no intent is old yet
        reconciler = Reconciler(
            engine, log.log_id, registry=CollectorRegistry(), clock=lambda: NOW + INTENT_AGE_US + 10
        )
        reconciler.step()
        reconciler.step()
    named = [(line["kind"], line["count"], line["newest"]) for line in lines]
    hole = ("sequence_hole", 1, [f"gateway-0 boot {b'bootboot'.hex()}: 3 to 4"])
    assert named == [hole, ("unmatched_intent", 1, ["entries/1"]), hole]


def test_each_entry_is_read_once_in_bounded_steps(log: LogFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP_ENTRIES", 4)
    registry, starts = CollectorRegistry(), []
    log.append(*(intent(number) for number in range(10)), with_proof=False)
    with engine_of(log) as engine:
        event.listen(engine, "before_cursor_execute", lambda *call: starts.extend(_start_of(call[3])))
        reconciler = Reconciler(engine, log.log_id, registry=registry, clock=lambda: NOW + 10 * INTENT_AGE_US)
        assert [reconciler.step(), reconciler.step(), reconciler.step()] == [True, True, False]
        assert gaps(registry) == (10, 0)
        log.append(intent(10), with_proof=False)
        assert reconciler.step() is False
        assert gaps(registry) == (11, 0)
    assert starts == [0, 4, 8, 10]


def _start_of(parameters: object) -> list[int]:
    """The index that a query asks from, however its database takes parameters; none for other statements."""
    if isinstance(parameters, dict):
        return [parameters["idx_1"]] if "idx_1" in parameters else []
    return [parameters[1]] if isinstance(parameters, tuple) and len(parameters) > 2 else []


async def test_a_database_that_is_away_is_asked_again(log: LogFile, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    log.append(intent(3), with_proof=False)
    with engine_of(log) as engine:
        reconciler = Reconciler(engine, log.log_id, registry=registry, clock=lambda: NOW)
        away = tmp_path / "away"
        reconciler._engine = connectable(str(away), variable="KALA_AUDIT_DATABASE")
        with capture_logs() as lines:
            async with reconciling(reconciler, poll_seconds=0.01), asyncio.timeout(10):
                while not lines:  # noqa: ASYNC110 - another task's doing
                    await asyncio.sleep(0.01)
                reconciler._engine, empty = engine, reconciler._engine
                while gaps(registry) != (0, 1):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.01)
        empty.dispose()
    assert lines[0]["event"] == "the log's gaps cannot be counted now"
