"""The database of a service: private, durable, and named without its password when it cannot be opened."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from sqlalchemy import text

from kala.errors import FailedPreconditionError
from services.common.database import connectable


def test_a_file_is_private_and_durable(tmp_path: Path) -> None:
    path = tmp_path / "state" / "some.db"
    engine = connectable(str(path), variable="KALA_X_DATABASE")
    with engine.connect() as connection:
        found = [
            connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")
        ]
    engine.dispose()
    assert found == ["wal", 2]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("url", ["nosuch://me:hunter2@there/x", "://hunter2"])
def test_a_url_of_no_driver_is_refused_by_its_setting_without_its_password(url: str) -> None:
    with pytest.raises(FailedPreconditionError, match="KALA_X_DATABASE") as refused:
        connectable(url, variable="KALA_X_DATABASE")
    assert "hunter2" not in refused.value.message
