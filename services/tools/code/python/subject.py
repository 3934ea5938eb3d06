"""What checks are given, and how they report."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from services.tools.code.model import Confidence, EngineResult, Hit, Rule, Severity, Source, Step
from services.tools.code.python.facts import Facts
from services.tools.code.python.interpret import python_facts
from services.tools.code.python.tree import (
    MAX_LINE,
    PythonTree,
    head_region,
    line_problem,
    parse_problem,
    python_tree,
    region_of,
)
from services.tools.code.python.values import OUTSIDE, REMOTE, Kind, Taint

PREFIX: Final = "kala.python"
_COMPOUND: Final = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.For,
    ast.While,
    ast.Try,
    ast.If,
    ast.With,
)


@dataclass(frozen=True, slots=True)
class Subject:
    """One Python file under the eyes of the checks."""

    source: Source
    tree: PythonTree
    facts: Facts
    rules: Mapping[str, Rule]

    def hit(
        self,
        rule: str,
        node: ast.AST,
        taints: Iterable[Taint] = (),
        *,
        detail: str = "",
        confidence: Confidence | None = None,
        severity: Severity | None = None,
    ) -> Hit:
        """Report a rule at a node; the surest taint becomes the flow, and a caller's parameter lowers the confidence."""
        found = sorted(taints, key=_certainty)
        flow: tuple[Step, ...] = ()
        if found:
            flow = tuple(Step(region_of(self.source, step), what) for step, what in found[0].steps)
            if found[0].kind is Kind.PARAMETER:
                confidence = confidence or Confidence.MEDIUM
        region = (
            head_region(self.source, node) if isinstance(node, _COMPOUND) else region_of(self.source, node)
        )
        return Hit(
            self.rules[f"{PREFIX}.{rule}"], region, flow, detail, severity=severity, confidence=confidence
        )


Check = Callable[[Subject], Iterator[Hit]]


def run_checks(source: Source, rules: Mapping[str, Rule], checks: Iterable[Check]) -> EngineResult:
    """Run checks over one file; each place is reported once per rule, with the surest flow."""
    if source.lines.longest > MAX_LINE:
        return EngineResult((), (line_problem(source),))
    tree = source.once(python_tree)
    if tree is None:
        return EngineResult((), (parse_problem(source) or "cannot be parsed",))
    facts = source.once(python_facts)
    subject = Subject(source, tree, facts, rules)
    hits: dict[tuple[str, int, int], Hit] = {}
    problems = [f"{tree.problem}; the rest was scanned"] if tree.problem else []
    if facts.exhausted:
        problems.append("too large or too deeply nested to follow completely; what was reached was scanned")
    for check in checks:
        try:
            for hit in check(subject):
                key = (hit.rule.id, hit.region.start_line, hit.region.start_column)
                if key not in hits or len(hit.flow) > len(hits[key].flow):
                    hits[key] = hit
        except RecursionError:
            problems.append("too deeply nested to check completely")
    return EngineResult(tuple(hits.values()), tuple(dict.fromkeys(problems)))


def _certainty(taint: Taint) -> int:
    return 0 if taint.kind in REMOTE else 1 if taint.kind in OUTSIDE else 2
