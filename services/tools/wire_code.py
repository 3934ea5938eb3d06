"""Between the contract's messages and this service's own words: code, findings, reports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kala.errors import InvalidArgumentError
from kala.tools.v1 import code_pb2 as pb
from kala.tools.v1 import execution_pb2
from kala.tools.v1.tools_pb2 import ScanOptions as ScanOptionsMessage
from services.tools import wire
from services.tools.code.model import (
    CodeLanguage,
    Confidence,
    EngineName,
    Finding,
    ScanOptions,
    ScanReport,
    Severity,
    SourceFile,
    Span,
)

SEVERITIES: Final = {each: pb.Severity.Value(f"SEVERITY_{each.name}") for each in Severity}
CONFIDENCES: Final = {each: pb.Confidence.Value(f"CONFIDENCE_{each.name}") for each in Confidence}
ENGINES: Final = {each: pb.CodeEngine.Value(f"CODE_ENGINE_{each.name}") for each in EngineName}
_LANGUAGES: Final = {
    execution_pb2.LANGUAGE_PYTHON: CodeLanguage.PYTHON,
    execution_pb2.LANGUAGE_JAVASCRIPT: CodeLanguage.JAVASCRIPT,
    execution_pb2.LANGUAGE_SHELL: CodeLanguage.SHELL,
}


def files_of(messages: Iterable[pb.CodeFile]) -> tuple[SourceFile, ...]:
    """Read source files; their number and sizes are the scan's to judge."""
    return tuple(SourceFile(each.path, each.content, _LANGUAGES.get(each.language)) for each in messages)


def options_of(message: ScanOptionsMessage) -> ScanOptions:
    """Read what to look for; what is unset is the contract's default."""
    chosen = frozenset(name for name, number in ENGINES.items() if number in message.engines)
    if len(chosen) < len(set(message.engines)):
        raise InvalidArgumentError("options.engines", "holds an engine that is none")
    severity = next((each for each, number in SEVERITIES.items() if number == message.min_severity), None)
    confidence = next(
        (each for each, number in CONFIDENCES.items() if number == message.min_confidence), None
    )
    return ScanOptions(
        minimum_severity=severity or Severity.MEDIUM,
        minimum_confidence=confidence or Confidence.LOW,
        engines=chosen or None,
    )


def report(found: ScanReport) -> pb.ScanReport:
    """Write what a scan came to."""
    return pb.ScanReport(
        findings=[_finding(each) for each in found.findings],
        problems=[
            pb.ScanProblem(
                path=each.path,
                engine=pb.CODE_ENGINE_UNSPECIFIED if each.engine is None else ENGINES[each.engine],
                message=each.message,
            )
            for each in found.problems
        ],
        engines=found.engines,
        rules_digest=found.rules_digest,
        truncated=found.truncated,
        elapsed=wire.duration(found.elapsed_seconds),
    )


def _finding(found: Finding) -> pb.Finding:
    return pb.Finding(
        fingerprint=found.fingerprint,
        rule=found.rule,
        title=found.title,
        engine=ENGINES[found.engine],
        severity=SEVERITIES[found.severity],
        confidence=CONFIDENCES[found.confidence],
        cwe=found.cwe,
        owasp=found.owasp,
        ssdf=found.ssdf,
        span=_span(found.span),
        flow=[pb.TaintStep(span=_span(step.span), what=step.what) for step in found.flow],
        explanation=found.explanation,
        fix=found.fix,
        repairable=found.repairable,
    )


def _span(found: Span) -> pb.Span:
    return pb.Span(
        path=found.path,
        start_line=found.region.start_line,
        start_column=found.region.start_column,
        end_line=found.region.end_line,
        end_column=found.region.end_column,
        start_byte=found.start_byte,
        end_byte=found.end_byte,
    )
