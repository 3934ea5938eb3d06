"""The template files: sections of wording families, their expansion and their place in a split.

A wording family is one line such as `(can|could) you explain {t}`; its alternatives are expanded when drawn.
Families, not expansions, are what a split holds out, so a test wording shares no line with training.
"""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

DATA: Final = Path(__file__).parent / "data"
# Fewer families than this and holding one out would starve the intent of training wordings.
MIN_FAMILIES_TO_HOLD_OUT: Final = 6
# One family in twelve goes to `dev` and one in twelve to `test`.
HELD_OUT_SHARE: Final = 12
_ALTERNATIVES: Final = re.compile(r"\(([^()]*\|[^()]*)\)")
_SPACES: Final = re.compile(r" {2,}")


class Split(enum.Enum):
    """Where an example may be used."""

    TRAIN = "train"
    COMBINATION = "combination"  # a known wording with an unseen case
    DEV = "dev"  # unseen wordings that the authors may look at while they write templates
    TEST = "test"  # unseen wordings that are only scored


@dataclass(frozen=True, slots=True)
class Section:
    """One `[name]` of a template file: its body lines, its `=` answers and its `~` weight."""

    name: str
    lines: tuple[str, ...]
    answers: tuple[str, ...]
    weight: float


def digest_number(*parts: str) -> int:
    """Returns a number that depends on the parts alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\x1f".join(parts).encode()).digest()[:8], "big")


def read_rows(name: str) -> list[list[str]]:
    """Returns the `|`-separated rows of a table file without its comments."""
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    return [line.split("|") for line in lines if line and not line.startswith("#")]


def read_sections(name: str) -> dict[str, Section]:
    """Returns the sections of a template file by name, in file order."""
    bodies: dict[str, list[str]] = {}
    current: list[str] = []
    for line in (DATA / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            current = bodies.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            current.append(line)
    return {section: _section(section, body) for section, body in bodies.items()}


def _section(name: str, body: Sequence[str]) -> Section:
    answers = tuple(line[2:] for line in body if line.startswith("= "))
    weights = [float(line[2:]) for line in body if line.startswith("~ ")]
    lines = tuple(line for line in body if not line.startswith(("= ", "~ ")))
    return Section(name, lines, answers, weights[0] if weights else 1.0)


def expand(family: str, rng: Random) -> str:
    """Returns one wording of the family: each `(a|b|)` replaced by one of its alternatives."""
    chosen = _ALTERNATIVES.sub(lambda match: rng.choice(match.group(1).split("|")), family)
    return _SPACES.sub(" ", chosen).strip()


def split_families(families: Sequence[str]) -> dict[Split, tuple[str, ...]]:
    """Divides families into train, dev and test by their digests, not by choice.

    The digest covers the family alone, so a line that two intents share is held out of both.
    """
    splits: dict[Split, list[str]] = {Split.TRAIN: [], Split.DEV: [], Split.TEST: []}
    places = {0: Split.TEST, 1: Split.DEV} if len(families) >= MIN_FAMILIES_TO_HOLD_OUT else {}
    for family in families:
        splits[places.get(digest_number("family", family) % HELD_OUT_SHARE, Split.TRAIN)].append(family)
    return {split: tuple(chosen) for split, chosen in splits.items()}
