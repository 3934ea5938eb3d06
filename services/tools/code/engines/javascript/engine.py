"""The engines for JavaScript: taint and syntax, over one tree and one flow."""

from __future__ import annotations

from typing import Final

from services.tools.code.engines.javascript.flow import javascript_flow
from services.tools.code.engines.javascript.settings import settings
from services.tools.code.engines.javascript.sinks import dangers
from services.tools.code.grammar import Node, javascript_tree
from services.tools.code.model import CodeLanguage, EngineName, EngineResult, Hit, Rule, Source, Step
from services.tools.code.rules import load

# Raised with every change of what is found.
_TAINT_VERSION: Final = "kala.taint.javascript 1"
_SYNTAX_VERSION: Final = "kala.syntax.javascript 1"
_PREFIX: Final = "kala.javascript"


class JavaScriptTaintEngine:
    """Follows data from requests, pages and parameters to where it does harm."""

    name: EngineName = EngineName.TAINT
    version: str = _TAINT_VERSION

    def __init__(self) -> None:
        self._rules = load("javascript_taint.yaml", _PREFIX)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(self._rules.values())

    def reads(self, language: CodeLanguage) -> bool:
        return language is CodeLanguage.JAVASCRIPT

    def scan(self, source: Source) -> EngineResult:
        tree, flow = source.once(javascript_tree), source.once(javascript_flow)
        hits: dict[tuple[str, Node], Hit] = {}
        for found in dangers(flow):
            region = tree.region(found.node)
            taint = found.value.taint
            steps = () if taint is None else (*taint.steps, Step(region, "used here"))
            rule = self._rules[f"{_PREFIX}.{found.rule}"]
            hit = Hit(rule, region, steps, confidence=found.confidence)
            old = hits.get((found.rule, found.node))
            if old is None or (old.confidence is not None and hit.confidence is None):
                hits[found.rule, found.node] = hit
        return EngineResult(tuple(hits.values()), _problems(source))


class JavaScriptSyntaxEngine:
    """Looks at calls, settings and comparisons."""

    name: EngineName = EngineName.SYNTAX
    version: str = _SYNTAX_VERSION

    def __init__(self) -> None:
        self._rules = load("javascript_syntax.yaml", _PREFIX)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(self._rules.values())

    def reads(self, language: CodeLanguage) -> bool:
        return language is CodeLanguage.JAVASCRIPT

    def scan(self, source: Source) -> EngineResult:
        tree, flow = source.once(javascript_tree), source.once(javascript_flow)
        found = dict.fromkeys(settings(flow))
        hits = tuple(Hit(self._rules[f"{_PREFIX}.{rule}"], tree.region(node)) for rule, node in found)
        return EngineResult(hits, _problems(source))


def _problems(source: Source) -> tuple[str, ...]:
    problems = tuple(source.once(javascript_tree).problems)
    if source.once(javascript_flow).truncated and not problems:
        return ("too large to be followed completely",)
    return problems
