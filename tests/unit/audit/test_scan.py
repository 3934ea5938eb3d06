"""Looking through the log in windows: nothing is missed, nothing twice, and no look goes on for ever."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from services.audit.reading.query import Condition
from services.audit.reading.scan import Scanner
from services.audit.storage.sqlite_queries import INDEXES, SELECT_GAPS, index_for
from tests.fakes.audit_log import LogFile, fill, open_log

TOTAL = 300


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogFile]:
    path = tmp_path_factory.mktemp("scan") / "audit.db"
    fill(path, [100, 100, 100])
    with open_log(path) as opened:
        yield opened


def all_found(scanner: Scanner, conditions: list[Condition], *, descending: bool, limit: int) -> list[int]:
    first, last, found = 0, TOTAL, []
    for _ in range(10 * TOTAL):
        scan = scanner.scan(conditions, first=first, last=last, limit=limit, descending=descending)
        assert len(scan.rows) <= limit
        found += [row.index for row in scan.rows]
        if scan.is_done:
            return found
        first, last = (first, scan.position) if descending else (scan.position, last)
    pytest.fail("the scan does not end")


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [1, 7, 1_000])
@pytest.mark.parametrize("budget", [0.0, 1_000.0], ids=["out of time at once", "with time"])
@pytest.mark.parametrize(
    ("conditions", "wanted"),
    [
        ([], range(TOTAL)),
        ([Condition("law", (3,))], range(3, TOTAL, 5)),
        ([Condition("law", (3,)), Condition("model", ("model-1",))], range(13, TOTAL, 15)),
        ([Condition("law", (1, 3)), Condition("tenant", ("nobody",))], ()),
    ],
    ids=["everything", "one condition", "two conditions", "nothing"],
)
def test_repeated_scans_find_each_entry_once_however_little_time_they_have(
    log: LogFile, conditions: list[Condition], wanted: range, budget: float, limit: int, *, descending: bool
) -> None:
    ticks = itertools.count()
    scanner = Scanner(
        log.reader, budget_seconds=budget, first_window=16, monotonic=lambda: float(next(ticks))
    )
    found = all_found(scanner, conditions, descending=descending, limit=limit)
    assert found == (list(wanted)[::-1] if descending else list(wanted))


def test_a_scan_without_time_looks_at_one_window_only(log: LogFile) -> None:
    ticks = itertools.count()
    scanner = Scanner(log.reader, budget_seconds=0.5, first_window=16, monotonic=lambda: float(next(ticks)))
    found = scanner.scan([Condition("tenant", ("nobody",))], first=0, last=TOTAL, limit=5)
    assert (found.rows, found.position, found.is_done) == ([], 16, False)


@pytest.mark.parametrize(
    ("conditions", "index"),
    [
        ([], ""),
        ([Condition("tenant", ("default",))], "entry_by_tenant"),
        # Every entry is of this tenant and a fifth of them of this law; none is of this actor.
        ([Condition("tenant", ("default",)), Condition("law", (3,))], "entry_by_law"),
        ([Condition("law", (3,)), Condition("actor", ("nobody",))], "entry_by_actor"),
        ([Condition("actor", ("nobody",)), Condition("trace_id", ("0" * 32,))], "entry_by_trace_id"),
    ],
)
def test_a_query_reads_the_index_that_leaves_it_least(
    log: LogFile, conditions: list[Condition], index: str
) -> None:
    found = index_for(log.reader._db, conditions, first=0, last=TOTAL)
    assert found == (f" INDEXED BY {index}" if index else "")


def test_every_column_that_a_filter_names_has_its_index(log: LogFile) -> None:
    rows = log.reader._db.execute("SELECT name FROM sqlite_master WHERE type = 'index'").fetchall()
    assert set(INDEXES.values()) <= {row[0] for row in rows}


def test_looking_for_gaps_asks_for_each_outcome_by_its_intent(log: LogFile) -> None:
    """An index that begins with `log_id` once made this question take 90 s in a log of a million entries."""
    values = {"log": 1, "last": TOTAL, "before": 0, "limit": 1, "offset": 0}
    plan = log.reader._db.execute(
        f"EXPLAIN QUERY PLAN {SELECT_GAPS.format(conditions='')}", values
    ).fetchall()
    assert any("SEARCH outcome USING INDEX entry_intent (intent=?)" in row[3] for row in plan)
