"""Takes the code out of what a model answered.  Pure."""

from __future__ import annotations

import ast
import re
from typing import Final

from services.tools.sandbox.model import Language

_FENCE: Final = re.compile(
    r"^ {0,3}(`{3,}|~{3,})[ \t]*([A-Za-z0-9_+#.-]*)[^\n]*\n(.*?)(?:^ {0,3}\1[`~]*[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_WORDS: Final = {
    Language.PYTHON: frozenset({"python", "py", "python3"}),
    Language.JAVASCRIPT: frozenset({"javascript", "js", "node", "mjs"}),
    Language.SHELL: frozenset({"bash", "sh", "shell", "zsh"}),
}
_ENDINGS: Final = {Language.PYTHON: ".py", Language.JAVASCRIPT: ".js", Language.SHELL: ".sh"}


def code_of(answer: str, language: Language) -> str | None:
    """The longest block that is marked with the language, else without one; None when the answer holds no code."""
    blocks: list[tuple[str, str]] = [(match[2].lower(), match[3]) for match in _FENCE.finditer(answer)]
    for words in (_WORDS[language], frozenset({""})):
        fitting = [text for word, text in blocks if word in words and text.strip()]
        if fitting:
            return max(fitting, key=len)
    if not blocks and language is Language.PYTHON and _is_program(answer):
        return answer if answer.endswith("\n") else answer + "\n"
    return None


def default_path(language: Language) -> str:
    """The path of code that was given none."""
    return "main" + _ENDINGS[language]


def _is_program(text: str) -> bool:
    """Tell whether an answer without any block is code itself: it parses, and is more than a word."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(not isinstance(each, ast.Expr) for each in body)
