"""What code scanning is made of, in words that every engine shares.

Lines and columns count from 1, columns in Unicode characters; an end is just past the last character.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, Protocol, TypeVar, cast

from services.tools.code.lines import Lines

# As the contract says.
MAX_FILES: Final = 256
MAX_FILE_BYTES: Final = 1024 * 1024
MAX_TOTAL_BYTES: Final = 8 * 1024 * 1024
MAX_PATH_BYTES: Final = 1024
MAX_FINDINGS: Final = 10_000
MAX_FLOW_STEPS: Final = 64

T = TypeVar("T")


class Severity(IntEnum):
    """How bad a finding is when it is real; the numbers are the contract's."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4


class Confidence(IntEnum):
    """How sure the rule is that it is real; the numbers are the contract's."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3


class EngineName(Enum):
    """What looks at code; the names are the contract's."""

    BANDIT = "bandit"
    SYNTAX = "syntax"
    TAINT = "taint"
    SECRETS = "secrets"
    SEMGREP = "semgrep"


class CodeLanguage(Enum):
    """What a source file is written in."""

    PYTHON = "python"
    JAVASCRIPT = "javascript"
    SHELL = "shell"
    # Anything else: only engines that read every text look at it.
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A source file as the caller gave it; `language` is taken from the path's ending when None."""

    path: str
    content: str
    language: CodeLanguage | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A part of one file, by lines and columns."""

    start_line: int
    start_column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, slots=True)
class Span:
    """A region with its file and its place in the UTF-8 text."""

    path: str
    region: Region
    start_byte: int
    end_byte: int


@dataclass(frozen=True, slots=True)
class Rule:
    """What a rule says about a weakness; `cwe` has the most exact first and is never empty."""

    id: str
    title: str
    cwe: tuple[int, ...]
    severity: Severity
    confidence: Confidence
    explanation: str
    fix: str


@dataclass(frozen=True, slots=True)
class Step:
    """One station of tainted data, as an engine saw it."""

    region: Region
    what: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that matched, before it becomes a finding; unset fields take the rule's."""

    rule: Rule
    region: Region
    flow: tuple[Step, ...] = ()
    # Added to the rule's explanation; never holds a detected secret.
    detail: str = ""
    severity: Severity | None = None
    confidence: Confidence | None = None


@dataclass(frozen=True, slots=True)
class TaintStep:
    """One station of tainted data in the report."""

    span: Span
    what: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A weakness that a rule saw; the fields are the contract's."""

    fingerprint: str
    rule: str
    title: str
    engine: EngineName
    severity: Severity
    confidence: Confidence
    cwe: tuple[int, ...]
    owasp: tuple[str, ...]
    ssdf: tuple[str, ...]
    span: Span
    flow: tuple[TaintStep, ...]
    explanation: str
    fix: str
    repairable: bool


@dataclass(frozen=True, slots=True)
class ScanProblem:
    """A file that an engine could not read completely; `engine` is None when none could."""

    path: str
    engine: EngineName | None
    message: str


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What a scan came to; a report with problems does not show that code is safe."""

    findings: tuple[Finding, ...]
    problems: tuple[ScanProblem, ...]
    engines: tuple[str, ...]
    rules_digest: bytes
    truncated: bool
    elapsed_seconds: float


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """What to look for, with the contract's defaults; `engines` None means all but semgrep, which is for batches only."""

    minimum_severity: Severity = Severity.MEDIUM
    minimum_confidence: Confidence = Confidence.LOW
    engines: frozenset[EngineName] | None = None
    max_findings: int = MAX_FINDINGS


class Source:
    """A file that is being scanned, with what engines worked out about it together."""

    def __init__(self, path: str, text: str, language: CodeLanguage) -> None:
        self.path = path
        self.text = text
        self.language = language
        self.lines = Lines(text)
        self._made: dict[Callable[[Source], object], object] = {}

    def once(self, make: Callable[[Source], T]) -> T:
        """Give what `make` makes of this file; it is called once, and what it raises is raised each time."""
        if make not in self._made:
            self._made[make] = make(self)
        return cast("T", self._made[make])  # the dictionary holds what each maker returned


@dataclass(frozen=True, slots=True)
class EngineResult:
    """What an engine saw in one file; `problems` says in words what it could not read."""

    hits: tuple[Hit, ...]
    problems: tuple[str, ...] = ()


class RuleSet(Protocol):
    """What a report says of whoever looked: its name, its version and every rule it knows."""

    @property
    def name(self) -> EngineName:
        """Which engine."""
        ...

    @property
    def version(self) -> str:
        """Name and version for the report, e.g. "kala.taint 3"."""
        ...

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Every rule it knows, for the rules' digest; of a foreign engine, those that are known by name."""
        ...


class Engine(RuleSet, Protocol):
    """Something that looks at one file at a time; it runs nothing, writes nothing and reaches no network."""

    def reads(self, language: CodeLanguage) -> bool:
        """Whether it looks at files of this language."""
        ...

    def scan(self, source: Source) -> EngineResult:
        """Look at one file, whatever it holds: text that cannot be parsed is a problem, not an exception."""
        ...
