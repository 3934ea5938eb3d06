from __future__ import annotations

import pytest
import re2

from kala.errors import ConstitutionError
from services.ethics.patterns import Pattern, expand


def matches(pattern: str, text: str) -> bool:
    return re2.search(pattern, text) is not None


@pytest.mark.parametrize("text", ["make tea", "make-tea", "make, tea", "make.tea", "make\ntea", "make - tea"])
def test_a_space_is_one_gap_between_words(text: str) -> None:
    assert matches(expand("make tea", {}).spaced, text)


@pytest.mark.parametrize("text", ["maketea", "to make. Tea", "make    tea", "remake tea", "make teas"])
def test_a_gap_neither_vanishes_nor_spans_a_sentence_end(text: str) -> None:
    assert not matches(expand("make tea", {}).spaced, text.lower())


@pytest.mark.parametrize(
    ("source", "text", "found"),
    [
        ("make <gap2> tea", "make tea", True),
        ("make <gap2> tea", "make very green tea", True),
        ("make <gap2> tea", "make a very green tea", False),
        ("make <gap2> ?tea", "make some tea", True),
        ("the <gap1> ?tea", "the green tea", True),
        ("make(?: <gap1>)? tea", "make green tea", True),
        ("<start>make tea", "make tea", True),
        ("<start>make tea", "please, make tea", True),
        ("<start>make tea", "to make tea", False),
        ("make tea<end>", "make tea?!", True),
        ("make tea<end>", "make tea now", False),
        ("make tea<end>", "make tea\nnow", True),
    ],
)
def test_the_shorthand_means_what_it_says(source: str, text: str, found: bool) -> None:
    assert matches(expand(source, {}).spaced, text) is found


def test_without_whole_words_the_last_word_may_go_on() -> None:
    assert matches(expand("make te", {}, whole_words=False).spaced, "make tea")


def test_words_run_together_match_the_joined_spelling() -> None:
    pattern = expand("how to make <gap3> ?tea<end>", {}).joined
    assert matches(pattern, "howtomaketea")
    assert not matches(pattern, "howtomaketeam")


def test_fragments_nest() -> None:
    assert matches(expand("<all>", {"all": "<drink> now", "drink": "tea|milk"}).spaced, "milk now")


@pytest.mark.parametrize("source", ["<nothing>", "<drink2>"])
def test_an_unknown_fragment_is_named(source: str) -> None:
    with pytest.raises(ConstitutionError, match=source):
        expand(source, {"drink": "tea"})


def test_fragments_that_refer_to_one_another_are_refused() -> None:
    with pytest.raises(ConstitutionError, match="without end"):
        expand("<a>", {"a": "<b>", "b": "<a>"})


@pytest.mark.parametrize("source", ["a*", "a+", "a{2,}", "(?:ab)+c", "[^a]*"])
def test_repetition_without_limit_is_noticed(source: str) -> None:
    assert not Pattern(source, "").is_bounded()


@pytest.mark.parametrize("source", ["a{2,3}", "[*+]", r"\+", "ab?", r"[\]+]"])
def test_limited_repetition_is_bounded(source: str) -> None:
    assert Pattern(source, "").is_bounded()


def test_bounded_gaps_have_bounded_words() -> None:
    assert expand("a <gap2> b", {}, bounded=True).is_bounded()
    assert not expand("a <gap2> b", {}).is_bounded()
