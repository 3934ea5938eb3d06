"""Reads the samples of a language: insecure ones and their secure twins, one weakness each."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).parent / "fixtures" / "code"


class Sample(NamedTuple):
    title: str
    secure: bool
    cwe: int
    text: str


def samples(language: str) -> list[Sample]:
    """Every sample of a language; each begins with "### insecure CWE title" or "### secure [CWE] title"."""
    found = []
    for path in sorted((_FOLDER / language).glob("*.txt")):
        for part in path.read_text(encoding="utf-8").split("### ")[1:]:
            head, _, text = part.partition("\n")
            words = head.split()
            title = f"{path.stem}-{'-'.join(words)}"
            cwe = int(words[1]) if words[1].isdigit() else 0
            found.append(Sample(title, words[0] == "secure", cwe, text))
    return found
