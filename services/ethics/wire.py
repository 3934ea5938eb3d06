"""Between the contracts' messages and the domain's values; nothing here decides anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1 import decision_pb2
from kala.errors import InvalidArgumentError
from kala.ethics.v1 import ethics_pb2 as pb
from services.ethics.judge import Evidence, Outcome, Ratings, Stage
from services.ethics.judgement import Judgement
from services.ethics.laws import Constitution, Law
from services.ethics.output_check import Channel
from services.ethics.replay import Recorded, is_guard

NANOS: Final = 1_000_000_000
# Scores of learned judges may differ this much between machines (int8 kernels); deterministic ones never do.
SCORE_TOLERANCE: Final = 0.01

OUTCOMES: Final = {
    Outcome.ALLOW: decision_pb2.OUTCOME_ALLOW,
    Outcome.REFUSE: decision_pb2.OUTCOME_REFUSE,
    Outcome.REDIRECT: decision_pb2.OUTCOME_REDIRECT,
    Outcome.ASK_CLARIFICATION: decision_pb2.OUTCOME_ASK_CLARIFICATION,
}
_OUTCOME_OF: Final[Mapping[int, Outcome]] = {number: outcome for outcome, number in OUTCOMES.items()}
STAGES: Final = {
    pb.STAGE_UNSPECIFIED: Stage.REQUEST,
    pb.STAGE_REQUEST: Stage.REQUEST,
    pb.STAGE_OUTPUT: Stage.OUTPUT,
    pb.STAGE_TOOL_RESULT: Stage.TOOL_RESULT,
}
CHANNELS: Final = {
    pb.OUTPUT_CHANNEL_TEXT: Channel.TEXT,
    pb.OUTPUT_CHANNEL_REASONING: Channel.REASONING,
    pb.OUTPUT_CHANNEL_TOOL_ARGUMENTS: Channel.TOOL_ARGUMENTS,
    pb.OUTPUT_CHANNEL_REFUSAL: Channel.REFUSAL,
    pb.OUTPUT_CHANNEL_TOOL_RESULT: Channel.TOOL_RESULT,
}
CHANNEL_NUMBERS: Final = {channel: number for number, channel in CHANNELS.items()}


@dataclass(frozen=True, slots=True)
class Made:
    """When and how a decision was made; `began_at` and `ended_at` in Unix nanoseconds, `elapsed` on a steady clock."""

    decision_id: str
    decided_at_nanos: int
    elapsed_nanos: int
    action_digest: bytes = b""


def decision_of(judgement: Judgement, constitution: Constitution, made: Made) -> decision_pb2.Decision:
    """The decision as it travels."""
    return decision_pb2.Decision(
        id=made.decision_id,
        outcome=OUTCOMES[judgement.outcome],
        law=judgement.law,
        category=judgement.category,
        evidence=[evidence_of(item) for item in judgement.evidence],
        path=judgement.path,
        message=judgement.message,
        constitution_digest=constitution.digest,
        judges=judgement.judges,
        decided_at=Timestamp(seconds=made.decided_at_nanos // NANOS, nanos=made.decided_at_nanos % NANOS),
        elapsed=Duration(seconds=made.elapsed_nanos // NANOS, nanos=made.elapsed_nanos % NANOS),
        action_digest=made.action_digest,
    )


def evidence_of(item: Evidence) -> decision_pb2.Evidence:
    """One piece of evidence as it travels."""
    return decision_pb2.Evidence(
        judge=item.judge,
        law=item.law,
        category=item.category,
        field=item.field,
        start=item.start,
        end=item.end,
        view=item.view,
        rule=item.rule,
        score=item.score,
        outcome=OUTCOMES[item.outcome],
    )


def recorded_of(decision: decision_pb2.Decision, constitution: Constitution) -> Recorded:
    """What a replay needs of a recorded decision; InvalidArgumentError names a guard's evidence that makes no sense."""
    categories = {law.number: law.categories for law in constitution.laws}
    guards = [(number, item) for number, item in enumerate(decision.evidence) if is_guard(item.judge)]
    for number, item in guards:
        field = f"recorded.evidence[{number}]"
        if item.outcome not in _OUTCOME_OF:
            raise InvalidArgumentError(f"{field}.outcome", "must be set")
        if item.HasField("law") and item.category not in categories.get(item.law, ()):
            raise InvalidArgumentError(
                f"{field}.category",
                f"law {item.law} of version {constitution.version} has no {item.category!r}",
            )
    return Recorded(
        judges=tuple(decision.judges),
        path=tuple(decision.path),
        guard_evidence=tuple(_evidence_from(item) for _, item in guards),
    )


def _evidence_from(item: decision_pb2.Evidence) -> Evidence:
    return Evidence(
        judge=item.judge,
        law=item.law if item.HasField("law") else None,
        category=item.category,
        outcome=_OUTCOME_OF[item.outcome],
        rule=item.rule,
        field=item.field,
        start=item.start,
        end=item.end,
        view=item.view,
        score=item.score,
    )


def law_scores(judgement: Judgement, ratings: Ratings | None, laws: Sequence[Law]) -> list[pb.LawScore]:
    """The score of every law: what was found against it, or else how strongly it was rated."""
    categories = _category_scores(judgement, ratings)
    scores = []
    for law in laws:
        rated = 0.0 if ratings is None else ratings.laws[law.number]
        strongest = max(law.categories, key=lambda category: categories.get(category, 0.0))
        score = max(rated, categories.get(strongest, 0.0))
        scores.append(pb.LawScore(law=law.number, score=score, category=strongest if score else ""))
    return scores


def category_scores(
    judgement: Judgement, ratings: Ratings | None, laws: Sequence[Law]
) -> list[pb.CategoryScore]:
    """The score of every category that a judge scores, in the order of the laws."""
    scores = _category_scores(judgement, ratings)
    return [
        pb.CategoryScore(category=category, score=scores[category])
        for law in laws
        for category in law.categories
        if category in scores
    ]


def _category_scores(judgement: Judgement, ratings: Ratings | None) -> dict[str, float]:
    scores = {} if ratings is None else dict(ratings.categories)
    for item in judgement.evidence:
        if item.law is not None and item.outcome is not Outcome.ALLOW:
            scores[item.category] = max(scores.get(item.category, 0.0), item.score)
    return scores


def differences(recorded: decision_pb2.Decision, now: decision_pb2.Decision) -> list[str]:
    """In words, where a decision judged again departs from the recorded one; fields and times may differ."""
    found = []
    if recorded.outcome != now.outcome:
        names = [decision_pb2.Outcome.Name(decision.outcome) for decision in (recorded, now)]
        found.append(f"outcome: recorded {names[0]}, now {names[1]}")
    laws = [decision.law if decision.HasField("law") else None for decision in (recorded, now)]
    if laws[0] != laws[1]:
        found.append(f"law: recorded {laws[0]}, now {laws[1]}")
    if recorded.category != now.category:
        found.append(f"category: recorded {recorded.category or 'none'}, now {now.category or 'none'}")
    before, after = ({_key(item): item.score for item in decision.evidence} for decision in (recorded, now))
    found += [f"evidence no longer found: {_words(key)}" for key in sorted(before.keys() - after.keys())]
    found += [f"evidence not recorded: {_words(key)}" for key in sorted(after.keys() - before.keys())]
    found += [
        f"score of {_words(key)}: recorded {before[key]:.3f}, now {after[key]:.3f}"
        for key in sorted(before.keys() & after.keys())
        if abs(before[key] - after[key]) > SCORE_TOLERANCE
    ]
    return found


_Key = tuple[str, str, str, int, int, int, int, str]


def _key(item: decision_pb2.Evidence) -> _Key:
    law = item.law if item.HasField("law") else -1
    return item.judge, item.rule, item.view, item.start, item.end, int(item.outcome), law, item.category


def _words(key: _Key) -> str:
    judge, rule, view, start, end, *_ = key
    return f"{judge}/{rule} at {start}-{end} in {view}"
