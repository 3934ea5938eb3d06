"""Measure the hard blocks on labelled requests: `python scripts/measure_hard_blocks.py FILE.jsonl[.gz]`.

Lines are `{"text", "label" (1 harmful, 0 harmless), "source"}`. On harmless requests every outcome but ALLOW counts
as a refusal; on harmful ones only REFUSE and REDIRECT count as catches. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from kala.ethics.constitution import Trust, verify_constitution
from services.common.wilson import wilson_bounds_micros
from services.ethics.fold import Folder
from services.ethics.hard_blocks import HardBlocks
from services.ethics.judge import Outcome, Stage
from services.ethics.laws import read_constitution
from services.ethics.views import Reader

CONSTITUTION = Path(__file__).resolve().parents[1] / "constitution"
MICROS = 1_000_000
CAUGHT = {Outcome.REFUSE, Outcome.REDIRECT}


def rows(path: Path) -> Iterator[dict[str, str | int]]:
    """The labelled requests of a file."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        yield from map(json.loads, file)


def main() -> int:
    """Print one line per label and source."""
    parser = argparse.ArgumentParser(description="Measure the hard blocks on labelled requests.")
    parser.add_argument("file", type=Path)
    constitution = read_constitution(verify_constitution(CONSTITUTION, Trust.development()))
    reader, blocks = Reader(Folder(constitution.look_alikes)), HardBlocks(constitution.blocks)
    counts: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows(parser.parse_args().file):
        reading = reader.read(str(row["text"]))
        outcomes = {
            finding.block.outcome
            for finding in blocks.find(reading.views, Stage.REQUEST, opaque=bool(reading.opaque))
        }
        label = int(row["label"])
        hit = bool(outcomes & CAUGHT) if label else bool(outcomes)
        for source in (str(row["source"]), "all"):
            counts[label, source][0] += hit
            counts[label, source][1] += 1
    for (label, source), (hits, total) in sorted(counts.items()):
        low, high = (bound / MICROS for bound in wilson_bounds_micros(hits, total))
        kind = "harmful, caught" if label else "harmless, refused"
        sys.stdout.write(
            f"| {kind} | {source} | {hits} of {total} | {hits / total:.3f} | {low:.3f}-{high:.3f} |\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
