"""kill -9 of the audit process under load: what it acknowledged is there afterwards, once, in order, where it said.

A log that breaks its promise must be caught by the same checker: each mutation below breaks one of the means by which
the real one keeps it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.audit_proof import kill_under_load, problems_of, shows_loss
from tests.fakes.audit_process import AuditProcess

# Replicas by kind of log, and how often they are killed in the default set: 25 times together.
LOGS = {"sqlite": (1, 9), "postgres": (1, 8), "postgres, three writers": (3, 8)}
MANY_KILLS = 340

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3_600)]


@pytest.fixture
def url(request: pytest.FixtureRequest, log: str) -> str | None:
    return None if log == "sqlite" else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def replicas(tmp_path: Path, log: str, url: str | None) -> list[AuditProcess]:
    return make_replicas(tmp_path, url, LOGS[log][0])


def make_replicas(directory: Path, url: str | None, count: int, **options: object) -> list[AuditProcess]:
    first = AuditProcess(directory / "audit-0", url=url, **options)  # type: ignore[arg-type] # as they are named
    others = [
        AuditProcess(directory / f"audit-{number}", url=url, keys_of=first, **options)  # type: ignore[arg-type] # same
        for number in range(1, count)
    ]
    return [first, *others]


@pytest.mark.parametrize("log", LOGS)
async def test_no_acknowledged_record_is_lost_doubled_or_moved_by_kill_9(
    replicas: list[AuditProcess], log: str
) -> None:
    kills = LOGS[log][1]
    await require_no_problems(replicas, kills)


@pytest.mark.slow
@pytest.mark.parametrize("log", LOGS)
async def test_nor_by_a_thousand_kills(replicas: list[AuditProcess], log: str) -> None:
    await require_no_problems(replicas, MANY_KILLS)


async def require_no_problems(replicas: list[AuditProcess], kills: int) -> None:
    journal = await kill_under_load(replicas, kills)
    assert problems_of(journal, replicas[0]) == [], replicas[0].output()
    # The load was real: each life of a process acknowledged something.
    assert len(journal) > kills * 10


MUTATIONS = {
    # What is broken, over which log, by how many replicas, killed how often.
    "acknowledges before it writes": ("early", "sqlite", 1, 3),
    "acknowledges before it writes to a server": ("early", "postgres", 1, 3),
    "looks repeats up inside the failed transaction": ("lookup_inside", "sqlite", 1, 12),
    "moves the head without comparing": ("no_compare", "postgres", 3, 3),
}


@pytest.mark.parametrize(("mutation", "log", "count", "kills"), MUTATIONS.values(), ids=MUTATIONS)
async def test_a_log_that_breaks_its_promise_is_caught(
    tmp_path: Path, mutation: str, log: str, url: str | None, count: int, kills: int
) -> None:
    replicas = make_replicas(
        tmp_path, url, count, module="tests.fakes.mutant_audit", environment={"AUDIT_MUTATION": mutation}
    )
    problems: list[str] = []
    for _ in range(3):  # a mutant may be lucky
        journal = await kill_under_load(replicas, kills, is_broken=True)
        assert len(journal) > 0, replicas[0].output()
        problems = problems_of(journal, replicas[0])
        if problems:
            break
    assert shows_loss(problems), problems[:5]
