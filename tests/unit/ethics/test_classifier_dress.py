from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import SupportsIndex

import pytest

from services.ethics.classifier.clearing import with_either
from services.ethics.classifier.judge import ClassifierJudge
from services.ethics.classifier.passes import MAX_TOKENS, Plan, Planner
from services.ethics.judge import Material, Outcome, Part
from services.ethics.messages import TOO_LONG
from services.ethics.views import View
from tests.unit.ethics.classifier_files import classifier, folder, part

SENTENCE = "please describe the weather in the mountains to my colleague"


@cache
def planner() -> Planner:
    return Planner(classifier().tokenizer)


def read(text: str) -> list[str]:
    return [" ".join(item.text.split()) for item in planner().plan(part(text)).passes]


@pytest.mark.parametrize(
    "mark",
    ["❤", "🔥", "†", "÷", "§", "\ue000", "ㅋ", "א", "ـ", "的", "⬛"],
    ids=[
        "heart",
        "fire",
        "dagger",
        "division",
        "section",
        "private use",
        "hangul",
        "hebrew",
        "tatweel",
        "han",
        "box",
    ],
)
def test_characters_that_stand_where_blanks_belong_are_blanks(mark: str) -> None:
    assert SENTENCE in read(mark.join(SENTENCE.split()))


@pytest.mark.parametrize(
    "mark", ["†", "÷", "❤", "\ue000"], ids=["dagger", "division", "heart", "private use"]
)
def test_shapes_between_words_and_blanks_are_blanks(mark: str) -> None:
    assert SENTENCE in read(f" {mark} ".join(SENTENCE.split()))


def numbered(words: list[str]) -> str:
    return " ".join(f"{number}{word}" for number, word in enumerate(words))


@pytest.mark.parametrize("dress", ["7".join, "²".join, numbered], ids=["between", "superscript", "before"])
def test_numbers_that_touch_every_word_are_blanks(dress: Callable[[list[str]], str]) -> None:
    assert SENTENCE in read(dress(SENTENCE.split()))


def test_numbers_are_blanks_in_a_part_of_a_text_too() -> None:
    before = "the boats come home before noon."
    assert f"{before} {SENTENCE}" in read(f"{before} {'7'.join(SENTENCE.split())}")


def hex_of(char: str) -> str:
    return f"{ord(char):x}"


@pytest.mark.parametrize("mark", ["\ue000", "\U0010fffd", "\ufffd", "\uffff"], ids=hex_of)
def test_characters_without_a_meaning_part_words(mark: str) -> None:
    # The tokenizer leaves them out, so that it reads one long word.
    before = "boats come home before noon."
    (only,) = (item.text for item in planner().plan(part(f"{before} {mark.join(SENTENCE.split())}")).passes)
    assert mark not in only
    pieces = classifier().tokenizer.encode(only, add_special_tokens=False).tokens
    assert [piece for piece in pieces if piece in SENTENCE.split()] == SENTENCE.split()


@pytest.mark.parametrize("filling", ["q", "x", "×", "Z", "xq", "zz"])
def test_letters_that_stand_where_blanks_belong_are_gone(filling: str) -> None:
    # "wombles" stands for a word that no list has.
    words = ["write", "a", "long", "letter", "to", "my", "wombles"]
    assert " ".join(words) in read(filling.join(words))


@pytest.mark.parametrize(
    "text",
    [
        "convert 10km, 5kg and 3ft to other units",
        "does h264 beat av1 on an a14 chip with usb4",
        "i ❤ this recipe, thank you",
        "the naïve café owner paid 5 €, the tourist 7 €",
        "die straße und die größe, bitte",
        "где впервые получили плутоний и кто это сделал?",
        "監査の準備で何を揃えればよいか、小さな会社向けに教えてください。",
    ],
)
def test_what_is_no_dress_is_read_as_it_stands(text: str) -> None:
    stands = " ".join(part(text).reading.views[0].text.split())
    assert stands in read(text)


class Copied(str):
    """A text that counts the characters that are copied out of it."""

    __slots__ = ("chars",)
    chars: int

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        found = super().__getitem__(key)
        self.chars += len(found)
        return found


def test_ones_that_may_be_an_i_or_an_l_take_time_by_their_number_only() -> None:
    # Each of 20,000 words copied the rest of the text, several times over: eleven seconds for a text of the limit.
    text = "lalala " * 20_000
    twin = Copied(text.replace("l", "i"))
    twin.chars = 0
    views = [View("leet", text, lambda *span: span), View("leet_l", twin, lambda *span: span)]
    with_either(views, planner().vocabulary)
    assert twin.chars < 20 * len(text)


class Counted(Planner):
    """A planner that counts the parts that it planned."""

    planned = 0

    def plan(self, part: Part) -> Plan:
        self.planned += 1
        return super().plan(part)


async def test_what_comes_after_too_much_is_refused_without_being_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Counted(classifier().tokenizer)
    monkeypatch.setattr("services.ethics.classifier.judge.Planner", lambda _: counted)
    judge = ClassifierJudge(classifier(), folder())
    parts = [replace(part("boats " * MAX_TOKENS), field=f"text[{number}]") for number in range(4)]
    found = await judge.judge(Material(tuple(parts)), ())
    assert counted.planned == 1
    assert [(item.field, item.outcome, item.category) for item in found] == [
        (one.field, Outcome.REFUSE, TOO_LONG) for one in parts
    ]
