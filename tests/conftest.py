"""Fixtures for all tests."""

from __future__ import annotations

from tests.postgres import (
    log_database,
    migrated_postgres,
    postgres_databases,
    postgres_log_url,
    postgres_url,
)

__all__ = [
    "log_database",
    "migrated_postgres",
    "postgres_databases",
    "postgres_log_url",
    "postgres_url",
]
