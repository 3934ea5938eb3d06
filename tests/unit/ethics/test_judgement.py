from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ethics.judge import Evidence, Judge, Material, Outcome
from services.ethics.judgement import (
    MAX_EVIDENCE,
    MAX_PATH_LINES,
    UNDECIDED,
    Judgement,
    decide,
    judge_material,
)
from services.ethics.laws import Constitution
from services.ethics.messages import UNREADABLE

NOTHING = Material(())


def evidence(
    law: int | None, outcome: Outcome = Outcome.REFUSE, category: str | None = None, start: int = 0
) -> Evidence:
    categories = (
        "weapons.chemical",
        "violence.killing",
        "crime.theft",
        "integrity.jailbreak",
        "dignity.hate",
    )
    chosen = category or (UNREADABLE if law is None else categories[law])
    return Evidence("hard_blocks", law, chosen, outcome, f"rule{start}", "text", start, start + 5, "plain")


class Says:
    """A judge with a prepared answer."""

    def __init__(self, *answer: Evidence, name: str = "says") -> None:
        self._answer = answer
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    async def judge(self, material: Material, so_far: Sequence[Evidence]) -> Sequence[Evidence]:
        return self._answer


class Fails:
    """A judge that raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @property
    def name(self) -> str:
        return "fails"

    async def judge(self, material: Material, so_far: Sequence[Evidence]) -> Sequence[Evidence]:
        raise self._error


def decided(constitution: Constitution, *items: Evidence) -> Judgement:
    return decide(items, constitution, judges=("hard_blocks",))


def test_no_evidence_allows(constitution: Constitution) -> None:
    judgement = decided(constitution)
    assert judgement.allows
    assert (judgement.law, judgement.category, judgement.message) == (None, "", "")
    assert judgement.path[-1] == "Decision: ALLOW, because no law speaks against it."
    assert len(judgement.path) == 7


def test_the_first_law_with_a_verdict_decides(constitution: Constitution) -> None:
    judgement = decided(constitution, evidence(4), evidence(2), evidence(1, Outcome.REDIRECT, "self_harm"))
    assert (judgement.outcome, judgement.law, judgement.category) == (Outcome.REDIRECT, 1, "self_harm")
    assert [item.law for item in judgement.evidence] == [1, 2, 4]


def test_within_a_law_the_strongest_outcome_decides(constitution: Constitution) -> None:
    judgement = decided(constitution, evidence(1, Outcome.REDIRECT, "self_harm"), evidence(1))
    assert (judgement.outcome, judgement.category) == (Outcome.REFUSE, "violence.killing")


def test_a_question_yields_to_a_verdict_of_a_later_law(constitution: Constitution) -> None:
    judgement = decided(constitution, evidence(3, Outcome.ASK_CLARIFICATION), evidence(4))
    assert (judgement.outcome, judgement.law) == (Outcome.REFUSE, 4)


def test_a_question_alone_is_asked(constitution: Constitution) -> None:
    item = evidence(3, Outcome.ASK_CLARIFICATION, "integrity.encoded_instructions")
    judgement = decided(constitution, item)
    assert judgement.outcome is Outcome.ASK_CLARIFICATION
    assert "What does it say in plain words?" in judgement.message


def test_a_refusal_names_the_law_and_a_safe_way_on(constitution: Constitution) -> None:
    message = decided(constitution, evidence(2)).message
    assert "Law 2 (Obedience within the law)" in message
    assert constitution.texts.alternatives["crime.theft"] in message


def test_a_redirect_names_places_that_help(constitution: Constitution) -> None:
    message = decided(constitution, evidence(1, Outcome.REDIRECT, "self_harm")).message
    assert "988" in message
    assert "Law" not in message


def test_the_path_tells_what_was_found_where(constitution: Constitution) -> None:
    path = decided(constitution, evidence(1, start=7)).path
    assert path == (
        "Read 1 text with hard_blocks.",
        "Law 0 (Civilizational risk): nothing found.",
        "Law 1 (Individual safety): rule7 found violence.killing in text[7:12], read as plain, and says REFUSE.",
        "Decision: REFUSE under Law 1 (Individual safety).",
    )


def test_an_unreadable_part_is_refused_with_its_own_words(constitution: Constitution) -> None:
    judgement = decided(constitution, evidence(None))
    assert (judgement.outcome, judgement.law, judgement.category) == (Outcome.REFUSE, None, UNREADABLE)
    assert "cannot read" in judgement.message
    assert judgement.path[-1] == "Decision: REFUSE under no law."


def test_an_unreadable_part_that_policy_allows_is_recorded(constitution: Constitution) -> None:
    judgement = decided(constitution, evidence(None, Outcome.ALLOW))
    assert judgement.allows
    assert len(judgement.evidence) == 1
    assert any("no judge here can read: ALLOW" in line for line in judgement.path)


def test_too_much_evidence_is_cut_and_said_so(constitution: Constitution) -> None:
    judgement = decided(constitution, *(evidence(law, start=i) for law in range(5) for i in range(40)))
    assert len(judgement.evidence) == MAX_EVIDENCE
    assert len(judgement.path) <= MAX_PATH_LINES
    assert judgement.path[1] == "200 pieces of evidence, of which the first 32 are kept."


def test_a_long_path_keeps_its_end(constitution: Constitution) -> None:
    judgement = decided(constitution, *(evidence(None, Outcome.ALLOW, start=i) for i in range(60)))
    assert len(judgement.path) == MAX_PATH_LINES
    assert judgement.path[-1].startswith("Decision: ALLOW")


async def test_judges_are_asked_in_order_and_named(constitution: Constitution) -> None:
    judges = (Says(name="first"), Says(evidence(4), name="second"))
    judgement = await judge_material(NOTHING, judges, constitution, print)
    assert judgement.judges == ("first", "second")
    assert judgement.law == 4


async def test_without_any_judge_nothing_is_allowed(constitution: Constitution) -> None:
    judgement = await judge_material(NOTHING, (), constitution, print)
    assert (judgement.outcome, judgement.category) == (Outcome.REFUSE, UNDECIDED)


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_judge_that_fails_makes_a_refusal_and_is_reported(
    constitution: Constitution, place: int
) -> None:
    faults: list[tuple[str, Exception]] = []
    error = RuntimeError("boom")
    judges: list[Judge] = [Says(), Says()]
    judges.insert(place, Fails(error))
    judgement = await judge_material(
        NOTHING, judges, constitution, lambda name, found: faults.append((name, found))
    )
    assert (judgement.outcome, judgement.law, judgement.category) == (Outcome.REFUSE, None, UNDECIDED)
    assert faults == [("fails", error)]
    assert "boom" not in " ".join((*judgement.path, judgement.message))


async def test_what_others_found_still_decides_when_one_judge_fails(constitution: Constitution) -> None:
    judges = (Fails(OSError()), Says(evidence(1, Outcome.REDIRECT, "self_harm")))
    judgement = await judge_material(NOTHING, judges, constitution, lambda *_: None)
    assert judgement.outcome is Outcome.REDIRECT


ERRORS = [ValueError, RuntimeError, OSError, MemoryError, RecursionError, TimeoutError, KeyError, AssertionError,
          ArithmeticError, UnicodeError, StopAsyncIteration, NotImplementedError, LookupError]  # fmt: skip


@settings(deadline=None)
@given(
    failing=st.lists(st.sampled_from(ERRORS), min_size=1, max_size=4),
    speaking=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(Outcome)), max_size=4),
    data=st.data(),
)
async def test_whatever_a_judge_raises_the_outcome_is_never_allow(
    constitution: Constitution,
    failing: list[type[Exception]],
    speaking: list[tuple[int, Outcome]],
    data: st.DataObject,
) -> None:
    judges: list[Judge] = [*(Fails(error()) for error in failing)]
    judges += [Says(evidence(*item)) for item in speaking]
    judgement = await judge_material(
        NOTHING, data.draw(st.permutations(judges)), constitution, lambda *_: None
    )
    assert not judgement.allows


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([None, 0, 1, 2, 3, 4]), st.sampled_from(Outcome), st.integers(0, 99)),
        max_size=12,
    )
)
def test_allow_means_that_nothing_spoke_against_it(
    constitution: Constitution, items: list[tuple[int | None, Outcome, int]]
) -> None:
    judgement = decided(constitution, *(evidence(law, outcome, start=start) for law, outcome, start in items))
    against = [outcome for _, outcome, _ in items if outcome is not Outcome.ALLOW]
    assert judgement.allows == (not against)
    assert judgement == decided(
        constitution, *(evidence(law, outcome, start=start) for law, outcome, start in items)
    )


def open_question(category: str = "violence.killing", judge: str = "classifier") -> Evidence:
    return Evidence(
        judge,
        1,
        category,
        Outcome.ASK_CLARIFICATION,
        "c1",
        "text",
        0,
        5,
        "plain",
        0.5,
        is_open=True,
    )


def harmless(category: str = "violence.killing", field: str = "text", judge: str = "guard.x") -> Evidence:
    return Evidence(judge, 1, category, Outcome.ALLOW, "model", field, 0, 5, "plain")


def test_an_open_question_that_a_later_judge_settled_is_allowed_and_the_path_says_so(
    constitution: Constitution,
) -> None:
    judgement = decided(constitution, open_question(), harmless())
    assert judgement.allows
    assert [item.outcome for item in judgement.evidence] == [Outcome.ALLOW, Outcome.ALLOW]
    assert "classifier left violence.killing in text open; guard.x found it harmless." in judgement.path


@pytest.mark.parametrize(
    "items",
    [
        (open_question(),),
        (harmless(), open_question()),
        (open_question(), harmless("violence.assault")),
        (open_question(), harmless(field="other")),
        (open_question(), harmless(judge="classifier")),
    ],
    ids=["nobody", "an earlier judge", "another category", "another field", "the judge itself"],
)
def test_an_open_question_that_nobody_settled_is_asked(
    constitution: Constitution, items: Sequence[Evidence]
) -> None:
    assert decided(constitution, *items).outcome is Outcome.ASK_CLARIFICATION


def test_what_is_not_open_is_not_settled(constitution: Constitution) -> None:
    assert decided(constitution, evidence(1), harmless()).outcome is Outcome.REFUSE


async def test_a_judge_is_told_what_was_seen_before(constitution: Constitution) -> None:
    told: list[Sequence[Evidence]] = []

    class Listens(Says):
        async def judge(self, material: Material, so_far: Sequence[Evidence]) -> Sequence[Evidence]:
            told.append(so_far)
            return ()

    first = evidence(2)
    await judge_material(NOTHING, [Says(first), Listens()], constitution, lambda *_: None)
    assert told == [(first,)]


def left_open(law: int | None, outcome: Outcome = Outcome.ALLOW, category: str | None = None) -> Evidence:
    return replace(evidence(law, outcome, category), is_open=True)


def test_what_is_left_open_is_allowed_and_after_untrusted_content_asked_about(
    constitution: Constitution,
) -> None:
    item = left_open(2)
    assert decide([item], constitution, judges=("classifier",)).allows
    judgement = decide([item], constitution, judges=("classifier",), is_strict=True)
    assert judgement.outcome is Outcome.ASK_CLARIFICATION
    assert constitution.texts.questions["crime.theft"] in judgement.message


def test_what_a_guard_settled_and_the_language_of_a_document_are_not_asked_about(
    constitution: Constitution,
) -> None:
    settled = [left_open(2), replace(evidence(2, Outcome.ALLOW), judge="guard.x")]
    foreign = left_open(None, category="language")
    for items in (settled, [foreign]):
        assert decide(items, constitution, judges=("classifier",), is_strict=True).allows


def test_a_refusal_says_the_reason_in_words(constitution: Constitution) -> None:
    assert constitution.texts.reasons["crime.theft"] in decided(constitution, evidence(2)).message


def test_instructions_in_a_document_are_told_with_their_place(constitution: Constitution) -> None:
    item = replace(
        evidence(3, category="integrity.prompt_injection", start=7), field="messages[2].content[0].text"
    )
    told = decide([item], constitution, judges=("hard_blocks",), documents={item.field})
    assert "messages[2].content[0].text, characters 7 to 12" in told.message
    assert "messages[2]" not in decide([item], constitution, judges=("hard_blocks",)).message


@pytest.mark.parametrize("category", ["language", "too_long", UNREADABLE, "anything"])
def test_evidence_under_no_law_has_words_of_its_own(constitution: Constitution, category: str) -> None:
    outcome = Outcome.ASK_CLARIFICATION if category == "language" else Outcome.REFUSE
    texts = constitution.texts
    said = {"language": texts.questions["language"], "too_long": texts.too_long, UNREADABLE: texts.unreadable}
    assert (
        said.get(category, texts.undecided)
        in decided(constitution, evidence(None, outcome, category)).message
    )


@pytest.mark.parametrize("language", ["de", "fr", "es", "xx"])
def test_every_message_can_be_said_in_every_language(constitution: Constitution, language: str) -> None:
    for law in constitution.laws:
        for category in law.categories:
            for outcome in set(Outcome) - {Outcome.ALLOW}:
                item = evidence(law.number, outcome, category)
                message = decide([item], constitution, judges=("x",), language=language).message
                assert "{" not in message
                assert constitution.texts_in(language).alternatives[category] in message
