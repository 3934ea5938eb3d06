"""Which tier is chosen, and that nothing runs where none holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.tools.sandbox.detection import (
    Candidate,
    Detected,
    DetectionPolicy,
    NoIsolationError,
    detect,
    examine,
)
from services.tools.sandbox.model import Sandbox, SetupFailedError, Strength, Tier
from services.tools.sandbox.selftest import CaseReport, SelfTest
from tests.fakes.scripted_sandbox import ScriptedSandbox

STRENGTHS = {
    Tier.KUBERNETES: Strength.STRONG,
    Tier.RUNSC: Strength.STRONG,
    Tier.BUBBLEWRAP: Strength.STANDARD,
    Tier.LANDLOCK: Strength.WEAK,
}
HELD = SelfTest((CaseReport("network", "reaches out", held=True, detail="held"),), 0.1)


def unprivileged() -> int:
    return 65532


class Machine:
    """Tiers of which some mechanisms were removed."""

    def __init__(
        self, *, absent: frozenset[Tier] = frozenset(), broken: frozenset[Tier] = frozenset()
    ) -> None:
        self.absent, self.broken = absent, broken
        self.sandboxes = {tier: ScriptedSandbox(tier=tier, strength=STRENGTHS[tier]) for tier in Tier}
        self.tested: list[Tier] = []

    def candidates(self, caution: str = "") -> list[Candidate]:
        return [
            Candidate(
                tier,
                STRENGTHS[tier],
                lambda tier=tier: self.open(tier),
                version="scripted",
                caution=caution if tier is Tier.RUNSC else "",
            )
            for tier in reversed(Tier)
        ]

    async def open(self, tier: Tier) -> Sandbox:
        if tier in self.absent:
            raise SetupFailedError(f"{tier.value} is not installed: install it")
        return self.sandboxes[tier]

    async def test(self, sandbox: Sandbox, _host: str) -> SelfTest:
        tier = sandbox.isolation.tier
        self.tested.append(tier)
        if tier in self.broken:
            return SelfTest((CaseReport("network", "reaches out", held=False, detail="ESCAPED tcp"),))
        return HELD

    async def detect(self, policy: DetectionPolicy | None = None, *, uid=unprivileged) -> Detected:
        return await detect(self.candidates(), policy or DetectionPolicy(), test=self.test, uid=uid)

    @property
    def open_tiers(self) -> list[Tier]:
        return [tier for tier, sandbox in self.sandboxes.items() if not sandbox.closed]


TIERS = st.frozensets(st.sampled_from(list(Tier)))


@given(
    absent=TIERS,
    broken=TIERS,
    named=st.lists(st.sampled_from(list(Tier)), unique=True),
    allow_weak=st.booleans(),
    root=st.booleans(),
)
async def test_over_every_subset_of_removed_mechanisms_nothing_runs_outside_a_tier_that_held(
    absent, broken, named, allow_weak, root
) -> None:
    machine = Machine(absent=absent, broken=broken)
    policy = DetectionPolicy(tiers=tuple(named), allow_weak=allow_weak)
    found = await machine.detect(policy, uid=(lambda: 0) if root else unprivileged)
    good = [
        tier
        for tier in named
        if tier not in absent | broken and not root and (tier is not Tier.LANDLOCK or allow_weak)
    ]
    if good:
        assert found.require().isolation.tier is good[0]
        assert [report.tier for report in found.reports if report.selected] == [good[0]]
    else:
        assert found.sandbox is None
        with pytest.raises(NoIsolationError) as refusal:
            found.require()
        for tier in Tier:
            assert f"{tier.value}: " in refusal.value.message
        assert not any(report.usable or report.selected for report in found.reports)
    assert {report.tier for report in found.reports} == set(Tier)
    assert all(bool(report.reason) != report.usable for report in found.reports)
    # Detection itself runs nothing but probes, and none where the policy or the uid forbids.
    assert all(not sandbox.jobs for sandbox in machine.sandboxes.values())
    assert set(machine.tested) <= (set() if root else set(named))


async def test_the_strongest_tier_that_holds_is_chosen_and_the_rest_is_not_tried() -> None:
    machine = Machine(absent=frozenset({Tier.KUBERNETES}))
    found = await machine.detect()
    assert found.require().isolation.tier is Tier.RUNSC
    assert machine.tested == [Tier.RUNSC]
    reasons = {report.tier: report.reason for report in found.reports}
    assert "not installed: install it" in reasons[Tier.KUBERNETES]
    assert "not tried" in reasons[Tier.BUBBLEWRAP]


async def test_a_tier_that_fails_one_probe_is_closed_and_says_which() -> None:
    machine = Machine(broken=frozenset({Tier.KUBERNETES}))
    found = await machine.detect()
    report = found.reports[0]
    assert report.reason == "it did not hold: network: ESCAPED tcp"
    assert machine.sandboxes[Tier.KUBERNETES].closed == 1
    assert machine.sandboxes[Tier.RUNSC].closed == 0


async def test_uid_0_is_refused_before_anything_is_opened() -> None:
    machine = Machine()
    found = await machine.detect(DetectionPolicy(allow_weak=True), uid=lambda: 0)
    with pytest.raises(NoIsolationError, match="uid 0"):
        found.require()
    assert machine.tested == []


async def test_a_tier_with_a_caution_is_used_only_where_it_is_named_alone() -> None:
    machine = Machine()
    candidates = machine.candidates(caution="this release is old: install a current one")
    found = await detect(
        candidates,
        DetectionPolicy(tiers=(Tier.RUNSC, Tier.BUBBLEWRAP)),
        test=machine.test,
        uid=unprivileged,
    )
    assert found.require().isolation.tier is Tier.BUBBLEWRAP
    assert found.reports[0].reason.startswith("this release is old")
    found = await detect(
        candidates, DetectionPolicy(tiers=(Tier.RUNSC,)), test=machine.test, uid=unprivileged
    )
    assert found.require().isolation.tier is Tier.RUNSC


async def test_a_tier_that_is_not_what_it_was_asked_to_be_is_refused() -> None:
    async def weak() -> Sandbox:
        return ScriptedSandbox(tier=Tier.LANDLOCK, strength=Strength.WEAK)

    machine = Machine()
    found = await detect(
        [Candidate(Tier.RUNSC, Strength.STRONG, weak)],
        DetectionPolicy(),
        test=machine.test,
        uid=unprivileged,
    )
    assert found.sandbox is None
    assert "it calls itself landlock, strength weak" in found.reports[0].reason


async def test_a_tier_that_nobody_configured_says_so() -> None:
    found = await detect([], DetectionPolicy(), uid=unprivileged)
    with pytest.raises(NoIsolationError, match="kubernetes: it is not configured"):
        found.require()


async def test_an_examination_tries_every_tier_and_leaves_only_the_one_in_use_open() -> None:
    machine = Machine(broken=frozenset({Tier.LANDLOCK}))
    in_use = machine.sandboxes[Tier.BUBBLEWRAP]
    reports = await examine(
        machine.candidates(), DetectionPolicy(), in_use=in_use, test=machine.test, uid=unprivileged
    )
    by_tier = {report.tier: report for report in reports}
    assert [report.tier for report in reports] == list(Tier)
    assert by_tier[Tier.BUBBLEWRAP].selected
    assert by_tier[Tier.RUNSC].usable
    assert not by_tier[Tier.RUNSC].selected
    assert "allow_weak" in by_tier[Tier.LANDLOCK].reason
    assert "ESCAPED tcp" in by_tier[Tier.LANDLOCK].reason
    assert machine.open_tiers == [Tier.BUBBLEWRAP]


async def test_an_examination_can_be_of_one_tier() -> None:
    machine = Machine()
    reports = await examine(
        machine.candidates(),
        DetectionPolicy(),
        tiers=[Tier.RUNSC],
        test=machine.test,
        uid=unprivileged,
    )
    assert [report.tier for report in reports] == [Tier.RUNSC]
    assert machine.tested == [Tier.RUNSC]


async def test_a_test_that_breaks_closes_what_it_opened() -> None:
    machine = Machine()

    async def broken(_sandbox: Sandbox, _host: str) -> SelfTest:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await detect(machine.candidates(), DetectionPolicy(), test=broken, uid=unprivileged)
    assert machine.sandboxes[Tier.KUBERNETES].closed == 1
