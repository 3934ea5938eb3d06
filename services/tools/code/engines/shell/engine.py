"""The engines for shell scripts: taint and syntax, over one reading."""

from __future__ import annotations

from typing import Final

from services.tools.code.engines.shell.flows import flowing
from services.tools.code.engines.shell.script import shell_script
from services.tools.code.engines.shell.settings import settings
from services.tools.code.grammar import shell_tree
from services.tools.code.model import CodeLanguage, EngineName, EngineResult, Hit, Rule, Source, Step
from services.tools.code.rules import load

# Raised with every change of what is found.
_TAINT_VERSION: Final = "kala.taint.shell 1"
_SYNTAX_VERSION: Final = "kala.syntax.shell 1"
_PREFIX: Final = "kala.shell"


class ShellTaintEngine:
    """Follows arguments, lines and requests to where they become code, programs, queries and paths."""

    name: EngineName = EngineName.TAINT
    version: str = _TAINT_VERSION

    def __init__(self) -> None:
        self._rules = load("shell_taint.yaml", _PREFIX)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(self._rules.values())

    def reads(self, language: CodeLanguage) -> bool:
        return language is CodeLanguage.SHELL

    def scan(self, source: Source) -> EngineResult:
        tree, script = source.once(shell_tree), source.once(shell_script)
        hits = []
        for rule, node, words, confidence in flowing(script):
            region, origin = tree.region(node), script.origin(*words)
            steps = () if origin is None else (*origin.steps, Step(region, "used here"))
            hits.append(Hit(self._rules[f"{_PREFIX}.{rule}"], region, steps, confidence=confidence))
        return EngineResult(tuple(hits), tuple(tree.problems))


class ShellSyntaxEngine:
    """Looks at what programs are told."""

    name: EngineName = EngineName.SYNTAX
    version: str = _SYNTAX_VERSION

    def __init__(self) -> None:
        self._rules = load("shell_syntax.yaml", _PREFIX)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(self._rules.values())

    def reads(self, language: CodeLanguage) -> bool:
        return language is CodeLanguage.SHELL

    def scan(self, source: Source) -> EngineResult:
        tree, script = source.once(shell_tree), source.once(shell_script)
        found = dict.fromkeys(settings(script))
        hits = tuple(Hit(self._rules[f"{_PREFIX}.{rule}"], tree.region(node)) for rule, node in found)
        return EngineResult(hits, tuple(tree.problems))
