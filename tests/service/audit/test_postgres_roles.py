"""What each role may do in the log's database, and that the service needs no more than its own."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from kala.errors import FailedPreconditionError
from services.audit.migrate import grant_roles
from services.audit.storage.postgres import Postgres
from services.audit.storage.postgres_retention import drop_before, first_index
from services.audit.storage.postgres_schema import ERASER, GRANTS, READER, VERSION_TABLE, WRITER
from services.audit.storage.postgres_store import PostgresWriter
from services.audit.storage.schema import METADATA
from services.common.channel import open_channel
from tests.fakes.audit_log import LogFile, open_log, record
from tests.fakes.audit_process import AuditProcess
from tests.fakes.postgres_statements import run
from tests.postgres import Databases, name_of


# Roles.
@pytest.fixture
def granted(postgres_log_url: str) -> str:
    with open_log(postgres_log_url) as log:
        log.append(record(0, payloads=2))
    grant_roles(Postgres(postgres_log_url))
    return postgres_log_url


def test_every_table_says_what_each_role_may_do() -> None:
    assert GRANTS.keys() >= METADATA.tables.keys() | {"idem", VERSION_TABLE}


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        *((READER, f"INSERT INTO {table} DEFAULT VALUES") for table in ("entry", "head", "checkpoint", "tile")),
        *((READER, f"SELECT * FROM {table}") for table in ("payload", "subject_key")),
        *((WRITER, f"{change} {table}") for table in ("entry", "checkpoint") for change in ("DELETE FROM", "TRUNCATE")),
        (WRITER, "UPDATE entry SET tenant = ''"),
        (WRITER, "UPDATE checkpoint SET note = ''"),
        (WRITER, "UPDATE payload SET ciphertext = NULL"),
        (WRITER, "UPDATE subject_key SET wrapped = NULL"),
        (WRITER, "UPDATE head SET key_epoch = 0"),
        (WRITER, "DELETE FROM idem"),
        (WRITER, "DROP TABLE entry"),
        (WRITER, "ALTER TABLE entry DISABLE TRIGGER ALL"),
        (WRITER, "CREATE TABLE mine (x int)"),
        (ERASER, "INSERT INTO entry DEFAULT VALUES"),
        (ERASER, "UPDATE entry SET tenant = ''"),
        (ERASER, "UPDATE head SET size = 0"),
        (ERASER, "DELETE FROM tile"),
        (ERASER, "SELECT audit_extend_entry(1, 256)"),
    ],
)  # fmt: skip
def test_a_role_does_its_own_work_and_no_other(refusing: str, role: str, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        run(refusing, statement, role=role)


def test_the_reader_s_role_reads_the_log_and_the_eraser_s_destroys_keys(granted: str) -> None:
    for table in ("log", "head", "entry", "checkpoint", "tile", "agent_run", "legal_hold", "erasure"):
        run(granted, f"SELECT * FROM {table}", role=READER)
    run(
        granted,
        "UPDATE head SET key_epoch = key_epoch + 1",
        "UPDATE subject_key SET wrapped = NULL, erased_at = 1",
        "UPDATE payload SET ciphertext = NULL",
        role=ERASER,
    )
    assert run(granted, "SELECT count(*) FROM payload WHERE ciphertext IS NOT NULL") == [(0,)]


@pytest.fixture
def writer_url(granted: str, postgres_databases: Databases) -> str:
    return service_of(granted, postgres_databases)


def service_of(url: str, postgres_databases: Databases) -> str:
    """The URL of a login that is a writer and an eraser, as the service should be, and owns nothing."""
    postgres_databases.run(
        "DO $$ BEGIN CREATE ROLE audit_service LOGIN PASSWORD 'audit'; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    postgres_databases.run(f"GRANT {WRITER}, {ERASER} TO audit_service")
    return postgres_databases.url(name_of(url), user="audit_service:audit")


def test_the_service_needs_no_more_than_the_writer_s_role(writer_url: str) -> None:
    with open_log(writer_url) as log:
        assert isinstance(log.writer, PostgresWriter)
        log.writer._bound, log.writer._partition_width = 0, 1 << 22
        assert log.append(*(record(number, payloads=1) for number in range(1, 300)))[0].index == 1
        log.writer._turns = 1
        assert log.append(record(300))[0].index == 300


async def test_the_whole_process_runs_as_writer_and_eraser_alone(
    postgres_log_url: str, postgres_databases: Databases, tmp_path: Path
) -> None:
    grant_roles(Postgres(postgres_log_url))
    url = service_of(postgres_log_url, postgres_databases)
    sink = {"file": {"url": f"file://{tmp_path / 'sink.jsonl'}", "start": "beginning"}}
    audit = AuditProcess(tmp_path / "audit", url=url, environment={"KALA_AUDIT_SINKS": json.dumps(sink)})
    audit.start()
    async with open_channel(audit.address, peer_name="gateway") as channel:
        stub = audit_pb2_grpc.AuditServiceStub(channel)
        request = audit_pb2.AppendRequest(record=record(0, payloads=2), with_proof=True)
        response = await stub.Append(request, timeout=20, wait_for_ready=True)
    assert audit.stop() == 0, audit.output()
    assert verify_receipt(response.receipt.proof, [audit.verifier]).index == response.receipt.index
    assert "permission" not in audit.output()


def test_the_service_s_role_drops_no_entries(granted: str, writer_url: str) -> None:
    run(granted, "SELECT audit_extend_entry(2000000, 1048576)", "UPDATE payload SET ciphertext = NULL")
    run(granted, "UPDATE head SET size = 2000000")
    engine = Postgres(writer_url).engine()
    try:
        with pytest.raises(FailedPreconditionError, match="only the owner"):
            drop_before(engine, 1, 2_000_000)
        assert first_index(engine) == 0
    finally:
        engine.dispose()


def test_a_role_that_may_not_migrate_is_told_who_may(granted: str, writer_url: str) -> None:
    run(granted, f"UPDATE {VERSION_TABLE} SET version_num = '0003'", "DROP INDEX entry_by_tenant")
    with pytest.raises(FailedPreconditionError, match="run `python -m"):
        LogFile(writer_url)
