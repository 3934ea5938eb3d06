"""Stands for semgrep where no program is configured: who asks for it is told how to get it, and nothing looks clean."""

from __future__ import annotations

from typing import Final

from services.tools.code.model import CodeLanguage, EngineName, EngineResult, Rule, Source

ABSENT: Final = (
    "semgrep is not installed here: run scripts/semgrep.sh and set KALA_TOOLS_SEMGREP to the program that it names, "
    "or ask for other engines"
)


class SemgrepEngine:
    """Answers every file with a problem; services.tools.semgrep runs the program."""

    name: EngineName = EngineName.SEMGREP
    version: str = "semgrep (absent)"
    rules: tuple[Rule, ...] = ()

    def reads(self, language: CodeLanguage) -> bool:  # noqa: ARG002 - every one
        return True

    def scan(self, source: Source) -> EngineResult:  # noqa: ARG002 - none is looked at
        return EngineResult((), (ABSENT,))
