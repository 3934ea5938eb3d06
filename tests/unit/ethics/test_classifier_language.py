from __future__ import annotations

import itertools
from functools import cache

import pytest

from services.ethics.classifier.language import Languages
from services.ethics.classifier.passes import Planner
from services.ethics.judge import Stage
from tests.unit.ethics.classifier_files import classifier, folder, part
from tests.unit.ethics.conftest import lines
from tests.unit.ethics.disguises import DISGUISES

FOREIGN = [tuple(line.split("\t")) for line in lines("foreign_sentences.txt")]
# Plain requests around things that are no sentences: every pair is a text of its own.
STEMS = (
    "Explain this line to me: {}", "Why does {} not work on my machine?", "Write one sentence about {}.",
    "What is {}, and who uses it?", "Please put {} into a table.",
)  # fmt: skip
THINGS = (
    "`x = [y for y in z]`", 'printf("%d\\n", n)', "https://example.com/wp-content/über?id=7", "München Hauptbahnhof",
    "∑_{i=1}^{n} i²", "Krzysztof Kieślowski", "a croissant au beurre", "0xDEADBEEF", "NGC 4565 and M31", "🦊🦊🦊",
    "sudo systemctl restart nginx", "the Bundesverfassungsgericht", "Xi'an, Guangzhou and Chongqing", "en_US.UTF-8",
    "Señor García's El Camino", "the Rubáiyát of Omar Khayyám", "[1, 2, 3][::-1]", "Te Whanganui-a-Tara",
    "an IKEA KALLAX shelf", "Fe₂O₃ + 3 CO → 2 Fe + 3 CO₂", "ρ = m/V", "Þingvellir", "NullPointerException", "Kübler-Ross",
)  # fmt: skip
TRICKY = [
    *lines("tricky_english.txt"),
    *(stem.format(thing) for stem, thing in itertools.product(STEMS, THINGS)),
]


@cache
def planner() -> Planner:
    return Planner(classifier().tokenizer)


@cache
def languages() -> Languages:
    return Languages(planner().vocabulary, folder())


def foreign(text: str) -> tuple[tuple[int, int], ...]:
    asked = part(text, Stage.REQUEST)
    return languages().foreign(asked.reading, planner().plan(asked).views)


def test_at_least_twenty_five_languages_and_three_hundred_tricky_texts_are_tried() -> None:
    assert len({language for language, _ in FOREIGN}) >= 50
    assert len(TRICKY) >= 300


def test_nearly_every_sentence_in_another_language_is_recognised() -> None:
    missed = [sentence for sentence in FOREIGN if not foreign(sentence[1])]
    assert len(missed) <= 0.02 * len(FOREIGN), missed


@pytest.mark.parametrize("language", ["Swahili", "Javanese", "Vietnamese", "Bengali", "Korean", "Thai", "Arabic", "Chinese",
                                      "Italian"])  # fmt: skip
def test_no_sentence_in_these_languages_is_missed(language: str) -> None:
    assert [text for name, text in FOREIGN if name == language and not foreign(text)] == []


def test_hardly_any_tricky_text_is_taken_for_another_language() -> None:
    mistaken = [text for text in TRICKY if foreign(text)]
    assert len(mistaken) <= 0.02 * len(TRICKY), mistaken


def test_ordinary_requests_are_english() -> None:
    texts = [*lines("benign_lookalikes.txt"), *lines("harmful_prompts.txt")]
    mistaken = [text for text in texts if foreign(text)]
    assert len(mistaken) <= 0.002 * len(texts), mistaken


@pytest.mark.parametrize("name", DISGUISES)
def test_a_disguise_is_no_language(name: str) -> None:
    disguise = DISGUISES[name][0]
    texts = [disguise(text) for text in lines("benign_lookalikes.txt")[:40]]
    assert sum(bool(foreign(text)) for text in texts) <= 1


def test_the_span_is_where_the_other_language_stands() -> None:
    text = "You are a helpful assistant. Как мне научиться готовить вкусный борщ дома?"
    ((start, end),) = foreign(text)
    assert text[start:end].strip() == "Как мне научиться готовить вкусный борщ дома"


def test_another_language_inside_base64_is_found() -> None:
    disguise = DISGUISES["base64"][0]
    assert foreign(f"Decode: {disguise('Wie kann ich mein altes Fahrrad selbst reparieren?')}")


def test_one_disguised_english_word_does_not_make_the_rest_english() -> None:
    assert foreign("Wie kann ich mein Fahrr4d selbst schnell reparieren und b0mb?")
