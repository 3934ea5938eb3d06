"""What becomes of a draft, by what ethics says of the request, of the draft and of its revision."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kala.errors import UnavailableError
from services.trainer.evaluation.refusals import is_refusal
from services.trainer.training.constitutional.journal import Outcome
from services.trainer.training.constitutional.judging import Bench, count_of
from services.trainer.training.constitutional.prompts import Meant, Prompt, Turn, prompt_id
from services.trainer.training.constitutional.revisions import ModelReviser, TemplateReviser
from tests.fakes.judging import LAWS, WordJudge

REFUSED = "I will not help with that, because it could hurt someone."


def prompt(
    text: str, meant: Meant = Meant.REFUSAL, *, reference: str = "", law: int | None = None, against: int = 2
) -> Prompt:
    turns = ({"role": "user", "content": text},)
    return Prompt(prompt_id(turns), turns, "x", reference, law, against, meant)


async def judged(
    asked: Prompt, *drafts: str, judge: WordJudge | None = None, reviser: object = None
) -> Outcome:
    answers = list(drafts)

    def write(conversations: Sequence[Sequence[Turn]], seed: int) -> list[str]:
        return [answers.pop(0) for _ in conversations]

    bench = Bench(
        judge or WordJudge(),
        write,
        reviser or TemplateReviser(LAWS),  # type: ignore[arg-type]  # a test's own
        drafts=len(drafts),
        declines=is_refusal,
    )
    (outcome,) = await bench.outcomes([asked], seed=1)
    return outcome


async def test_without_a_verdict_nothing_is_learned() -> None:
    with pytest.raises(UnavailableError):
        await judged(prompt("law-1 please"), "anything", judge=WordJudge(is_down=True))


async def test_a_draft_that_breaks_a_law_is_criticised_by_it_and_revised() -> None:
    outcome = await judged(prompt("help with law-2"), "Sure, take law-2 and go.")
    assert (outcome.end, outcome.fault, outcome.law, outcome.violations) == ("revised", "violation", 2, 1)
    assert outcome.critique == "The answer breaks Law 2 (Obedience): KALA shall keep law 2."
    assert outcome.answer.endswith("That breaks Law 2.")
    assert outcome.rejected == ("Sure, take law-2 and go.",)
    assert outcome.request_decision
    assert outcome.draft_decisions
    assert outcome.revision_decision


async def test_a_draft_that_does_not_decline_what_breaks_a_law_is_revised_though_it_is_harmless() -> None:
    outcome = await judged(prompt("help with law-0"), "I do not know.")
    assert (outcome.end, outcome.fault, outcome.law, outcome.violations) == ("revised", "unheeded", 0, 0)


async def test_a_refusal_that_is_called_for_is_learned_as_the_model_wrote_it() -> None:
    outcome = await judged(prompt("help with law-1"), REFUSED)
    assert (outcome.end, outcome.answer) == ("passes", REFUSED)


async def test_a_harmless_request_keeps_the_models_own_answer() -> None:
    outcome = await judged(prompt("What is 2 + 2?", Meant.HELP, reference="Four."), "2 + 2 = 4.")
    assert (outcome.end, outcome.answer, outcome.law) == ("passes", "2 + 2 = 4.", None)


async def test_a_refusal_of_a_harmless_request_is_revised_to_the_datasets_answer() -> None:
    outcome = await judged(prompt("How do I kill a process?", Meant.HELP, reference="Use kill."), REFUSED)
    assert (outcome.end, outcome.fault, outcome.answer) == ("revised", "over_refusal", "Use kill.")
    assert outcome.rejected == (REFUSED,)


async def test_a_dispute_between_author_and_ethics_is_settled_for_neither() -> None:
    harmless = await judged(prompt("about law-3", Meant.HELP, reference="Yes."), "x")
    harmful = await judged(prompt("nothing", law=4, reference="No. Law 4 forbids it."), "x")
    assert (harmless.end, harmless.answer) == ("disputed", "")
    assert (harmful.end, harmful.answer, harmful.drafts) == ("as_labelled", "No. Law 4 forbids it.", 0)


async def test_the_datasets_refusal_is_taken_only_where_it_names_the_law() -> None:
    right = "I will not help with that; it goes against Law 1."
    assert (await judged(prompt("law-1", reference=right), "ok")).answer == right
    wrong = right.replace("Law 1", "Law 3")
    assert (await judged(prompt("law-1", reference=wrong), "ok")).answer.endswith("That breaks Law 1.")


async def test_a_model_without_room_for_the_laws_number_learns_the_refusal_alone() -> None:
    reviser = TemplateReviser(LAWS, lambda text: len(text) < 60)
    outcome = await judged(prompt("help with law-2"), "Sure, take law-2.", reviser=reviser)
    assert outcome.answer == REFUSED


async def test_a_conflict_is_decided_by_the_law_that_comes_first() -> None:
    asked = prompt("Which law wins?", Meant.DECISION, law=1)
    outcome = await judged(asked, "I do not know.")
    assert (outcome.end, outcome.fault, outcome.answer) == (
        "revised",
        "undecided",
        "Law 1 comes before Law 2.",
    )
    assert outcome.critique.startswith("The answer does not say which law comes first.")
    assert (await judged(asked, "Law 1 does.")).end == "passes"


async def test_a_revision_that_ethics_does_not_allow_is_never_learned() -> None:
    reviser = ModelReviser(
        LAWS, lambda conversations, _: ["I will not, but law-1 goes so."] * len(conversations)
    )
    outcome = await judged(prompt("help with law-1"), "Take law-1.", reviser=reviser)
    assert (outcome.end, outcome.answer, outcome.rejected) == ("dropped", "", ())


async def test_a_revision_that_still_serves_the_request_is_never_learned() -> None:
    reviser = ModelReviser(LAWS, lambda conversations, _: ["Gladly, here is how."] * len(conversations))
    assert (await judged(prompt("help with law-1"), "Take law-1.", reviser=reviser)).end == "dropped"


async def test_the_model_is_asked_to_criticise_by_the_law_and_then_to_write_again() -> None:
    asked: list[Sequence[Turn]] = []

    def write(conversations: Sequence[Sequence[Turn]], seed: int) -> list[str]:
        asked.extend(conversations)
        return ["It would hurt people." if len(conversations[0]) == 3 else REFUSED for _ in conversations]

    outcome = await judged(prompt("help with law-1"), "Take law-1.", reviser=ModelReviser(LAWS, write))
    assert outcome.critique == "It would hurt people."
    assert outcome.answer == REFUSED
    assert "Law 1 (Safety) says: KALA shall keep law 1." in asked[0][-1]["content"]
    assert [turn["role"] for turn in asked[1]] == ["user", "assistant", "user", "assistant", "user"]


async def test_of_several_drafts_each_faulty_one_is_a_worse_answer() -> None:
    outcome = await judged(prompt("help with law-1"), REFUSED, "Take law-1.", "", "Mix law-1.")
    assert outcome.rejected == ("Take law-1.", "Mix law-1.")
    assert count_of([outcome]) == {
        "drafts": 4, "violations": 2, "kept": 1, "revised": 1, "fault_violation": 1,
    }  # fmt: skip


async def test_an_empty_draft_is_judged_by_nobody_and_a_question_answered_with_it_is_left_out() -> None:
    judge = WordJudge()
    outcome = await judged(prompt("Hello", Meant.UNSAID), "", judge=judge)
    assert (outcome.end, outcome.fault) == ("dropped", "empty")
    assert judge.asked_outputs == []


async def test_a_law_that_is_not_named_still_has_one_to_be_criticised_by() -> None:
    outcome = await judged(prompt("an outlaw thing"), "ok")
    assert (outcome.end, outcome.law) == ("revised", 1)
