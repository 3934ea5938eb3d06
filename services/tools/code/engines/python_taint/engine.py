"""The taint engine for Python."""

from __future__ import annotations

from typing import Final

from services.tools.code.engines.python_taint import (
    disclosure,
    execution,
    files,
    markup,
    queries,
    resources,
    trust,
)
from services.tools.code.model import CodeLanguage, EngineName, EngineResult, Rule, Source
from services.tools.code.python.subject import PREFIX, run_checks
from services.tools.code.rules import load

# Raised with every change of what is found.
_VERSION: Final = "kala.taint 1"
_CHECKS: Final = (
    *queries.CHECKS,
    *execution.CHECKS,
    *markup.CHECKS,
    *files.CHECKS,
    *disclosure.CHECKS,
    *trust.CHECKS,
    *resources.CHECKS,
)


class PythonTaintEngine:
    """Follows untrusted and secret data through a Python file."""

    name: EngineName = EngineName.TAINT
    version: str = _VERSION

    def __init__(self) -> None:
        self._rules = load("python_taint.yaml", PREFIX)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(self._rules.values())

    def reads(self, language: CodeLanguage) -> bool:
        return language is CodeLanguage.PYTHON

    def scan(self, source: Source) -> EngineResult:
        return run_checks(source, self._rules, _CHECKS)
