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
from services.tools.code.model import CodeLanguage, EngineName, EngineResult, Rule, Source
from services.tools.code.python.subject import PREFIX, run_checks
from services.tools.code.rules import load

# Raised with every change of what is found.
_VERSION: Final = "kala.syntax 1"
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


class PythonSyntaxEngine:
    """Looks at calls, settings and missing controls of a Python file."""

    name: EngineName = EngineName.SYNTAX
    version: str = _VERSION

    def __init__(self) -> None:
        self._rules = load("python_syntax.yaml", PREFIX)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(self._rules.values())

    def reads(self, language: CodeLanguage) -> bool:
        return language is CodeLanguage.PYTHON

    def scan(self, source: Source) -> EngineResult:
        return run_checks(source, self._rules, _CHECKS)
