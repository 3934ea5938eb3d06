"""The engines for JavaScript: taint and syntax, over one tree and one flow."""

from __future__ import annotations

from typing import Final

from services.tools.code.engines.javascript.flow import javascript_flow
from services.tools.code.engines.javascript.settings import settings
from services.tools.code.engines.javascript.sinks import dangers
from services.tools.code.engines.rule_engine import RuleEngine
from services.tools.code.grammar import Node, javascript_tree
from services.tools.code.model import CodeLanguage, EngineName, EngineResult, Hit, Source, Step

_PREFIX: Final = "kala.javascript"


class JavaScriptTaintEngine(RuleEngine):
    """Follows data from requests, pages and parameters to where it does harm."""

    name = EngineName.TAINT
    version = "kala.taint.javascript 1"
    language = CodeLanguage.JAVASCRIPT
    rule_file = "javascript_taint.yaml"
    prefix = _PREFIX

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


class JavaScriptSyntaxEngine(RuleEngine):
    """Looks at calls, settings and comparisons."""

    name = EngineName.SYNTAX
    version = "kala.syntax.javascript 1"
    language = CodeLanguage.JAVASCRIPT
    rule_file = "javascript_syntax.yaml"
    prefix = _PREFIX

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
