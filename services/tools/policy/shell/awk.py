"""Whether an awk program can start another program: `system`, and pipes outside of texts and patterns.  Pure."""

from __future__ import annotations

import re
from typing import Final

# A text, or a comment up to the line's end.
_TEXT: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|#[^\n]*')
# Only plain bracket expressions: the awks do not agree where others end.
_PATTERN: Final = re.compile(r"/(?:[^/\\\n\[]|\\.|\[\^?[A-Za-z0-9_ .,+*?|()<>=:;-]+\])+/")
# After these a slash begins a pattern; after anything else it may also divide.
_BEFORE_PATTERN: Final = frozenset("(,{;}!&|~")


def starts_programs(program: str) -> bool:
    """Whether it could; in doubt it does."""
    if "system" in program or "\\\n" in program:
        return True
    # `@` calls a function by a name that is only known when it runs, or loads another file.
    if "|" not in program.replace("||", "") and "@" not in program:
        return False
    before, at = "{", 0
    while at < len(program):
        char = program[at]
        if char in '/"#':
            if char == "/" and before not in _BEFORE_PATTERN:
                return True
            found = (_PATTERN if char == "/" else _TEXT).match(program, at)
            if not found:
                return True
            at = found.end()
            before = before if char == "#" else '"'
        elif program.startswith("||", at):
            at += 2
            before = "|"
        elif char in "|@":
            return True
        else:
            before = before if char in " \t\n" else char
            at += 1
    return False
