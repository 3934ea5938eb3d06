"""What is known of a program's arguments before they are expanded, and whether a refused one could be among them.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import re2

from kala.errors import InvalidArgumentError
from services.tools.policy.shell.syntax import (
    Literal,
    Parameter,
    Part,
    Pattern,
    ProcessFile,
    Substitution,
    Word,
)

# Memory of one compiled pattern; `(a{1000}){1000}` asks for more.
MAX_PATTERN_BYTES: Final = 1 << 20
# How exactly the library says between which texts every match lies.
_RANGE_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument, or what a word may become when it is not `known`: some that begin with `text`."""

    text: str
    known: bool = True
    # Whether it is exactly one argument.
    single: bool = True


ANYTHING: Final = Argument("", known=False, single=False)


def argument_of(word: Word) -> Argument:
    """What the word becomes."""
    prefix: list[str] = []
    for position, part in enumerate(word.parts):
        if isinstance(part, Literal):
            prefix.append(part.text)
            continue
        text = "".join(prefix) or ("/dev/fd/" if isinstance(part, ProcessFile) else "")
        rest = word.parts[position:]
        if any(_may_split(each) for each in rest):
            # Split at blanks, the second argument begins with anything.
            return ANYTHING
        # Names of files begin with what stands before the pattern, all of them.
        return Argument(text, known=False, single=not any(isinstance(each, Pattern) for each in rest))
    return Argument("".join(prefix))


def _may_split(part: Part) -> bool:
    if isinstance(part, Parameter):
        # A number has no blank in it.
        return not (part.quoted or part.length or part.name in {"?", "#", "$", "!"})
    return isinstance(part, Substitution) and not part.quoted


@lru_cache(maxsize=4096)
def compiled(pattern: str) -> Any:  # Any: re2 has no type stubs
    """The pattern for matching whole arguments; raises InvalidArgumentError."""
    options = re2.Options()
    options.max_mem = MAX_PATTERN_BYTES
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        raise InvalidArgumentError(
            "refused_arguments", f"{pattern[:80]!r} is no RE2 pattern, or one that needs too much memory"
        ) from None


def may_match(pattern: str, argument: Argument) -> bool:
    """Whether the argument matches, or could when it is expanded; never False when it could."""
    regex = compiled(pattern)
    if argument.known:
        return bool(regex.fullmatch(argument.text))
    low, high = regex.possiblematchrange(_RANGE_BYTES)
    prefix = argument.text.encode()
    # Between `prefix` and `prefix` followed by the greatest bytes there are.
    return bool(low <= prefix + b"\xff" * _RANGE_BYTES and prefix <= high)
