"""The ethics service without its classifier, for the bench alone: `python -m bench.rules_ethics`.

No setting of KALA does this. It tells what the guarded path costs beside what reading a text costs.
"""

from __future__ import annotations

import sys

from kala.ethics.constitution import VerifiedConstitution
from services.common.event_loop import run
from services.ethics import __main__ as process
from services.ethics.bench import Bench
from services.ethics.config import EthicsSettings
from services.ethics.laws import read_constitution
from services.ethics.seating import SeatGuard


def rules_alone(
    settings: EthicsSettings, verified: VerifiedConstitution, guard: SeatGuard | None = None
) -> Bench:
    """A bench on which only the hard blocks sit."""
    del guard
    return Bench(
        read_constitution(verified),
        allow_unreadable=settings.unjudged_parts == "allow",
        on_fault=process.report_fault,
    )


if __name__ == "__main__":
    process.make_bench = rules_alone
    sys.exit(run(process.main()))
