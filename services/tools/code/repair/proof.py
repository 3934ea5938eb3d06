"""Which rewrites stand: a new scan finds nothing in their place and nothing new.  Blocking, and runs none of the code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.tools.code.model import Finding, ScanReport, SourceFile
from services.tools.code.repair.plan import Made, Plan, plan_of, rewritten

MAX_REWRITES: Final = 128
"""At a time: each may cost a scan of its file."""

Scan = Callable[[Sequence[SourceFile]], ScanReport]
"""Scans files with the caller's options."""


@dataclass(slots=True)
class Repaired:
    """Files with the rewrites that a scan agrees with, and why the other findings were left."""

    files: tuple[SourceFile, ...]
    plans: dict[str, Plan]
    standing: list[Made]
    left: dict[str, str] = field(default_factory=dict)

    def with_only(self, chosen: Collection[Made]) -> tuple[SourceFile, ...]:
        """All files with some of the standing rewrites made."""
        return tuple(
            rewritten(file, self.plans[file.path], chosen) if file.path in self.plans else file
            for file in self.files
        )


def repair(files: Sequence[SourceFile], before: ScanReport, wanted: Collection[str], scan: Scan) -> Repaired:
    """Rewrite what can be; `wanted` are fingerprints, empty for all."""
    asked = [each for each in before.findings if not wanted or each.fingerprint in wanted]
    repaired = Repaired(tuple(files), {}, [])
    for file in files:
        findings = [each for each in asked if each.span.path == file.path]
        if not findings:
            continue
        plan = plan_of(file, findings)
        repaired.plans[file.path] = plan
        repaired.left |= plan.left
        room = MAX_REWRITES - len(repaired.standing)
        for made in plan.made[room:]:
            _leave(repaired, made, f"{MAX_REWRITES} rewrites are made at a time; repair the result once more")
        all_before = [each for each in before.findings if each.span.path == file.path]
        _try(repaired, file, plan, plan.made[:room], all_before, scan)
    return repaired


def _try(
    repaired: Repaired,
    file: SourceFile,
    plan: Plan,
    candidates: Sequence[Made],
    before: Sequence[Finding],
    scan: Scan,
) -> None:
    """Make all rewrites of a file that a scan agrees with: all at once, or in ever smaller groups where it does not."""
    kept: list[Made] = []
    waiting = [list(candidates)] if candidates else []
    while waiting:
        group = waiting.pop()
        chosen = [*kept, *group]
        objection = _objection(rewritten(file, plan, chosen), chosen, before, scan)
        if not objection:
            kept.extend(group)
        elif len(group) == 1:
            _leave(repaired, group[0], objection)
        else:
            middle = len(group) // 2
            waiting += [group[middle:], group[:middle]]
    repaired.standing.extend(kept)


def _objection(file: SourceFile, made: Collection[Made], before: Sequence[Finding], scan: Scan) -> str:
    """Say what a new scan has against a file; "" for nothing."""
    after = scan([file])
    if after.problems:
        return "the rewritten file cannot be read"
    cured = Counter(finding.rule for each in made for finding in each.findings)
    allowed = Counter(finding.rule for finding in before) - cured
    for rule, count in Counter(finding.rule for finding in after.findings).items():
        if count > allowed[rule]:
            return (
                f"the new scan still found {rule}"
                if cured[rule]
                else f"the rewrite would bring {rule} instead"
            )
    return ""


def _leave(repaired: Repaired, made: Made, reason: str) -> None:
    for finding in made.findings:
        repaired.left[finding.fingerprint] = reason
