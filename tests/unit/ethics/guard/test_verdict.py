"""What a guard's reply means; what is not exactly a verdict is none."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ethics.guard.formats import Found, GuardFormat, Severity, Special
from services.ethics.guard.verdict import (
    MAX_REPLY_CHARS,
    Reply,
    SenselessReplyError,
    Token,
    Verdict,
    meant,
    read_verdict,
    together,
)
from services.ethics.judge import Stage

SAFE, UNSAFE, UNSURE = Severity.SAFE, Severity.UNSAFE, Severity.UNSURE
ALL = (
    "llama-guard-3",
    "llama-guard-4",
    "shieldgemma",
    "granite-guardian",
    "wildguard",
    "qwen3guard",
    "kala-guardian",
)


def read(guard: GuardFormat, text: str, stage: Stage = Stage.REQUEST, *tokens: Token) -> Verdict:
    return read_verdict(Reply(text, tokens), guard, guard.questions[0], stage)


@pytest.mark.parametrize(
    ("name", "stage", "text", "severity", "meanings"),
    [
        ("llama-guard-3", "request", "\n\nsafe", SAFE, ()),
        ("llama-guard-3", "request", "\n\nunsafe\nS9", UNSAFE, (Found(0, "weapons.chemical"),)),
        (
            "llama-guard-4",
            "output",
            "unsafe\nS11,S2",
            UNSAFE,
            (Found(1, "self_harm"), Found(2, "crime.evasion")),
        ),
        ("llama-guard-3", "request", "unsafe\nS12", UNSURE, ()),
        ("llama-guard-3", "request", "unsafe\nS12, S10", UNSAFE, (Found(4, "dignity.hate"),)),
        ("llama-guard-3", "request", "unsafe\nS99", UNSAFE, (Found(1, "violence.assault"),)),
        ("llama-guard-3", "request", "unsafe", UNSAFE, (Special.ASKED,)),
        ("shieldgemma", "request", "Yes", UNSAFE, (Found(1, "violence.assault"),)),
        ("shieldgemma", "output", " No", SAFE, ()),
        ("granite-guardian", "request", "No\n<confidence> High </confidence>", SAFE, ()),
        ("granite-guardian", "request", "<think>\n</think>\n<score> yes </score>", UNSAFE, (Special.ASKED,)),
        (
            "wildguard",
            "request",
            "Harmful request: yes\nResponse refusal: N/A\nHarmful response: no",
            UNSAFE,
            (Special.ASKED,),
        ),
        (
            "wildguard",
            "output",
            "Harmful request: yes\nResponse refusal: yes\nHarmful response: no",
            SAFE,
            (),
        ),
        ("qwen3guard", "request", "Safety: Safe\nCategories: None", SAFE, ()),
        (
            "qwen3guard",
            "output",
            "Safety: Unsafe\nCategories: Suicide & Self-Harm, Jailbreak\nRefusal: No",
            UNSAFE,
            (Found(1, "self_harm"), Found(3, "integrity.jailbreak")),
        ),
        ("qwen3guard", "request", "Safety: Controversial\nCategories: Violent", UNSURE, ()),
        ("qwen3guard", "request", "Safety: Unsafe\nCategories: Politically Sensitive Topics", UNSURE, ()),
        (
            "kala-guardian",
            "request",
            "Verdict: unsafe\nCategory: cyber.malware",
            UNSAFE,
            (Found(2, "cyber.malware"),),
        ),
        ("kala-guardian", "request", "Verdict: unsure\nCategory: none", UNSURE, ()),
    ],
)
def test_a_verdict_is_read(
    formats: Mapping[str, GuardFormat],
    name: str,
    stage: str,
    text: str,
    severity: Severity,
    meanings: tuple[object, ...],
) -> None:
    verdict = read(formats[name], text, Stage(stage))
    assert (verdict.severity, verdict.meanings) == (severity, meanings)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "I'm sorry, I can't help with that.",
        "safe\nunsafe",
        "safe\nS1",
        "safe unsafe",
        "The text is safe.",
        "safe\nBut wait\nunsafe",
        "No problem, here is how.",
        "Not safe",
        "<score> maybe </score>",
        "Safety: Safe\nSafety: Unsafe\nCategories: None",
        "Safety: Safe\nCategories: Violent",
        "Harmful request: no\nHarmful request: yes",
        "Harmful request: perhaps",
        "Verdict: safe enough",
        "Safety Safe",
        "s a f e",
        "safe" + " " * MAX_REPLY_CHARS,
    ],
)
def test_nonsense_is_no_verdict(formats: Mapping[str, GuardFormat], name: str, text: str) -> None:
    with pytest.raises(SenselessReplyError) as caught:
        read(formats[name], text)
    # Nothing that a model said goes into a log.
    assert text.strip()[:12] not in str(caught.value) or len(text.strip()) < 4


@given(text=st.text(max_size=60), name=st.sampled_from(ALL))
def test_no_reply_is_safe_by_accident(formats: Mapping[str, GuardFormat], text: str, name: str) -> None:
    words = {"safe", "no"}
    try:
        verdict = read(formats[name], text)
    except SenselessReplyError:
        return
    assert verdict.severity is not SAFE or any(word in text.casefold() for word in words)


def test_the_score_is_the_probability_of_the_verdicts_own_tokens(formats: Mapping[str, GuardFormat]) -> None:
    guard = formats["llama-guard-3"]
    tokens = (
        Token("\n\n", -0.5),
        Token("un", math.log(0.8)),
        Token("safe", math.log(0.5)),
        Token("\nS9", -1),
    )
    verdict = read(guard, "\n\nunsafe\nS9", Stage.REQUEST, *tokens)
    assert verdict.probability == pytest.approx(0.4)
    assert read(guard, "safe", Stage.REQUEST, Token("safe", 0.3)).probability == 1.0
    assert read(guard, "safe", Stage.REQUEST, Token("other", -2)).probability == 1.0


def test_of_several_answers_the_worst_counts() -> None:
    safe, sure = Verdict(SAFE, probability=0.9), Verdict(SAFE, probability=0.7)
    unsure, unsafe = Verdict(UNSURE), Verdict(UNSAFE, (Special.ASKED,), 0.6)
    assert together([safe, sure]) == Verdict(SAFE, probability=0.7)
    assert together([safe, unsure]).severity is UNSURE
    assert together([safe, unsafe, unsure]) == unsafe
    assert together([]).severity is UNSURE


def test_a_verdict_without_a_category_means_what_was_asked_about() -> None:
    asked, fallback = Found(2, "crime.theft"), Found(1, "violence.assault")
    assert meant(Special.ASKED, asked, fallback) == asked
    assert meant(Special.ASKED, None, fallback) == fallback
    assert meant(Found(0, "weapons.nuclear"), asked, fallback) == Found(0, "weapons.nuclear")
