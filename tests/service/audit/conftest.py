"""Fixtures of the log's tests."""

from __future__ import annotations

from tests.fakes.postgres_statements import refusing

__all__ = ["refusing"]
