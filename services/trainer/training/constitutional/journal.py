"""What a job has drafted so far, so that a resumed one drafts nothing twice: one JSON line per finished batch of prompts."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

PASSES: Final = "passes"
"""The draft is right as it is."""
REVISED: Final = "revised"
DROPPED: Final = "dropped"
"""No draft passed and no revision did."""
AS_LABELLED: Final = "as_labelled"
"""The dataset calls the request harmful and ethics does not: the dataset's own answer stands."""
DISPUTED: Final = "disputed"
"""The dataset calls the request harmless and ethics does not: nothing is learned from it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one prompt."""

    prompt: str
    """Its id."""
    end: str
    """PASSES, REVISED, DROPPED, AS_LABELLED or DISPUTED."""
    answer: str = ""
    """What is to be learned; empty where nothing is."""
    rejected: tuple[str, ...] = ()
    """Faulty drafts, the worse answers."""
    fault: str = ""
    law: int | None = None
    category: str = ""
    critique: str = ""
    drafts: int = 0
    violations: int = 0
    """Drafts that ethics does not allow."""
    request_decision: str = ""
    draft_decisions: tuple[str, ...] = ()
    revision_decision: str = ""
    constitution: str = ""
    """Digest of the constitution that the verdicts were given under, in hex."""


class Journal:
    """Finished batches by number; `key` names everything that drafts depend on, and other keys' lines are left out."""

    def __init__(self, path: Path, *, key: str) -> None:
        self._path = path
        self._key = key
        self.batches: dict[int, list[Outcome]] = {}
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._read()

    def add(self, batch: int, outcomes: Sequence[Outcome]) -> None:
        """Makes a batch durable before anything is built on it."""
        line = json.dumps({"key": self._key, "batch": batch, "outcomes": [asdict(each) for each in outcomes]})
        with self._path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.batches[batch] = list(outcomes)

    def _read(self) -> None:
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        # What a crash cut short has no end of line, and the next line must not be joined to it.
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self._path, whole)
        for line in data[:whole].splitlines():
            found = _batch(line, self._key)
            if found is not None:
                self.batches[found[0]] = found[1]


def _batch(line: bytes, key: str) -> tuple[int, list[Outcome]] | None:
    try:
        raw = json.loads(line)
        if raw["key"] != key:
            return None
        return int(raw["batch"]), [_outcome(each) for each in raw["outcomes"]]
    except (ValueError, KeyError, TypeError):
        return None


def _outcome(raw: dict[str, Any]) -> Outcome:  # Any: parsed JSON
    lists = {name: tuple(raw[name]) for name in ("rejected", "draft_decisions")}
    return Outcome(**{**raw, **lists})
