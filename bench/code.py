"""What a scan of code costs, through its worker, and how the samples in tests/fixtures/code are judged.

The samples were written beside the rules: they show what is covered, not how well unseen code fares.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.ethics import Goal
from bench.measure import Arm
from services.tools.code.model import ScanOptions, ScanReport, SourceFile
from services.tools.scanning import Scanning

ROOT: Final = Path(__file__).resolve().parents[1]
SAMPLES: Final = ROOT / "tests" / "fixtures" / "code"
# Insecure samples one after the other: denser in imports, flows and findings than ordinary code.
LINES: Final = {"100 lines": 100, "1000 lines": 1000}
_ENDINGS: Final = {"python": "py", "javascript": "js", "shell": "sh"}


@dataclass(frozen=True, slots=True)
class Samples:
    """How the samples of one language were judged."""

    language: str
    insecure: int
    flagged: int
    # With the weakness class that the sample was written for.
    exact: int
    secure: int
    wrongly_flagged: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that was measured."""

    loads: tuple[float, float]
    start_seconds: float
    scans: tuple[Arm, ...]
    samples: tuple[Samples, ...]


def measure(rounds: int, requests: int) -> Figures:
    """Measure everything; a minute."""
    return asyncio.run(_measure(rounds, requests))


async def _measure(rounds: int, requests: int) -> Figures:
    load = os.getloadavg()[0]
    scanning = Scanning()
    try:
        began = time.perf_counter()
        await scanning.scan([SourceFile("empty.py", "")], ScanOptions())
        start_seconds = time.perf_counter() - began
        scans = [await _timed(scanning, name, rounds, requests) for name in LINES]
        judged = [await _judged(scanning, SAMPLES / name) for name in _ENDINGS if (SAMPLES / name).is_dir()]
    finally:
        await scanning.aclose()
    return Figures((load, os.getloadavg()[0]), start_seconds, tuple(scans), tuple(judged))


async def _timed(scanning: Scanning, name: str, rounds: int, requests: int) -> Arm:
    text = "".join(text for words, text in samples(SAMPLES / "python") if words[0] == "insecure")
    file = SourceFile("sample.py", "".join(text.splitlines(keepends=True)[: LINES[name]]))
    times: list[list[float]] = []
    for _ in range(rounds):
        times.append([])
        for _ in range(requests):
            began = time.perf_counter()
            await scanning.scan([file], ScanOptions())
            times[-1].append((time.perf_counter() - began) * 1000)
    return Arm.of_rounds(name, times)


async def _judged(scanning: Scanning, folder: Path) -> Samples:
    counts: Counter[str] = Counter()
    for words, text in samples(folder):
        name = f"sample.{_ENDINGS[folder.name]}"
        _count(counts, words, await scanning.scan([SourceFile(name, text)], ScanOptions()))
    return Samples(folder.name, **{name: counts[name] for name in Samples.__slots__ if name != "language"})


def samples(folder: Path) -> Iterator[tuple[list[str], str]]:
    """Give each sample of a language: the words of its head, and its text."""
    for path in sorted(folder.glob("*.txt")):
        for part in path.read_text(encoding="utf-8").split("### ")[1:]:
            head, _, text = part.partition("\n")
            yield head.split(), text


def _count(counts: Counter[str], words: list[str], report: ScanReport) -> None:
    is_flagged = bool(report.findings)
    if words[0] == "secure":
        counts["secure"] += 1
        counts["wrongly_flagged"] += is_flagged
        return
    counts["insecure"] += 1
    counts["flagged"] += is_flagged
    counts["exact"] += int(words[1]) in {number for finding in report.findings for number in finding.cwe}


def goals(figures: Figures) -> list[Goal]:
    """The goals of the issue beside what was reached."""
    found = [Goal("scan of 100 lines, p50", figures.scans[0].p50_ms, 50, "ms")]
    for each in figures.samples:
        found += [
            Goal(
                f"insecure {each.language} samples flagged",
                _percent(each.flagged, each.insecure),
                75,
                "%",
                True,
            ),
            Goal(
                f"… with the exact CWE ({each.language})", _percent(each.exact, each.insecure), 60, "%", True
            ),
            Goal(
                f"secure {each.language} samples flagged", _percent(each.wrongly_flagged, each.secure), 8, "%"
            ),
        ]
    return found


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def lines(figures: Figures) -> list[str]:
    """The section in Markdown."""
    before, after = figures.loads
    report = ["## Code", "", f"Load {before:.1f} before, {after:.1f} after.", ""]
    report += ["| goal | limit | reached | |", "| --- | --- | --- | --- |"]
    for goal in goals(figures):
        sign = "≥" if goal.is_floor else "≤"
        met = "yes" if goal.is_met else "**missed**"
        report.append(
            f"| {goal.name} | {sign} {goal.limit:g} {goal.unit} | {goal.reached:.1f} {goal.unit} | {met} |"
        )
    report += ["", "| scan | p50 ms | p95 ms |", "| --- | --- | --- |"]
    report += [f"| {arm.name} | {arm.p50_ms:.1f} | {arm.p95_ms:.1f} |" for arm in figures.scans]
    report += ["", f"- first scan, with the start of the worker: {figures.start_seconds:.1f} s"]
    report += [
        f"- {each.language}: {each.insecure} insecure and {each.secure} secure samples, written beside the rules"
        for each in figures.samples
    ]
    return report


def document(figures: Figures) -> dict[str, Any]:  # Any: what JSON holds
    """The section as JSON."""
    return asdict(figures) | {"goals": [asdict(goal) | {"is_met": goal.is_met} for goal in goals(figures)]}
