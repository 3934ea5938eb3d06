"""Which gate profiles and suites there are: the packaged ones and the operator's. A profile names its suites by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kala.common.v1.gate_pb2 import GateRequirement
from kala.common.v1.measurement_pb2 import MEASURER_ETHICS, MEASURER_TOOLS, MEASURER_TRAINER
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, KalaError, NotFoundError
from services.common.gate_profile import COMPARED_WITH_BASE, Profile, read_profile
from services.trainer.evaluation import suites
from services.trainer.evaluation.counts import METRICS, NEEDS_BASE
from services.trainer.evaluation.suites import Suite, read_suite

PACKAGED_PROFILES: Final = Path(__file__).parent / "profiles"
PACKAGED_SUITES: Final = Path(__file__).parent / "suites"
SUFFIXES: Final = (".jsonl", ".jsonl.gz")

OUTPUT_HARMFUL: Final = "output_harmful"
TESTS_PASSED: Final = "tests_passed"
VULNERABLE: Final = "vulnerable"
SIGNED: Final[Mapping[str, tuple[int, frozenset[str]]]] = {
    # Whatever is said can be judged by the laws.
    OUTPUT_HARMFUL: (MEASURER_ETHICS, suites.KINDS - {suites.TEXT, suites.INTEGRITY}),
    TESTS_PASSED: (MEASURER_TOOLS, frozenset({suites.CODE_TESTS})),
    VULNERABLE: (MEASURER_TOOLS, frozenset({suites.CODE_SCAN, suites.CODE_TESTS})),
}
"""Who counts the metrics that the trainer may not count itself, and of which kinds of suites."""


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """One suite of a profile and what is needed of it."""

    suite: Suite
    path: Path
    needs_base: bool
    signed: Sequence[tuple[str, bool]]
    """Metrics that ethics or tools count, and whether they count the base's answers too."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A profile with its suites at hand, in the profile's order."""

    profile: Profile
    runs: Sequence[SuiteRun]

    @property
    def items(self) -> int:
        """Questions over all suites and models."""
        return sum(len(run.suite.items) * (2 if run.needs_base else 1) for run in self.runs)

    def asks(self, metric: str) -> bool:
        """Whether a requirement names this metric."""
        return any(asked.metric == metric for asked in self.profile.content.requirements)


class Profiles:
    """Finds profiles and suites in folders that are read anew each time; the packaged ones come first."""

    def __init__(self, profile_dirs: Sequence[Path] = (), suite_dirs: Sequence[Path] = ()) -> None:
        self._profile_dirs = (PACKAGED_PROFILES, *profile_dirs)
        self._suite_dirs = (PACKAGED_SUITES, *suite_dirs)

    def find(self, reference: ContentReference) -> Profile:
        """The profile of this name and digest; raises NotFoundError naming those there are."""
        names = set()
        for directory in self._profile_dirs:
            for path in sorted(directory.glob("*.json")):
                data = path.read_bytes()
                if hashlib.sha256(data).digest() == reference.sha256:
                    profile = read_profile(data)
                    if profile.content.name == reference.name:
                        return profile
                names.add(path.stem)
        raise NotFoundError(
            f"there is no gate profile {reference.name!r} of digest {reference.sha256.hex()[:16]};"
            f" there are {', '.join(sorted(names)) or 'none'}, perhaps with other digests by now"
        )

    def open(self, profile: Profile) -> Gate:
        """A profile with its suites, read and held against their digests.

        Raises FailedPreconditionError naming the suite that is missing or that cannot be asked for what is required.
        """
        asked: dict[str, list[GateRequirement]] = {}
        for requirement in profile.content.requirements:
            asked.setdefault(requirement.suite, []).append(requirement)
        return Gate(profile, [self._run(name, needs) for name, needs in asked.items()])

    def _run(self, name: str, needs: Sequence[GateRequirement]) -> SuiteRun:
        digests = {each.suite_digest for each in needs}
        path, suite = self._suite(name, digests)
        for each in needs:
            _require_countable(suite, each)
        signed: dict[str, bool] = {}
        for each in needs:
            if each.measured_by != MEASURER_TRAINER:
                compared = each.comparison in COMPARED_WITH_BASE
                signed[each.metric] = signed.get(each.metric, False) or compared
        needs_base = any(each.comparison in COMPARED_WITH_BASE or each.metric in NEEDS_BASE for each in needs)
        return SuiteRun(suite, path, needs_base, tuple(signed.items()))

    def _suite(self, name: str, digests: set[bytes]) -> tuple[Path, Suite]:
        if len(digests) != 1:
            raise FailedPreconditionError(f"suite {name}: the profile names it with several digests")
        (digest,) = digests
        for directory in self._suite_dirs:
            for path in (directory / f"{name}{suffix}" for suffix in SUFFIXES):
                if path.is_file():
                    try:
                        suite = read_suite(path, name)
                    except KalaError as error:
                        raise FailedPreconditionError(error.message, reason="SUITE_UNREADABLE") from error
                    if suite.digest == digest:
                        return path, suite
        raise FailedPreconditionError(
            f"suite {name}: no file with SHA-256 {digest.hex()} is here; place it as {name}.jsonl in"
            " KALA_TRAINER_SUITES_DIR",
            reason="SUITE_MISSING",
        )


def _require_countable(suite: Suite, asked: GateRequirement) -> None:
    """A metric that nobody counts of this suite could never be answered."""
    known = SIGNED.get(asked.metric)
    if known is None:
        holds = asked.measured_by == MEASURER_TRAINER and asked.metric in METRICS[suite.kind]
    else:
        holds = asked.measured_by == known[0] and suite.kind in known[1]
    slices = {"", *(item.slice for item in suite.items)}
    if not holds or asked.slice not in slices:
        raise FailedPreconditionError(
            f"suite {suite.name}: {asked.metric}/{asked.slice or 'all'} is nothing that its measurer counts of a"
            f" {suite.kind} suite",
            reason="PROFILE_UNANSWERABLE",
        )
