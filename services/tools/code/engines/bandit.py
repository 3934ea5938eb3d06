"""bandit as a library: its tests over a tree that is parsed already, without its files, baselines and `# nosec`.

Comments cannot silence it: the code that is checked may come from a model, and so may its comments.
"""

from __future__ import annotations

import logging
import warnings
from importlib.metadata import version
from typing import Final

from services.tools.code.model import (
    CodeLanguage,
    Confidence,
    EngineName,
    EngineResult,
    Hit,
    Region,
    Rule,
    Severity,
    Source,
)
from services.tools.code.python.tree import MAX_LINE, line_problem, parse_problem, python_tree

with warnings.catch_warnings():
    # bandit's plug-in loader warns about its own arguments on import.
    warnings.simplefilter("ignore", DeprecationWarning)
    from bandit.core import config as bandit_config
    from bandit.core import issue, meta_ast, metrics, node_visitor, test_set

# What the engines of this product judge more exactly, or what says nothing about an attack: SQL text without a source,
# any use of a parser or an URL, missing timeouts, imports alone, modes of files, archives whose names are checked,
# loaders of YAML, and models without a pinned revision.
_LEFT_OUT: Final = frozenset(
    {
        "B103",
        "B104",
        "B108",
        "B113",
        "B201",
        "B202",
        "B310",
        "B313",
        "B314",
        "B315",
        "B316",
        "B317",
        "B318",
        "B319",
        "B320",
        "B324",
        "B401",
        "B402",
        "B403",
        "B404",
    }
    | {"B405", "B406", "B407", "B408", "B409", "B410", "B411", "B412", "B413", "B415", "B506", "B608", "B615"}
)
# More exact than bandit's own.
_CWE: Final[dict[str, tuple[int, ...]]] = {
    "B101": (617, 703),
    "B102": (94, 95, 78),
    "B110": (703, 390),
    "B112": (703, 390),
    "B303": (328, 327),
    "B306": (377,),
    "B307": (95, 94),
    "B308": (79, 80),
    "B311": (330, 338),
    "B312": (319,),
    "B321": (319,),
    "B501": (295,),
    "B502": (327, 326),
    "B503": (327, 326),
    "B507": (295,),
    "B602": (78,),
    "B605": (78,),
    "B701": (79, 116),
    "B702": (79, 116),
    "B703": (79, 80),
}
_FIX: Final = "See the explanation of this test in bandit's documentation."
_LEVELS: Final = {"UNDEFINED": 1, "LOW": 1, "MEDIUM": 2, "HIGH": 3}


class BanditEngine:
    """bandit's tests; all levels, the options of a scan choose."""

    name: EngineName = EngineName.BANDIT

    def __init__(self) -> None:
        self.version = f"bandit {version('bandit')}"
        # bandit says there which files it cannot name; files of a request have no names.
        logging.getLogger("bandit").setLevel(logging.CRITICAL)
        self._tests = test_set.BanditTestSet(
            bandit_config.BanditConfig(), profile={"exclude": sorted(_LEFT_OUT)}
        )
        self._meta = meta_ast.BanditMetaAst()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The tests that say more here than in bandit; the others follow from bandit's version."""
        return tuple(
            Rule(f"bandit.{name}", name, cwe, Severity.MEDIUM, Confidence.MEDIUM, "", _FIX)
            for name, cwe in sorted(_CWE.items())
        )

    def reads(self, language: CodeLanguage) -> bool:
        return language is CodeLanguage.PYTHON

    def scan(self, source: Source) -> EngineResult:
        if source.lines.longest > MAX_LINE:
            return EngineResult((), (line_problem(source),))
        tree = source.once(python_tree)
        if tree is None:
            return EngineResult((), (parse_problem(source) or "cannot be parsed",))
        counts = metrics.Metrics()
        counts.begin(source.path)
        visitor = node_visitor.BanditNodeVisitor("code.py", None, self._meta, self._tests, False, {}, counts)
        try:
            visitor.generic_visit(tree.module)
        except RecursionError:
            return EngineResult((), ("too deeply nested to check completely",))
        hits = tuple(_hit(source, found) for found in visitor.tester.results)
        problem = f"{tree.problem}; the rest was scanned" if tree.problem else ""
        return EngineResult(hits, (problem,) if problem else ())


def _hit(source: Source, found: issue.Issue) -> Hit:
    line = int(found.lineno or 1)
    region = Region(line, 1, line, len(source.lines.line(line)) + 1)
    start = int(found.col_offset) if found.col_offset and found.col_offset > 0 else 0
    if start:
        region = Region(line, source.lines.column_of_byte(line, start), line, region.end_column)
    number = int(found.cwe.id) if found.cwe is not None and found.cwe.id else 0
    rule = Rule(
        id=f"bandit.{found.test_id}",
        title=str(found.test).replace("_", " "),
        cwe=_CWE.get(found.test_id, (number,) if number else (710,)),
        severity=Severity(_LEVELS.get(found.severity, 1)),
        confidence=Confidence(_LEVELS.get(found.confidence, 1)),
        explanation=str(found.text),
        fix=_FIX,
    )
    return Hit(rule, region)
