"""Statements past the service: what an owner or a role of the log's database could try."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from services.audit.migrate import grant_roles
from services.audit.storage.postgres import Postgres
from tests.fakes.audit_log import open_log, record
from tests.postgres import Databases


def run(url: str, *statements: str, role: str | None = None) -> list[tuple[Any, ...]]:  # `Any`: columns
    """Runs statements in one transaction, in a role if told; the rows of the last."""
    with psycopg.connect(url) as connection:
        if role is not None:
            connection.execute(f"SET ROLE {role}".encode())
        cursor = None
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor is not None and cursor.description else []


@pytest.fixture(scope="module")
def refusing(postgres_databases: Databases, migrated_postgres: str) -> Iterator[str]:
    """A log and its roles, for statements that are all refused."""
    url = postgres_databases.create(template=migrated_postgres)
    with open_log(url) as log:
        log.append(record(0, payloads=2))
    grant_roles(Postgres(url))
    yield url
    postgres_databases.drop(url)
