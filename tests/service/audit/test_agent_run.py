"""The view `agent_run`: one row per run of a backend or a tool, the same from both databases."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, text

from kala.audit.v1 import audit_pb2
from kala.common.v1 import decision_pb2
from kala.errors import InvalidArgumentError, UnavailableError
from services.audit import migrations
from services.audit.reading.pipelines import PipelineRuns, Pipelines
from services.audit.reading.query import Condition
from services.common.status import translated
from tests.fakes.audit_log import NOW, LogFile, open_log
from tests.fakes.audit_server import served_log

CALL = {
    "prompt_length": "15",
    "temperature": "0.7",
    "max_tokens": "256",
    "response_length": "12",
    "latency_ms": "[250]",
}
RUN_KEYS = ({"model", "prompt_length", "temperature", "max_tokens"},
            {"response_length", "latency_ms", "tokens_per_second"})  # fmt: skip
Attempt = tuple[str, str]  # a backend and why it failed, empty where it did not


def run(
    number: int,
    *attempts: Attempt,
    kind: str = "chat.outcome",
    status: str = "ok",
    code: str = "",
    backend: str | None = None,
    tool: str = "",
    outcome: decision_pb2.Outcome.ValueType = decision_pb2.OUTCOME_ALLOW,
    call: dict[str, str] | None = None,
    tenant: str = "default",
) -> audit_pb2.Record:
    """The record of one run, as the gateway writes it."""
    made = audit_pb2.Record(type=kind, idempotency_key=number.to_bytes(16, "big"), tenant=tenant)
    made.producer.id, made.producer.boot, made.producer.sequence = "gateway-0", b"bootboot", number + 1
    made.occurred_at.FromMicroseconds(NOW)
    made.action.rpc, made.action.tool = "/kala.x.v1.X/Y", tool
    made.decision.id, made.decision.outcome = f"{number:032x}", outcome
    made.decision.constitution_digest = b"c" * 32
    if outcome != decision_pb2.OUTCOME_ALLOW:
        made.decision.law, made.decision.category = 1, "weapons"
    served = attempts[-1][0] if attempts and not attempts[-1][1] else ""
    made.model.backend = f"backends/{served}" if backend is None and served else backend or ""
    made.model.served = "tiny" if made.model.backend else ""
    made.result.status, made.result.code = status, code
    if attempts:
        made.result.output_tokens = 5
    for name, reason in attempts:
        made.result.attempts.add(
            backend=f"backends/{name}", model="tiny", outcome="failed" if reason else "ok", reason=reason
        )
    for name, value in (CALL if call is None else call).items():
        made.attributes.add(key=f"call.{name}", value=value)
    return made


@pytest.fixture
def log(log_database: str) -> Iterator[LogFile]:
    """A log in either database, as its migrations make it."""
    with open_log(log_database) as opened:
        yield opened


@pytest.fixture
def engine(log: LogFile) -> Iterator[Engine]:
    made = log.open_engine()
    yield made
    made.dispose()


def fill(log: LogFile, *records: audit_pb2.Record) -> None:
    """Log the records, a millisecond between each."""
    for record in records:
        log.append(record)


def rows(engine: Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        found = connection.execute(text("SELECT * FROM agent_run ORDER BY idx, attempt")).mappings().all()
    return [{name: parsed(name, value) for name, value in row.items()} for row in found]


def parsed(name: str, value: Any) -> Any:
    return json.loads(value) if name.endswith("_json") and isinstance(value, str) else value


def test_a_run_has_exactly_the_keys_of_rfc_080(log: LogFile, engine: Engine) -> None:
    fill(log, run(0, ("lmstudio", "")))
    (row,) = rows(engine)
    assert (row["tool"], row["status"], row["attempt"], row["tenant"]) == ("lm_studio", "ok", 0, "default")
    assert row["args_json"] == {
        "model": "tiny",
        "prompt_length": 15,
        "temperature": 0.7,
        "max_tokens": 256,
    }
    assert row["result_json"] == {"response_length": 12, "latency_ms": 250, "tokens_per_second": 20.0}
    assert row["violations_json"] == []


def test_every_backend_goes_by_its_kind(log: LogFile, engine: Engine) -> None:
    names = ["lmstudio", "lmstudio-2", "lmstudio-embeddings", "mlx", "llamacpp-3", "ollama", "pythia", "demo", "openai"]  # fmt: skip
    fill(log, *(run(number, (name, "")) for number, name in enumerate(names)))
    assert [row["tool"] for row in rows(engine)] == [
        "lm_studio", "lm_studio", "lm_studio", "mlx", "llamacpp", "ollama", "pythia", "demo", "openai",
    ]  # fmt: skip


def test_a_backend_that_failed_before_another_answered_is_a_run_of_its_own(
    log: LogFile, engine: Engine
) -> None:
    call = {**CALL, "latency_ms": "[30,200]"}
    fill(log, run(0, ("lmstudio", "CONNECTION_REFUSED"), ("llamacpp", ""), call=call))
    failed, answered = rows(engine)
    assert (failed["tool"], failed["status"], failed["attempt"]) == ("lm_studio", "error", 0)
    assert failed["violations_json"] == [
        {"status": "error", "code": "CONNECTION_REFUSED", "law": None, "category": None}
    ]
    assert failed["result_json"] == {"response_length": None, "latency_ms": 30, "tokens_per_second": None}
    assert (answered["tool"], answered["status"], answered["attempt"]) == ("llamacpp", "ok", 1)
    assert answered["result_json"] == {"response_length": 12, "latency_ms": 200, "tokens_per_second": 25.0}


def test_every_attempt_of_a_chat_that_nobody_answered_is_a_failed_run(log: LogFile, engine: Engine) -> None:
    tried = (("mlx", "TIMEOUT"), ("lmstudio", "NO_MODEL_LOADED"))
    fill(log, run(0, *tried, status="error", code="ALL_BACKENDS_FAILED"))
    assert [(row["tool"], row["violations_json"][0]["code"]) for row in rows(engine)] == [
        ("mlx", "TIMEOUT"),
        ("lm_studio", "NO_MODEL_LOADED"),
    ]


@pytest.mark.parametrize(
    ("ending", "violation"),
    [
        ({"status": "refused", "outcome": decision_pb2.OUTCOME_REFUSE},
         {"status": "refused", "code": "REFUSE", "law": 1, "category": "weapons"}),
        ({"status": "cancelled", "code": "CLIENT_CLOSED_REQUEST"},
         {"status": "cancelled", "code": "CLIENT_CLOSED_REQUEST", "law": None, "category": None}),
        ({"status": "error", "code": "BACKEND_STREAM_CUT"},
         {"status": "error", "code": "BACKEND_STREAM_CUT", "law": None, "category": None}),
    ],
    ids=["refused", "cancelled", "cut"],
)  # fmt: skip
def test_what_is_to_be_said_against_a_run_stands_in_its_violations(
    log: LogFile, engine: Engine, ending: dict[str, Any], violation: dict[str, Any]
) -> None:
    fill(log, run(0, ("pythia", ""), **ending))
    (row,) = rows(engine)
    assert (row["tool"], row["status"], row["violations_json"]) == ("pythia", "error", [violation])


def test_a_call_of_a_tool_has_the_same_keys(log: LogFile, engine: Engine) -> None:
    call = {"prompt_length": "20", "response_length": "7", "latency_ms": "[40]"}
    fill(
        log,
        run(0, kind="execute.outcome", tool="shell", call=call),
        run(1, kind="execute.outcome", tool="shell", call=call, code="ERROR"),
        run(
            2,
            kind="execute.refused",
            tool="shell",
            call={},
            status="refused",
            outcome=decision_pb2.OUTCOME_REFUSE,
        ),
    )
    good, bad, refused = rows(engine)
    assert {row["tool"] for row in (good, bad, refused)} == {"shell"}
    assert good["args_json"] == {"model": None, "prompt_length": 20, "temperature": None, "max_tokens": None}
    assert good["result_json"] == {"response_length": 7, "latency_ms": 40, "tokens_per_second": None}
    assert (good["status"], good["violations_json"]) == ("ok", [])
    assert (bad["status"], bad["violations_json"][0]["code"]) == ("error", "ERROR")
    assert refused["violations_json"] == [
        {"status": "refused", "code": "REFUSE", "law": 1, "category": "weapons"}
    ]
    assert all((set(row["args_json"]), set(row["result_json"])) == RUN_KEYS for row in (good, bad, refused))


def test_only_runs_are_runs(log: LogFile, engine: Engine) -> None:
    fill(
        log,
        run(0, kind="chat.intent"),
        run(1, kind="chat.refused", status="refused", outcome=decision_pb2.OUTCOME_REFUSE),
        run(2, kind="tools.claim", tool="shell"),
        run(3, kind="tools.result", tool="shell"),
        run(4, kind="write_file.outcome"),
        run(5, kind="execute.intent", tool="shell"),
    )
    assert rows(engine) == []


def test_no_text_of_a_backend_or_a_client_breaks_or_forges_a_row(log: LogFile, engine: Engine) -> None:
    hostile = run(0, ("mlx", ""), call={"latency_ms": "[1,", "temperature": "hot", "prompt_length": "-"})
    hostile.attributes.add(key="loop.call", value='x\x00"outcome":"failed"\\u0000')
    hostile.model.requested = '"outcome":"failed"'
    fill(log, hostile)
    (row,) = rows(engine)
    assert (row["tool"], row["status"], row["result_json"]["latency_ms"]) == ("mlx", "ok", None)
    assert (set(row["args_json"]), set(row["result_json"])) == RUN_KEYS


def test_a_status_counts_each_pipeline_and_tells_how_its_last_run_ended(log: LogFile, engine: Engine) -> None:
    fill(
        log,
        run(0, ("lmstudio", "TIMEOUT"), ("mlx", "")),
        run(1, ("lmstudio", "")),
        run(2, ("mlx", ""), status="cancelled", code="CLIENT_CLOSED_REQUEST"),
        run(3, kind="execute.outcome", tool="shell", tenant="other"),
    )
    pipelines = Pipelines(engine, log.log_id)
    assert pipelines.since(0) == [
        PipelineRuns("lm_studio", 1, 1, NOW + 1_000, is_last_ok=True),
        PipelineRuns("mlx", 1, 1, NOW + 2_000, is_last_ok=False),
        PipelineRuns("shell", 1, 0, NOW + 3_000, is_last_ok=True),
    ]
    assert [found.name for found in pipelines.since(NOW + 3_000)] == ["shell"]
    assert [found.name for found in pipelines.since(0, [Condition("tenant", ("default",))])] == [
        "lm_studio",
        "mlx",
    ]
    assert pipelines.since(NOW + 4_000) == []


async def test_the_rpc_answers_for_a_window_and_a_tenant(log_database: str) -> None:
    async with served_log(log_database) as served:
        served.file.clock = itertools.chain([NOW - 10**12], itertools.repeat(NOW))
        served.file.append(run(0, ("mlx", "")))  # eleven days ago
        served.file.append(run(1, ("lmstudio", "TIMEOUT"), ("mlx", "")))
        served.file.append(run(2, ("mlx", ""), tenant="other"))
        request = audit_pb2.PipelineStatusRequest()
        named = {one.name: one for one in (await served.read.PipelineStatus(request)).pipelines}
        assert list(named) == ["lm_studio", "mlx"]
        assert (named["mlx"].succeeded, named["mlx"].failed, named["mlx"].last_status) == (2, 0, "ok")
        assert (named["lm_studio"].failed, named["lm_studio"].last_status) == (1, "error")
        assert named["mlx"].last_run_at.ToMicroseconds() == NOW
        request.filter.tenant = "other"
        (only,) = (await served.read.PipelineStatus(request)).pipelines
        assert (only.name, only.succeeded) == ("mlx", 1)
        request = audit_pb2.PipelineStatusRequest(filter=audit_pb2.EntryFilter(tool="mlx"))
        request.window.FromSeconds(14 * 86_400)
        (only,) = (await served.read.PipelineStatus(request)).pipelines
        assert only.succeeded == 3
        for seconds in (0, -1):
            request.window.FromSeconds(seconds)
            with pytest.raises(InvalidArgumentError, match="window"), translated():
                await served.read.PipelineStatus(request)


def test_a_database_that_does_not_answer_is_unavailable_and_keeps_its_address() -> None:
    away = create_engine("postgresql+psycopg://someone:secret@127.0.0.1:9/log?connect_timeout=2")
    with pytest.raises(UnavailableError) as caught:
        Pipelines(away, 1).since(0)
    assert caught.value.reason == "AUDIT_UNAVAILABLE"
    assert caught.value.message == "the log's database does not answer"


def test_a_log_of_the_release_before_gains_the_rows_of_what_it_holds(tmp_path: Path) -> None:
    real, old = tmp_path / "real.db", tmp_path / "old.db"
    with open_log(real) as log:
        log.append(run(0, ("lmstudio", "")))
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    made = create_engine(f"sqlite:///{old}")
    with made.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    made.dispose()
    with closing(sqlite3.connect(old)) as before:
        before.execute("ATTACH ? AS real", (str(real),))
        for table in ("log", "head", "entry", "checkpoint", "tile", "payload", "subject_key"):
            before.execute(f"INSERT INTO main.{table} SELECT * FROM real.{table}")
        before.commit()
    with open_log(old), closing(sqlite3.connect(old)) as after:
        assert after.execute("SELECT tool, status FROM agent_run").fetchall() == [("lm_studio", "ok")]


async def test_a_long_count_holds_up_no_other_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slow(*_: object) -> list[PipelineRuns]:
        began.set()
        go_on.wait(30)
        return []

    monkeypatch.setattr(Pipelines, "since", slow)
    async with served_log(tmp_path / "audit.db") as served:
        served.file.append(run(0, ("mlx", "")))
        counting = asyncio.ensure_future(served.read.PipelineStatus(audit_pb2.PipelineStatusRequest()))
        assert await asyncio.to_thread(began.wait, 30)
        assert (await served.read.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=20)).checkpoint
        assert not counting.done()
        go_on.set()
        assert not (await counting).pipelines
