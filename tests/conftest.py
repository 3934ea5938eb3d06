"""Fixtures for all tests."""

from __future__ import annotations

import gc

from tests.postgres import (
    log_database,
    migrated_postgres,
    postgres_databases,
    postgres_log_url,
    postgres_url,
)
from tests.redis_server import own_redis, redis_url

__all__ = [
    "log_database",
    "migrated_postgres",
    "own_redis",
    "postgres_databases",
    "postgres_log_url",
    "postgres_url",
    "redis_url",
]

# Thousands of tests and the libraries under them stay to the end: at Python's own pace they are looked through again and again.
gc.set_threshold(50_000)


def pytest_collection_finish() -> None:
    """Leave what is loaded by now out of every later collection."""
    gc.collect()
    gc.freeze()
