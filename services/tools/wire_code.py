"""Between the contract's messages and this service's own words: code, findings, reports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kala.errors import InvalidArgumentError
from kala.tools.v1 import code_pb2 as pb
from kala.tools.v1 import execution_pb2
from kala.tools.v1.tools_pb2 import GenerateCodeAction, GenerateCodeResponse, RepairCodeAction
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
from services.tools.files.model import Owner
from services.tools.generating import GenerateAsked, Generated
from services.tools.repairing import Outcome, RepairAsked
from services.tools.sandbox.model import Language
from services.tools.testing import TestReport, TestsAsked

SEVERITIES: Final = {each: pb.Severity.Value(f"SEVERITY_{each.name}") for each in Severity}
CONFIDENCES: Final = {each: pb.Confidence.Value(f"CONFIDENCE_{each.name}") for each in Confidence}
ENGINES: Final = {each: pb.CodeEngine.Value(f"CODE_ENGINE_{each.name}") for each in EngineName}
_LANGUAGES: Final = {
    execution_pb2.LANGUAGE_PYTHON: CodeLanguage.PYTHON,
    execution_pb2.LANGUAGE_JAVASCRIPT: CodeLanguage.JAVASCRIPT,
    execution_pb2.LANGUAGE_SHELL: CodeLanguage.SHELL,
}

_WRITTEN: Final = {
    execution_pb2.LANGUAGE_PYTHON: Language.PYTHON,
    execution_pb2.LANGUAGE_JAVASCRIPT: Language.JAVASCRIPT,
    execution_pb2.LANGUAGE_SHELL: Language.SHELL,
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


def repair_asked(action: RepairCodeAction, owner: Owner) -> RepairAsked:
    """Read one repair."""
    return RepairAsked(
        owner,
        files_of(action.files),
        frozenset(action.fingerprints),
        options_of(action.options),
        tests_asked(action.tests) if action.HasField("tests") else None,
    )


def generate_asked(action: GenerateCodeAction, owner: Owner) -> GenerateAsked:
    """Read one piece of code that is to be written."""
    language = _WRITTEN.get(action.language)
    if language is None:
        raise InvalidArgumentError(
            "language", "must be LANGUAGE_PYTHON, LANGUAGE_JAVASCRIPT or LANGUAGE_SHELL"
        )
    return GenerateAsked(
        owner,
        action.task,
        language,
        action.generation,
        action.path,
        tuple(action.frameworks),
        options_of(action.options),
        action.repair,
        tests_asked(action.tests) if action.HasField("tests") else None,
    )


def tests_asked(message: pb.CodeTests) -> TestsAsked:
    """Read tests."""
    limits = wire.asked_limits(message.limits, field="tests.limits")
    return TestsAsked(files_of(message.files), tuple(message.command), limits)


def file(found: SourceFile) -> pb.CodeFile:
    """Write a source file."""
    language = next((number for number, each in _LANGUAGES.items() if each is found.language), None)
    return pb.CodeFile(
        path=found.path,
        content=found.content,
        language=execution_pb2.LANGUAGE_UNSPECIFIED if language is None else language,
    )


def outcome(found: Outcome) -> pb.RepairOutcome:
    """Write code before and after, with the proof."""
    return pb.RepairOutcome(
        files=[file(each) for each in found.files],
        diff=found.diff,
        repairs=[
            pb.Repair(
                fingerprint=each.fingerprint,
                rewrite=each.rewrite,
                span=_span(each.span),
                before=each.before,
                after=each.after,
                note=each.note,
            )
            for each in found.repairs
        ],
        unrepaired=[
            pb.UnrepairedFinding(fingerprint=fingerprint, reason=reason)
            for fingerprint, reason in found.unrepaired
        ],
        before=report(found.before),
        after=report(found.after),
        tests_before=_tests(found.tests_before),
        tests_after=_tests(found.tests_after),
        digests=found.digests,
    )


def generated(found: Generated) -> GenerateCodeResponse:
    """Write what a model wrote, and what was done with it."""
    done = found.outcome
    return GenerateCodeResponse(
        generated=None if found.code is None else file(found.code),
        code=None if done is None else file(done.files[0]),
        outcome=None if done is None else outcome(done),
        accepted=not found.reasons,
        reasons=found.reasons,
        model=found.model,
        generation_id=found.generation_id,
    )


def _tests(found: TestReport | None) -> pb.TestReport | None:
    if found is None:
        return None
    return pb.TestReport(
        passed=found.passed,
        status=wire.STATUSES[found.status],
        exit_code=found.exit_code,
        stdout_tail=found.stdout_tail.decode("utf-8", "replace"),
        stderr_tail=found.stderr_tail.decode("utf-8", "replace"),
        isolation=wire.isolation(found.isolation),
        run=found.run,
        usage=wire.usage(found.usage),
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
