from __future__ import annotations

from collections.abc import Sequence

import pytest

from kala.common.v1 import decision_pb2
from kala.errors import FailedPreconditionError, InvalidArgumentError
from services.ethics import __main__ as process
from services.ethics.action_text import Text
from services.ethics.bench import Bench
from services.ethics.judge import Evidence, Judge, Material, Outcome, Stage
from services.ethics.judgement import UNDECIDED
from services.ethics.laws import Constitution
from services.ethics.replay import Recorded, RecordedGuardError, judges_of
from services.ethics.wire import Made, decision_of, differences, recorded_of

GUARD = "guard.llama_guard_3"


class Guard:
    """A guard model that says what it is told to, or fails; it must not be asked in a replay."""

    def __init__(self, found: Sequence[Evidence] = (), *, fails: bool = False) -> None:
        self._found = found
        self._fails = fails
        self.asked = 0

    @property
    def name(self) -> str:
        return GUARD

    async def judge(self, material: Material, so_far: Sequence[Evidence]) -> Sequence[Evidence]:
        self.asked += 1
        if self._fails:
            raise TimeoutError("never answered")
        return self._found


class Learned(Guard):
    """A judge that is in the constitution, and whose score depends on the machine."""

    def __init__(self, score: float) -> None:
        super().__init__()
        self._score = score

    @property
    def name(self) -> str:
        return "classifier"

    async def judge(self, material: Material, so_far: Sequence[Evidence]) -> Sequence[Evidence]:
        return [seen("classifier", self._score)]


def seen(judge: str, score: float) -> Evidence:
    return Evidence(judge, 4, "dignity.hate", Outcome.REFUSE, "S10", "text", 0, 5, "plain", score)


def bench_with(constitution: Constitution, *judges: Judge) -> Bench:
    return Bench(constitution, further_judges=judges, allow_unreadable=False, on_fault=lambda *_: None)


async def decide(bench: Bench, judges: Sequence[Judge] | None = None) -> decision_pb2.Decision:
    judgement = await bench.judge([Text("text", Stage.REQUEST, "hello there")], judges)
    return decision_of(judgement, bench.constitution, Made("00", 0, 0))


async def replay(bench: Bench, decision: decision_pb2.Decision) -> decision_pb2.Decision:
    return await decide(bench, judges_of(bench.seated, recorded_of(decision, bench.constitution)))


async def test_a_guards_recorded_verdict_is_taken_and_the_guard_is_not_asked(
    constitution: Constitution,
) -> None:
    then = await decide(bench_with(constitution, Guard([seen(GUARD, 0.7)])))
    assert then.outcome == decision_pb2.OUTCOME_REFUSE
    other_mind = Guard()
    now = await replay(bench_with(constitution, other_mind), then)
    assert differences(then, now) == []
    assert list(now.judges) == list(then.judges)
    assert other_mind.asked == 0


async def test_a_guard_that_is_gone_does_not_hinder_a_replay(constitution: Constitution) -> None:
    then = await decide(bench_with(constitution, Guard([seen(GUARD, 0.7)])))
    assert differences(then, await replay(bench_with(constitution), then)) == []


async def test_a_guard_that_failed_then_fails_again_and_nothing_is_allowed(
    constitution: Constitution,
) -> None:
    then = await decide(bench_with(constitution, Guard(fails=True)))
    assert then.category == UNDECIDED
    now = await replay(bench_with(constitution), then)
    assert (now.outcome, now.category) == (decision_pb2.OUTCOME_REFUSE, UNDECIDED)


async def test_a_judge_that_was_not_asked_then_is_not_asked_now(constitution: Constitution) -> None:
    then = await decide(bench_with(constitution))
    now = await replay(bench_with(constitution, Learned(0.9)), then)
    assert differences(then, now) == []


@pytest.mark.parametrize(("score", "differs"), [(0.909, False), (0.92, True)])
async def test_learned_scores_may_differ_by_a_hundredth(
    constitution: Constitution, score: float, differs: bool
) -> None:
    then = await decide(bench_with(constitution, Learned(0.9)))
    now = await replay(bench_with(constitution, Learned(score)), then)
    assert bool(differences(then, now)) is differs


@pytest.mark.parametrize("recorded", [None, Recorded((), (), ())], ids=["no record", "no names"])
def test_without_recorded_names_all_but_the_guards_judge(
    constitution: Constitution, recorded: Recorded | None
) -> None:
    bench = bench_with(constitution, Learned(0.9), Guard())
    assert [judge.name for judge in judges_of(bench.seated, recorded)] == ["hard_blocks", "classifier"]


def test_a_judge_that_is_not_seated_is_named(constitution: Constitution) -> None:
    with pytest.raises(FailedPreconditionError, match="judge classifier is not at hand"):
        judges_of(bench_with(constitution).seated, Recorded(("hard_blocks", "classifier"), (), ()))


@pytest.mark.parametrize(
    ("change", "field"),
    [({"outcome": 0}, "outcome"), ({"outcome": 99}, "outcome"), ({"category": "x"}, "category"), ({"law": 9}, "category")],
    ids=str,
)  # fmt: skip
async def test_a_guards_evidence_that_makes_no_sense_is_named(
    constitution: Constitution, change: dict[str, object], field: str
) -> None:
    then = await decide(bench_with(constitution, Guard([seen(GUARD, 0.7)])))
    for name, value in change.items():
        setattr(then.evidence[0], name, value)
    with pytest.raises(InvalidArgumentError) as caught:
        recorded_of(then, constitution)
    assert caught.value.field == f"recorded.evidence[0].{field}"


@pytest.mark.parametrize(
    ("error", "level"), [(RecordedGuardError(GUARD), "info"), (ValueError("x"), "error")], ids=["old", "new"]
)
def test_only_a_new_fault_is_an_error_in_the_log(
    error: Exception, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Log:
        def info(self, *_: object, **__: object) -> None:
            told.append("info")

        def error(self, *_: object, **__: object) -> None:
            told.append("error")

    monkeypatch.setattr(process.structlog, "get_logger", Log)
    process.report_fault(GUARD, error)
    assert told == [level]
