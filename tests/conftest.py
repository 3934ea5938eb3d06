"""Fixtures for all tests."""

from __future__ import annotations

from tests.postgres import log_database, postgres_databases, postgres_url

__all__ = ["log_database", "postgres_databases", "postgres_url"]
