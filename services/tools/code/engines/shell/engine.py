"""The engines for shell scripts: taint and syntax, over one reading."""

from __future__ import annotations

from typing import Final

from services.tools.code.engines.rule_engine import RuleEngine
from services.tools.code.engines.shell.flows import flowing
from services.tools.code.engines.shell.script import shell_script
from services.tools.code.engines.shell.settings import settings
from services.tools.code.grammar import shell_tree
from services.tools.code.model import CodeLanguage, EngineName, EngineResult, Hit, Source, Step

_PREFIX: Final = "kala.shell"


class ShellTaintEngine(RuleEngine):
    """Follows arguments, lines and requests to where they become code, programs, queries and paths."""

    name = EngineName.TAINT
    version = "kala.taint.shell 1"
    language = CodeLanguage.SHELL
    rule_file = "shell_taint.yaml"
    prefix = _PREFIX

    def scan(self, source: Source) -> EngineResult:
        tree, script = source.once(shell_tree), source.once(shell_script)
        hits = []
        for rule, node, words, confidence in flowing(script):
            region, origin = tree.region(node), script.origin(*words)
            steps = () if origin is None else (*origin.steps, Step(region, "used here"))
            hits.append(Hit(self._rules[f"{_PREFIX}.{rule}"], region, steps, confidence=confidence))
        return EngineResult(tuple(hits), tuple(tree.problems))


class ShellSyntaxEngine(RuleEngine):
    """Looks at what programs are told."""

    name = EngineName.SYNTAX
    version = "kala.syntax.shell 1"
    language = CodeLanguage.SHELL
    rule_file = "shell_syntax.yaml"
    prefix = _PREFIX

    def scan(self, source: Source) -> EngineResult:
        tree, script = source.once(shell_tree), source.once(shell_script)
        found = dict.fromkeys(settings(script))
        hits = tuple(Hit(self._rules[f"{_PREFIX}.{rule}"], tree.region(node)) for rule, node in found)
        return EngineResult(hits, tuple(tree.problems))
