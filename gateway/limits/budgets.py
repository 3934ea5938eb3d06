"""What keys have used of their budgets, in SQL: one conditional statement each, so that no race passes a limit.  Blocking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.dialects import postgresql, sqlite

from gateway.database import translated
from gateway.limits.key_limits import Budget
from gateway.limits.tables import BUDGET_USE

UPSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@dataclass(frozen=True, slots=True)
class Charge:
    """So much set aside in one window of one budget."""

    key_id: str
    budget: Budget
    window: str
    amount: int

    @property
    def columns(self) -> dict[str, str]:
        """Give the columns that find its row."""
        return {
            "key_id": self.key_id,
            "unit": self.budget.unit.value,
            "period": self.budget.period.value,
            "begun": self.window,
        }


class OverBudgetError(Exception):
    """A charge does not fit; carries how much was used before."""

    def __init__(self, charge: Charge, used: int) -> None:
        super().__init__(f"{charge.budget} has {used} used")
        self.charge = charge
        self.used = used


class Budgets:
    """The budgets' use in one database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._insert: Any = UPSERTS[engine.dialect.name]  # Any: each dialect has its own function

    def reserve(self, charges: Sequence[Charge]) -> None:
        """Set all of it aside, or nothing and raise OverBudgetError."""
        # In one order everywhere: two requests of one key must not wait for each other.
        ordered = sorted(charges, key=lambda charge: (charge.budget.unit.value, charge.budget.period.value))
        with translated(), self._engine.begin() as connection:
            for charge in ordered:
                if charge.amount > charge.budget.amount or not self._add(connection, charge):
                    raise OverBudgetError(charge, self._used(connection, charge))

    def correct(self, charges: Sequence[Charge]) -> None:
        """Add to what is used, beyond a budget if need be; negative amounts give back."""
        with translated(), self._engine.begin() as connection:
            for charge in charges:
                connection.execute(
                    update(BUDGET_USE).where(*_is(charge)).values(used=BUDGET_USE.c.used + charge.amount)
                )

    def used(self, charge: Charge) -> int:
        """Tell how much of a charge's budget is used or set aside in its window."""
        with translated(), self._engine.connect() as connection:
            return self._used(connection, charge)

    def _add(self, connection: Connection, charge: Charge) -> bool:
        after = BUDGET_USE.c.used + charge.amount
        statement = (
            self._insert(BUDGET_USE)
            .values(**charge.columns, used=charge.amount)
            .on_conflict_do_update(
                index_elements=["key_id", "unit", "period", "begun"],
                set_={"used": after},
                where=after <= charge.budget.amount,
            )
            .returning(BUDGET_USE.c.used)
        )
        return connection.execute(statement).first() is not None

    def _used(self, connection: Connection, charge: Charge) -> int:
        return connection.execute(select(BUDGET_USE.c.used).where(*_is(charge))).scalar() or 0


def _is(charge: Charge) -> list[Any]:  # Any: SQL expressions
    return [BUDGET_USE.c[name] == value for name, value in charge.columns.items()]
