"""Read the authored lines in `data/`: contrast groups, answers, frames and split conversations.

The format is explained in `data/README.md`. Everything is deterministic for one seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.classifier.examples import UNKNOWN, Example, Intent
from services.ethics.judge import Stage

DATA: Final = Path(__file__).parent / "data"
# More variants of one line teach its wording, not its meaning.
MAX_VARIANTS: Final = 3
# Contrast decides: an authored line is seen this often in an epoch, its variants together somewhat more.
AUTHORED_DRAWS: Final = 2.0
# There are a hundred requests to every document, and one question is asked of documents alone.
DOCUMENT_DRAWS: Final = 3.0
FRAMES: Final = "frames.txt"
CONVERSATIONS: Final = "conversations.txt"
GOAL: Final = "{GOAL}"
_CHOICE: Final = re.compile(r"\{([^{}]*\|[^{}]*)\}")
_LABELS: Final = {"-": (1, Intent.HARMFUL), "+": (0, Intent.BENIGN), "?": (UNKNOWN, Intent.AMBIGUOUS)}


@dataclass(frozen=True, slots=True)
class Frame:
    """A wrapper around a goal; a jailbreak frame tries to switch rules off, a neutral one does not."""

    id: str
    text: str
    is_jailbreak: bool

    def around(self, goal: str) -> str:
        """The frame's text with this goal in it."""
        return self.text.replace(GOAL, goal)


def authored_examples(seed: int, directory: Path = DATA) -> Iterator[Example]:
    """Every line of every contrast and answer file, with the variants it stands for."""
    for path in sorted(directory.glob("*.txt")):
        if path.name not in {FRAMES, CONVERSATIONS}:
            yield from _examples_of(path, random.Random(f"{seed}:{path.name}"))


def authored_frames(seed: int, directory: Path = DATA) -> list[Frame]:
    """All frames, each in up to MAX_VARIANTS wordings."""
    rng = random.Random(f"{seed}:frames")
    frames: list[Frame] = []
    section: dict[str, str] = {}
    for line in (directory / FRAMES).read_text("utf-8").splitlines():
        if line.startswith("@"):
            section = _section(line)
        elif line.startswith("= "):
            frames += [
                Frame(section["frame"], text, section["kind"] == "jailbreak")
                for text in variants(_unescape(line[2:]), rng)
                if text.count(GOAL) == 1
            ]
    return frames


def authored_conversations(directory: Path = DATA) -> Iterator[Example]:
    """Requests that are spread over turns, and honest conversations; turns are joined by line breaks."""
    for number, line in enumerate((directory / CONVERSATIONS).read_text("utf-8").splitlines()):
        if line[:2] in {"- ", "+ "}:
            turns = [_unescape(turn.strip()) for turn in line[2:].split("|||")]
            unsafe, intent = _LABELS[line[0]]
            yield Example("\n".join(turns), unsafe, "conversations", f"conversations:{number}", intent=intent)


def variants(line: str, rng: random.Random, most: int = MAX_VARIANTS) -> list[str]:
    """Up to `most` different texts that a line with `{a|b}` alternatives stands for."""
    found: dict[str, None] = {}
    for _ in range(most * 2 if _CHOICE.search(line) else 1):
        text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), line)
        # An empty alternative leaves two blanks; elsewhere blanks may be the indentation of code.
        found[(re.sub(r"  +", " ", text) if text != line else text).strip()] = None
    return list(found)[:most]


def _examples_of(path: Path, rng: random.Random) -> Iterator[Example]:
    section: dict[str, str] = {}
    context, group = "", 0
    for line in path.read_text("utf-8").splitlines():
        if not line.strip():
            context, group = "", group + 1
        elif line.startswith("@"):
            section, context, group = _section(line), "", group + 1
        elif line.startswith("> "):
            context = _unescape(line[2:])
        elif line[:2] in {"- ", "+ ", "? "}:
            yield from _labelled(line, section, context, (path.stem, group), rng)


def _labelled(
    line: str, section: dict[str, str], context: str, place: tuple[str, int], rng: random.Random
) -> Iterator[Example]:
    unsafe, intent = _LABELS[line[0]]
    stage = Stage(section.get("stage", "request"))
    category = section.get("category", "") if unsafe == 1 else ""
    injection = unsafe if stage is Stage.TOOL_RESULT else 0
    is_integrity = category.startswith("integrity.")
    texts = variants(_unescape(line[2:]), rng)
    for text in texts:
        yield Example(
            text,
            # An instruction in a document is an attack on the assistant, not harmful content of its own.
            UNKNOWN if is_integrity and unsafe == 1 else unsafe,
            place[0],
            f"{place[0]}:{place[1]}",
            stage,
            context,
            int(section["law"]) if unsafe == 1 and "law" in section else UNKNOWN,
            category,
            intent,
            jailbreak=int(is_integrity and stage is Stage.REQUEST and unsafe == 1),
            injection=max(injection, 0),
            draws=(DOCUMENT_DRAWS if stage is Stage.TOOL_RESULT else AUTHORED_DRAWS) / len(texts) ** 0.5,
        )


def _section(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line[1:].split() if "=" in word)


def _unescape(text: str) -> str:
    return text.strip().replace("\\n", "\n").replace("\\t", "\t")
