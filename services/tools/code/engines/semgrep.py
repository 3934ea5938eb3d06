"""Stands for semgrep, which this release does not bring: who asks for it is told, and gets no report that looks clean."""

from __future__ import annotations

from services.tools.code.model import CodeLanguage, EngineName, EngineResult, Rule, Source

_PROBLEM = "semgrep is not part of this release; leave options.engines unset, or name other engines"


class SemgrepEngine:
    """Answers every file with a problem."""

    name: EngineName = EngineName.SEMGREP
    version: str = "semgrep (absent)"
    rules: tuple[Rule, ...] = ()

    def reads(self, language: CodeLanguage) -> bool:  # noqa: ARG002 - every one
        return True

    def scan(self, source: Source) -> EngineResult:  # noqa: ARG002 - none is looked at
        return EngineResult((), (_PROBLEM,))
