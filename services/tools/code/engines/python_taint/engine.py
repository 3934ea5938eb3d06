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
from services.tools.code.engines.rule_engine import RuleEngine
from services.tools.code.model import CodeLanguage, EngineName, EngineResult, Source
from services.tools.code.python.subject import PREFIX, run_checks

_CHECKS: Final = (
    *queries.CHECKS,
    *execution.CHECKS,
    *markup.CHECKS,
    *files.CHECKS,
    *disclosure.CHECKS,
    *trust.CHECKS,
    *resources.CHECKS,
)


class PythonTaintEngine(RuleEngine):
    """Follows untrusted and secret data through a Python file."""

    name = EngineName.TAINT
    version = "kala.taint 1"
    language = CodeLanguage.PYTHON
    rule_file = "python_taint.yaml"
    prefix = PREFIX

    def scan(self, source: Source) -> EngineResult:
        return run_checks(source, self._rules, _CHECKS)
