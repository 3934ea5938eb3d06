"""The changed settings, in SQL.  Blocking."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, func, select

from gateway.database import translated
from gateway.key_table import from_micros, to_micros
from gateway.limits.budgets import UPSERTS
from gateway.limits.tables import SETTING
from kala.errors import AlreadyExistsError
from services.common.database import lock_schema


@dataclass(frozen=True, slots=True)
class Changed:
    """One setting that was changed here; an empty value has returned to the one below."""

    name: str
    value_json: str
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All changed settings at one time."""

    revision: int = 0
    """Grows with every change; 0 while nothing was ever changed."""
    changed: tuple[Changed, ...] = ()

    @property
    def values(self) -> dict[str, str]:
        """Give what stands over file and environment."""
        return {one.name: one.value_json for one in self.changed if one.value_json}

    def with_value(self, name: str, value_json: str) -> dict[str, str]:
        """Give the values as they would be after a change."""
        values = self.values
        values.pop(name, None)
        return {**values, name: value_json} if value_json else values


class SettingStore:
    """The settings of one database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._insert: Any = UPSERTS[engine.dialect.name]  # Any: each dialect has its own function

    def read(self) -> Snapshot:
        """Give all of them."""
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(select(SETTING).order_by(SETTING.c.name)).all()
        changed = tuple(Changed(row.name, row.value_json, from_micros(row.changed_at)) for row in rows)
        return Snapshot(max((row.changed_at for row in rows), default=0), changed)

    def write(self, name: str, value_json: str, at: datetime, *, after: int | None = None) -> Snapshot:
        """Change one, and give all as they are then. The revision grows also where a clock goes back.

        AlreadyExistsError, reason SETTINGS_MOVED, where `after` is no longer the revision: two changes that are good
        alone need not be good together.
        """
        with translated(), self._engine.begin() as connection:
            # Two changes at once must not get one revision.
            lock_schema(connection, "gateway.settings")
            newest = connection.execute(select(func.max(SETTING.c.changed_at))).scalar() or 0
            if after is not None and newest != after:
                raise AlreadyExistsError(
                    "another setting was changed at the same time; look at it, and send this change again",
                    reason="SETTINGS_MOVED",
                )
            changed_at = max(to_micros(at), newest + 1)
            connection.execute(
                self._insert(SETTING)
                .values(name=name, value_json=value_json, changed_at=changed_at)
                .on_conflict_do_update(
                    index_elements=["name"], set_={"value_json": value_json, "changed_at": changed_at}
                )
            )
        return self.read()
