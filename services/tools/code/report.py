"""From what engines saw to one report: placed, fingerprinted, merged over engines, sorted, cut."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Final

from services.tools.code.catalogue import owasp_of, repairable, ssdf_of
from services.tools.code.model import (
    MAX_FLOW_STEPS,
    EngineName,
    Finding,
    Hit,
    Region,
    RuleSet,
    ScanOptions,
    Source,
    Span,
    TaintStep,
)

# When two engines see the same weakness in the same place, the one that says more about it is kept.
_PREFERENCE: Final = (
    EngineName.TAINT,
    EngineName.SYNTAX,
    EngineName.SECRETS,
    EngineName.BANDIT,
    EngineName.SEMGREP,
)
_FINGERPRINT_CHARACTERS: Final = 32


@dataclass(frozen=True, slots=True)
class Seen:
    """A hit with the engine that saw it."""

    engine: EngineName
    hit: Hit


def findings_of(source: Source, seen: Iterable[Seen], options: ScanOptions) -> list[Finding]:
    """Give the findings of one file that reach the asked levels, by position, each weakness once per place."""
    kept: list[Seen] = []
    places: dict[tuple[int, int], list[Seen]] = {}
    for one in sorted(seen, key=_order):
        if not _reaches(one.hit, options):
            continue
        hit = one.hit
        before = [
            other
            for cwe in hit.rule.cwe
            for other in places.get((hit.region.start_line, cwe), ())
            if other.engine is not one.engine or other.hit.rule.id == hit.rule.id
        ]
        if before:
            continue
        kept.append(one)
        for cwe in hit.rule.cwe:
            places.setdefault((hit.region.start_line, cwe), []).append(one)
    kept.sort(key=lambda one: (*astuple(one.hit.region), one.hit.rule.id))
    counts: dict[str, int] = {}
    return [_finding(source, one, counts) for one in kept]


def rules_digest(engines: Sequence[RuleSet]) -> bytes:
    """Give SHA-256 over the engines' versions and rules, in the order of their names."""
    digest = hashlib.sha256(b"kala-code-rules-v1\0")
    for engine in sorted(engines, key=lambda engine: engine.name.value):
        digest.update(f"{engine.name.value}\0{engine.version}\0".encode())
        for rule in sorted(engine.rules, key=lambda rule: rule.id):
            digest.update(repr(rule).encode())
    return digest.digest()


def span_of(source: Source, region: Region) -> Span:
    """Place a region in its file."""
    lines = source.lines
    start = lines.offset(region.start_line, region.start_column)
    end = max(start, lines.offset(region.end_line, region.end_column))
    return Span(source.path, region, lines.byte_offset(start), lines.byte_offset(end))


def _order(one: Seen) -> tuple[int, int, int, int]:
    rule, region = one.hit.rule, one.hit.region
    return (
        _PREFERENCE.index(one.engine),
        -(one.hit.severity or rule.severity),
        region.start_line,
        region.start_column,
    )


def _reaches(hit: Hit, options: ScanOptions) -> bool:
    severity = hit.rule.severity if hit.severity is None else hit.severity
    confidence = hit.rule.confidence if hit.confidence is None else hit.confidence
    return severity >= options.minimum_severity and confidence >= options.minimum_confidence


def _finding(source: Source, one: Seen, counts: dict[str, int]) -> Finding:
    hit, rule = one.hit, one.hit.rule
    steps = hit.flow[: MAX_FLOW_STEPS - 1] + hit.flow[-1:] if len(hit.flow) > MAX_FLOW_STEPS else hit.flow
    return Finding(
        fingerprint=_fingerprint(source, hit, counts),
        rule=rule.id,
        title=rule.title,
        engine=one.engine,
        severity=rule.severity if hit.severity is None else hit.severity,
        confidence=rule.confidence if hit.confidence is None else hit.confidence,
        cwe=rule.cwe,
        owasp=owasp_of(rule.cwe),
        ssdf=ssdf_of(rule.cwe),
        span=span_of(source, hit.region),
        flow=tuple(TaintStep(span_of(source, step.region), _writable(step.what)) for step in steps),
        explanation=_writable(f"{rule.explanation} {hit.detail}".strip()),
        fix=rule.fix,
        repairable=repairable(rule.id),
    )


def _writable(text: str) -> str:
    """Names in a text may come from literals with half characters, which no message can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _fingerprint(source: Source, hit: Hit, counts: dict[str, int]) -> str:
    """Hash path, rule and the line's own text, so that lines added elsewhere change nothing; twins are numbered."""
    text = " ".join(source.lines.line(hit.region.start_line).split())
    key = f"{source.path}\0{hit.rule.id}\0{text}"
    number = counts.get(key, 0)
    counts[key] = number + 1
    digest = hashlib.sha256(f"kala-finding-v1\0{key}\0{number}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:_FINGERPRINT_CHARACTERS]
