"""The syntax engine for Python."""

from __future__ import annotations

from typing import Final

from services.tools.code.engines.python_syntax import (
    access,
    checks,
    credentials,
    crypto,
    meanings,
    settings,
    soundness,
    transport,
)
from services.tools.code.engines.rule_engine import RuleEngine
from services.tools.code.model import CodeLanguage, EngineName, EngineResult, Source
from services.tools.code.python.subject import PREFIX, run_checks

_CHECKS: Final = (
    *crypto.CHECKS,
    *transport.CHECKS,
    *credentials.CHECKS,
    *settings.CHECKS,
    *access.CHECKS,
    *checks.CHECKS,
    *soundness.CHECKS,
    *meanings.CHECKS,
)


class PythonSyntaxEngine(RuleEngine):
    """Looks at calls, settings and missing controls of a Python file."""

    name = EngineName.SYNTAX
    version = "kala.syntax 1"
    language = CodeLanguage.PYTHON
    rule_file = "python_syntax.yaml"
    prefix = PREFIX

    def scan(self, source: Source) -> EngineResult:
        return run_checks(source, self._rules, _CHECKS)
