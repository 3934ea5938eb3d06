"""RepairCode from its clearance to its end: claimed, scanned, rewritten, proved by a new scan and by tests, recorded."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import InvalidArgumentError, KalaError
from services.common.clearance import VerifiedClearance
from services.common.service_records import Facts
from services.tools.code.model import ScanOptions, ScanReport, SourceFile, Span
from services.tools.code.repair.plan import Made
from services.tools.code.repair.proof import Repaired, repair
from services.tools.files.model import Owner
from services.tools.records import Records
from services.tools.running import Background
from services.tools.scanning import Scanning
from services.tools.testing import OnBehalf, Testing, TestReport, Tests, TestsAsked

REPAIR_CODE: Final = "/kala.tools.v1.ToolsService/RepairCode"
TOOL: Final = "repair_code"
"""How records name the call, which is no tool of a model's."""

MAX_FILES: Final = 64
MAX_BYTES: Final = 2 * 1024 * 1024
# One run each time; more would outlast the act.
MAX_TEST_RUNS: Final = 24
# Below this no run of tests is begun any more.
LEAST_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class RepairAsked:
    """One repair as its caller sent it."""

    owner: Owner
    files: tuple[SourceFile, ...]
    fingerprints: frozenset[str] = frozenset()
    options: ScanOptions = field(default_factory=ScanOptions)
    tests: TestsAsked | None = None


@dataclass(frozen=True, slots=True)
class RepairMade:
    """One rewrite that stands, for one finding; `span` is where it lies in the code before."""

    fingerprint: str
    rewrite: str
    span: Span
    before: str
    after: str
    note: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The code before and after, with the proof."""

    files: tuple[SourceFile, ...]
    diff: str
    repairs: tuple[RepairMade, ...]
    # Reason by fingerprint.
    unrepaired: tuple[tuple[str, str], ...]
    before: ScanReport
    after: ScanReport
    tests_before: TestReport | None = None
    tests_after: TestReport | None = None

    @property
    def digests(self) -> list[ContentReference]:
        """What the files are now, for the record."""
        found = []
        for file in self.files:
            data = file.content.encode("utf-8", "surrogatepass")
            found.append(
                ContentReference(name=file.path, sha256=hashlib.sha256(data).digest(), bytes=len(data))
            )
        return found


class Repairing:
    """Repairs code on behalf of cleared callers; one per process."""

    def __init__(
        self,
        *,
        scanning: Scanning,
        testing: Testing,
        records: Records,
        background: Background,
        max_act_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scanning = scanning
        self._testing = testing
        self._records = records
        self._background = background
        self._max_act_seconds = max_act_seconds
        self._clock = clock

    async def repair(self, asked: RepairAsked, clearance: VerifiedClearance) -> Outcome:
        """Repair what can be; raises InvalidArgumentError for what is out of limits, before anything is claimed."""
        _require_files(asked.files)
        tests = None if asked.tests is None else self._testing.admit(asked.tests, asked.files)
        claim = await self._records.claim(clearance, rpc=REPAIR_CODE, tool=TOOL)
        began = self._clock()
        try:
            outcome = await self.prove(
                asked, tests, clearance.claims.decision_id, until=began + self._max_act_seconds
            )
        except KalaError as error:
            await self._records.ended(claim, Facts("error", error.reason, self._clock() - began))
            raise
        except asyncio.CancelledError:
            facts = Facts("cancelled", "CLIENT_CLOSED_REQUEST", self._clock() - began)
            self._background.keep(self._records.ended(claim, facts))
            raise
        facts = Facts("ok", "", self._clock() - began, attributes_of(outcome), outcome.digests)
        await self._records.ended(claim, facts)
        return outcome

    async def prove(
        self,
        asked: RepairAsked,
        tests: Tests | None,
        decision_id: str,
        *,
        until: float,
        is_repairing: bool = True,
    ) -> Outcome:
        """Scan, rewrite and test under a clearance that was claimed; `until` is a moment of this object's clock."""
        before = await self._scanning.scan(asked.files, asked.options)
        behalf = OnBehalf(asked.owner, decision_id)
        tests_before = await self._test(tests, asked.files, behalf, until)
        if not is_repairing:
            return Outcome(asked.files, "", (), (), before, before, tests_before, tests_before)
        wanted = _wanted(asked.fingerprints, before)
        repaired = await self._scanning.with_scan(
            lambda scan: repair(asked.files, before, wanted, scan),
            asked.options,
            within_seconds=max(0.0, until - self._clock()),
        )
        chosen, tests_after = await self._chosen(repaired, tests, tests_before, behalf, until)
        files = repaired.with_only(chosen)
        after = await self._scanning.scan(files, asked.options)
        return Outcome(
            files=files,
            diff=unified_diff(asked.files, files),
            repairs=tuple(repair for made in chosen for repair in _repairs_of(made, repaired)),
            unrepaired=tuple(sorted(repaired.left.items())),
            before=before,
            after=after,
            tests_before=tests_before,
            tests_after=tests_after,
        )

    async def _test(
        self, tests: Tests | None, files: Sequence[SourceFile], behalf: OnBehalf, until: float
    ) -> TestReport | None:
        if tests is None:
            return None
        return await self._testing.run(tests, files, behalf, most_seconds=until - self._clock())

    async def _chosen(
        self,
        repaired: Repaired,
        tests: Tests | None,
        before: TestReport | None,
        behalf: OnBehalf,
        until: float,
    ) -> tuple[list[Made], TestReport | None]:
        """Take back, one by one, the rewrites that break tests which passed before."""
        everything = repaired.standing
        if tests is None or before is None or not everything:
            return everything, before
        report = await self._test(tests, repaired.with_only(everything), behalf, until)
        if report is None or report.passed or not before.passed:
            return everything, report
        kept: list[Made] = []
        best = before
        waiting = [everything] if len(everything) == 1 else list(_halves(everything))[::-1]
        runs = 0
        if len(waiting) == 1:
            _take_back(repaired, waiting.pop(), "the tests, which passed before, fail with it")
        while waiting:
            group = waiting.pop()
            if runs >= MAX_TEST_RUNS or until - self._clock() < LEAST_SECONDS:
                _take_back(repaired, group, "there was no time left to run the tests with it")
                continue
            runs += 1
            tried = await self._test(tests, repaired.with_only([*kept, *group]), behalf, until)
            if tried is not None and tried.passed:
                kept += group
                best = tried
            elif len(group) == 1:
                _take_back(repaired, group, "the tests, which passed before, fail with it")
            else:
                waiting += list(_halves(group))[::-1]
        return kept, best


def unified_diff(before: Sequence[SourceFile], after: Sequence[SourceFile]) -> str:
    """Write all changes as `diff -u` does; files come in the same order in both."""
    lines: list[str] = []
    for old, new in zip(before, after, strict=True):
        if old.content == new.content:
            continue
        made = difflib.unified_diff(
            old.content.splitlines(keepends=True),
            new.content.splitlines(keepends=True),
            fromfile=f"a/{old.path}",
            tofile=f"b/{new.path}",
        )
        lines += [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in made]
    return "".join(lines)


def attributes_of(outcome: Outcome) -> dict[str, str]:
    """What an auditor asks of a repair: how many rewrites of which kind, findings before and after, how tests came out."""
    said = {
        "code.findings_before": str(len(outcome.before.findings)),
        "code.findings_after": str(len(outcome.after.findings)),
        "code.rewrites": ",".join(sorted({each.rewrite for each in outcome.repairs})),
        "code.repairs": str(len(outcome.repairs)),
    }
    for name, report in (("before", outcome.tests_before), ("after", outcome.tests_after)):
        if report is not None:
            said[f"tests_{name}.run"] = report.run
            said[f"tests_{name}.status"] = report.status.value
            if report.isolation is not None:
                said["isolation.tier"] = report.isolation.tier.value
    return {key: value for key, value in said.items() if value}


def _require_files(files: Sequence[SourceFile]) -> None:
    if not 1 <= len(files) <= MAX_FILES:
        raise InvalidArgumentError("files", f"has {len(files)} entries; send 1 to {MAX_FILES}")
    total = sum(len(file.content.encode("utf-8", "surrogatepass")) for file in files)
    if total > MAX_BYTES:
        raise InvalidArgumentError("files", f"have {total} bytes together; the limit is {MAX_BYTES}")


def _wanted(fingerprints: frozenset[str], before: ScanReport) -> frozenset[str]:
    unknown = fingerprints - {finding.fingerprint for finding in before.findings}
    if unknown:
        raise InvalidArgumentError(
            "fingerprints",
            f"{min(unknown)[:64]!r} is no finding of these files; scan them with the same options",
        )
    return fingerprints


def _repairs_of(made: Made, repaired: Repaired) -> Iterator[RepairMade]:
    """One entry per finding that a rewrite cures."""
    plan = repaired.plans[made.path]
    if plan.tree is None:
        return
    span, before, after = plan.tree.extract(made.proposal.changes, made.path)
    for finding in made.findings:
        yield RepairMade(finding.fingerprint, made.proposal.rewrite, span, before, after, made.proposal.note)


def _take_back(repaired: Repaired, group: Sequence[Made], reason: str) -> None:
    for made in group:
        for finding in made.findings:
            repaired.left[finding.fingerprint] = reason


def _halves(group: Sequence[Made]) -> Iterator[list[Made]]:
    middle = len(group) // 2
    yield list(group[:middle])
    yield list(group[middle:])
