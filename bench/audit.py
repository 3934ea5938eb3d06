"""What the log costs: beside its own database, beside itself without a database, and without receipts.

`python -m bench.audit` prints Markdown; `--entries` is the size of the log that is verified, erased from and queried.
All arms of a measure take turns in one run; only ratios within a run count.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from bench import audit_big, audit_outage
from bench.audit_load import (
    APPEND,
    APPEND_BATCH,
    Service,
    cpu_alone,
    difference,
    empty_store,
    load,
    replay,
    requests,
    service,
    transactions,
)
from kala.audit.checkpoint import Checkpoint
from kala.audit.note import Signer
from kala.audit.receipt import receipt_text
from services.audit.storage.store import LogWriter
from tests.fakes.audit_log import ORIGIN
from tests.postgres import Databases, own_postgres

ROUNDS: Final = 5
BATCH_CALLERS: Final = 16
BATCH_RECORDS: Final = 50
UNARY_CALLERS: Final = 64
REPLICAS: Final = 3
MILLION: Final = 1_000_000
BILLION: Final = 1_000_000_000


@dataclass
class Store:
    """What was measured over one kind of database; one value for each round."""

    append_rate: list[float] = field(default_factory=list)
    """Acknowledged records a second by AppendBatch, 16 callers with 50 records each."""
    replay_rate: list[float] = field(default_factory=list)
    """Records a second when the database alone commits the same transactions."""
    commit_share: list[float] = field(default_factory=list)
    """Share of the writer's time that is commit."""
    cpu_us: list[float] = field(default_factory=list)
    """Microseconds of CPU to place, seal, commit to, spell and hash a record, without gRPC and the database."""
    read_us: list[float] = field(default_factory=list)
    """Microseconds of CPU to take a record out of its protobuf message, checked."""
    unary_p99: list[float] = field(default_factory=list)
    """Milliseconds of Append, 64 callers."""
    null_p99: list[float] = field(default_factory=list)
    """The same server with a store that keeps nothing."""
    commit_p99: list[float] = field(default_factory=list)
    """Milliseconds of a commit of the database alone, at the batch size that the callers made."""
    proof_p99: list[float] = field(default_factory=list)
    """Milliseconds of Append with a receipt."""
    unary_rate: list[float] = field(default_factory=list)
    single_rate: list[float] = field(default_factory=list)
    """Commits a second of one record each, of the database alone."""


@dataclass(frozen=True)
class Figures:
    """Everything."""

    stores: Mapping[str, Store]
    cpu_alone: tuple[float, float]
    """Microseconds of CPU of a record where nothing else runs: out of its message, and all the rest but the database."""
    wasted: float
    outage: float
    """p99 of an append while the log is dead, over that before and the spool's own."""
    receipt_bytes: Mapping[int, int]
    big: audit_big.BigFigures


def p99(values: Sequence[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[max(0, int(len(values) * 0.99) - 1)]


@contextmanager
def databases() -> Iterator[Databases]:
    """A PostgreSQL server of its own, durable as any."""
    with own_postgres() as server:
        yield Databases(server.url())


def measure_store(folder: Path, url: str | None, made: Databases, *, rounds: int, records: int) -> Store:
    """All arms over one kind of database, in turn."""
    figures = Store()
    with service(folder / "real", database=url) as real, service(folder / "null", store="none") as null:
        for arm in (real, null):
            load([arm], requests(20, BATCH_RECORDS), callers=4, method=APPEND_BATCH)
        for _ in range(rounds):
            _batched(figures, real, made if url else None, records)
            _unary(figures, real, null, made if url else None, records // 2)
    return figures


def _batched(figures: Store, real: Service, made: Databases | None, records: int) -> None:
    before = real.figures()
    calls = requests(records // BATCH_RECORDS, BATCH_RECORDS)
    took = load([real], calls, callers=BATCH_CALLERS, method=APPEND_BATCH)
    did = difference(real.figures(), before)
    figures.append_rate.append(records / took.seconds)
    figures.commit_share.append(did["commit_seconds"] / did["write_seconds"])
    figures.cpu_us.append((did["write_cpu"] - did["commit_cpu"]) / did["records"] * 1e6)
    figures.read_us.append(did["read_cpu"] / did["records"] * 1e6)
    size = max(1, round(did["records"] / did["batches"]))
    commits = transactions(max(4, records // size), size)
    with _empty(made) as writer:
        figures.replay_rate.append(size * len(commits) / replay(writer, commits).seconds)


def _unary(figures: Store, real: Service, null: Service, made: Databases | None, records: int) -> None:
    before = real.figures()
    took = load([real], requests(records, 1), callers=UNARY_CALLERS, method=APPEND)
    did = difference(real.figures(), before)
    figures.unary_rate.append(records / took.seconds)
    figures.unary_p99.append(p99(took.call_ms))
    without = load([null], requests(records, 1), callers=UNARY_CALLERS, method=APPEND)
    figures.null_p99.append(p99(without.call_ms))
    proved = load([real], requests(records, 1, with_proof=True), callers=UNARY_CALLERS, method=APPEND)
    figures.proof_p99.append(p99(proved.call_ms))
    size = max(1, round(did["records"] / did["batches"]))
    with _empty(made) as writer:
        figures.commit_p99.append(p99(replay(writer, transactions(100, size)).call_ms))
    with _empty(made) as writer:
        single = replay(writer, transactions(100, 1))
        figures.single_rate.append(100 / single.seconds)


@contextmanager
def _empty(made: Databases | None) -> Iterator[LogWriter]:
    url = None if made is None else made.create()
    with empty_store(url) as writer:
        yield writer
    if made is not None and url is not None:
        made.drop(url)


def measure_wasted(folder: Path, made: Databases, *, records: int) -> float:
    """Of the commits that three replicas try on one log, the share that another's made vain."""
    url = made.create()
    with ExitStack() as stack:
        services = [
            stack.enter_context(service(folder / f"replica-{number}", database=url, keys=_keys(folder)))
            for number in range(REPLICAS)
        ]
        load(services, requests(records // BATCH_RECORDS, BATCH_RECORDS), callers=24, method=APPEND_BATCH)
        did = [one.figures() for one in services]
    batches = sum(one["batches"] for one in did)
    conflicts = sum(one["conflicts"] for one in did)
    made.drop(url)
    return conflicts / (batches + conflicts)


def _keys(folder: Path) -> Path:
    keys = folder / "keys"
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    return keys


def receipt_bytes(size: int) -> int:
    """How long a receipt of a log of this size is, without the leaf that it carries."""
    signer = Signer.of(ORIGIN, b"s" * 32)
    note = signer.sign(Checkpoint(ORIGIN, size, os.urandom(32)).text())
    path = [os.urandom(32)] * (size - 1).bit_length()
    return len(receipt_text(b"", size - 1, path, note).encode())


def measure(*, rounds: int = ROUNDS, records: int = 10_000, entries: int = MILLION) -> Figures:
    """Everything, over both databases."""
    alone = cpu_alone()
    with tempfile.TemporaryDirectory(prefix="kala-bench-audit-") as name, databases() as made:
        folder = Path(name)
        stores = {
            "SQLite": measure_store(folder / "sqlite", None, made, rounds=rounds, records=records),
            "PostgreSQL": measure_store(
                folder / "postgres", made.create(), made, rounds=rounds, records=records
            ),
        }
        wasted = measure_wasted(folder / "replicas", made, records=records * 2)
        outage = audit_outage.measure(folder / "outage")
        big = audit_big.measure(folder / "big", entries)
    return Figures(
        stores, alone, wasted, outage, {size: receipt_bytes(size) for size in (MILLION, BILLION)}, big
    )


def document(figures: Figures) -> dict[str, object]:
    """As JSON."""
    return asdict(figures)


def lines(figures: Figures) -> list[str]:
    """As Markdown."""
    median = statistics.median
    report = [
        (
            f"Machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"load {os.getloadavg()[0]:.1f}. Ratios are medians of the rounds, each within its round."
        ),
        "",
        "| goal | measure | " + " | ".join(figures.stores) + " |",
        "| --- | --- |" + " --- |" * len(figures.stores),
    ]
    rows = {
        "G2 | AppendBatch, acknowledged records a second": lambda s: f"{median(s.append_rate):,.0f}",
        "G2 | of the database's own rate for the same transactions": lambda s: _ratio(
            s.append_rate, s.replay_rate
        ),
        "G2 | share of the writer's time in commit": lambda s: f"{median(s.commit_share):.2f}",
        "G2 | AppendBatch over single commits of the database": lambda s: _ratio(
            s.append_rate, s.single_rate
        ),
        "G3 | Append, 64 callers, p99 ms": lambda s: f"{median(s.unary_p99):.1f}",
        "G3 | that over 1.5 x the p99 without a database + 2 commit p99": lambda s: (
            f"{median(a / (1.5 * b + 2 * c) for a, b, c in zip(s.unary_p99, s.null_p99, s.commit_p99, strict=True)):.2f}"
        ),
        "G4 | p99 with a receipt over without": lambda s: _ratio(s.proof_p99, s.unary_p99),
        "G5 | CPU to seal, spell and hash a record under this load, us": lambda s: f"{median(s.cpu_us):.1f}",
        "G5 | CPU to take it out of its message, us": lambda s: f"{median(s.read_us):.1f}",
    }
    report += [
        f"| {name} | " + " | ".join(show(store) for store in figures.stores.values()) + " |"
        for name, show in rows.items()
    ]
    sizes = ", ".join(f"{size:,} entries: {length:,} bytes" for size, length in figures.receipt_bytes.items())
    return [
        *report,
        "",
        (
            f"- G5: a record alone takes {figures.cpu_alone[1]:.1f} us of CPU to seal, commit to, spell and hash, "
            f"and {figures.cpu_alone[0]:.1f} us before to take it out of its message and check it"
        ),
        f"- G7: a receipt without its leaf, {sizes}",
        f"- G10: commits of {REPLICAS} replicas on one log that another made vain: {figures.wasted:.1%}",
        f"- G10: p99 of an append while the log is dead, over the p99 before and that of the spool's own write: {figures.outage:.2f}",
        *audit_big.lines(figures.big),
    ]


def _ratio(one: Sequence[float], other: Sequence[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(one, other, strict=True)):.2f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--records", type=int, default=10_000, help="per arm and round")
    parser.add_argument("--entries", type=int, default=MILLION, help="size of the large log")
    options = parser.parse_args()
    figures = measure(rounds=options.rounds, records=options.records, entries=options.entries)
    print("\n".join(lines(figures)))


if __name__ == "__main__":
    main()
