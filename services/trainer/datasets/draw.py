"""Drawing from templates so that the same seed always gives the same text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, Final, TypeVar

import yaml

T = TypeVar("T")
# "(this|that)"; alternatives do not nest, and a slot such as {x} may stand inside.
_ALTERNATIVES: Final = re.compile(r"\(([^()]*\|[^()]*)\)")
_SLOT: Final = re.compile(r"\{([a-z_][a-z_0-9]*)\}")
_SPACES: Final = re.compile(r" {2,}")


class Draw:
    """Draws that depend on the seed alone; only `Random.random` is used, whose values every Python keeps."""

    def __init__(self, *seed: object) -> None:
        text = "\0".join(str(part) for part in seed)
        number = int.from_bytes(hashlib.sha256(text.encode()).digest())
        self._random = Random(number)  # noqa: S311 - text is drawn here, no secret

    def below(self, bound: int) -> int:
        """Returns a number from 0 to bound - 1."""
        return int(self._random.random() * bound)

    def between(self, low: int, high: int) -> int:
        """Returns a number from low to high, both included."""
        return low + self.below(high - low + 1)

    def choice(self, items: Sequence[T]) -> T:
        """Returns one of the items."""
        return items[self.below(len(items))]

    def chance(self, share: float) -> bool:
        """Returns True for this share of the draws."""
        return self._random.random() < share

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Returns this many different items in a drawn order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def text(self, template: str, slots: Mapping[str, str] | None = None) -> str:
        """Returns the template with one of each "(a|b)" and its slots filled; what fills a slot is not expanded."""
        chosen = _ALTERNATIVES.sub(lambda match: self.choice(match[1].split("|")), template)
        filled = chosen if slots is None else _SLOT.sub(lambda match: slots[match[1]], chosen)
        return _SPACES.sub(" ", filled).strip()


@cache
def templates(name: str) -> Any:  # Any: what YAML holds; each generator knows its own file
    """Returns the content of templates/<name>.yaml, once read."""
    text = (
        files("services.trainer.datasets").joinpath("templates", f"{name}.yaml").read_text(encoding="utf-8")
    )
    return yaml.safe_load(text)


def opened(draw: Draw, opening: str, asked: str) -> str:
    """Returns a request behind its opening; behind a sentence it begins with a capital, behind a colon it may."""
    mark = opening.rstrip()[-1:]
    is_new_sentence = mark in {".", "!"} or (mark == ":" and draw.chance(0.5))
    return opening + (capitalised(asked) if is_new_sentence else asked)


def capitalised(text: str) -> str:
    """Returns the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
