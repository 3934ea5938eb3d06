"""What the engines whose rules are a file of this product have in common."""

from __future__ import annotations

from typing import ClassVar

from services.tools.code.model import CodeLanguage, EngineName, Rule
from services.tools.code.rules import load


class RuleEngine:
    """An engine for one language with one rule file; how it scans is its subclass's. Keeps the `Engine` protocol."""

    name: EngineName
    # Raised with every change of what is found.
    version: str
    language: ClassVar[CodeLanguage]
    rule_file: ClassVar[str]
    # Begins the ids of its rules.
    prefix: ClassVar[str]

    def __init__(self) -> None:
        self._rules = load(self.rule_file, self.prefix)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(self._rules.values())

    def reads(self, language: CodeLanguage) -> bool:
        return language is self.language
