from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.ethics import output_windows
from services.ethics.output_windows import MAX_STRETCH_CHARS, MIN_NEW, UNSETTLED_CHARS, Window, WindowCutter

SENTENCE = "Plants turn light into sugar, and bees carry pollen from bloom to bloom all day long in June. "


def windows(chunks: Iterable[str]) -> list[Window]:
    cutter = WindowCutter()
    found = [window for chunk in chunks for window in cutter.feed(chunk)]
    return found + cutter.finish()


def chunked(text: str, places: Iterable[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in itertools.pairwise(edges)]


TEXTS = st.lists(
    st.sampled_from(
        [
            SENTENCE,
            "Yes. ",
            "No!\n",
            "3.14 ",
            "x" * 90,
            "\n\n",
            " " * 70,
            '"Really?" ',
            "你好。",
            "e.g. this ",
            "(a) ",
        ]
    ),
    max_size=40,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, places=st.lists(st.integers(0, 10_000), max_size=60))
def test_chunk_borders_change_no_window(text: str, places: list[int]) -> None:
    assert windows(chunked(text, places)) == windows([text]) == windows(text)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
@example(text="x" * 180 + " " * 140 + "x" * 90)
def test_windows_cover_the_text_each_with_an_end_of_the_stretch_before_and_within_bounds(text: str) -> None:
    found = windows([text])
    assert "".join(text[window.new : window.end] for window in found) == text
    assert all(window.text == text[window.start : window.end] for window in found)
    assert all(window.end - window.new <= MAX_STRETCH_CHARS + UNSETTLED_CHARS for window in found)
    assert all(before.new <= after.start < after.new for before, after in itertools.pairwise(found))


def test_a_window_begins_with_the_last_sentence_before_what_is_new() -> None:
    first, second, *_ = windows(["One came first of all of them here. ", SENTENCE, *[SENTENCE.upper()] * 4])
    assert first.text == "One came first of all of them here. " + SENTENCE
    assert second.text.startswith(SENTENCE + SENTENCE.upper())
    single, after, *_ = windows(["word " * 30 + "end. ", SENTENCE * 3])
    assert after.text.startswith(single.text)


def test_a_window_ends_with_a_sentence_where_it_can() -> None:
    found = windows([SENTENCE * 6])
    assert all(window.text.endswith(". ") for window in found)
    assert all(len(window.text[window.new - window.start :].split()) >= MIN_NEW / 2 for window in found)


def test_short_sentences_share_a_window_and_long_ones_are_cut_between_words() -> None:
    short, long = windows(["Yes. " * 12 + "x" * 20]), windows([("word, " * 100)])
    assert len(short[0].text) > len("Yes. ") * 8
    assert all(window.text.endswith(" ") for window in long)


def test_what_is_pending_can_be_read_without_changing_the_cuts() -> None:
    plain, flushed = WindowCutter(), WindowCutter()
    for chunk in [SENTENCE[:50], SENTENCE[50:], SENTENCE]:
        expected, found = plain.feed(chunk), flushed.feed(chunk)
        pending = flushed.pending()
        assert pending is not None
        assert found == expected
    assert flushed.finish() == plain.finish()
    assert flushed.pending() is None


@pytest.mark.parametrize("text", [" " * 20_000, "\n" * 20_000, "x" * 20_000, "." * 20_000, "。" * 20_000])
def test_floods_are_cut_and_never_kept(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    cut = output_windows._stretch_end

    def counting(held: str, begin: int) -> int | None:
        kept.append(len(held))
        return cut(held, begin)

    monkeypatch.setattr(output_windows, "_stretch_end", counting)
    found = windows(text[i : i + 5] for i in range(0, len(text), 5))
    # Each look is at no more than two stretches, and there is one for each chunk and each window.
    assert max(kept) <= 2 * (MAX_STRETCH_CHARS + UNSETTLED_CHARS) + 5
    assert len(kept) <= len(text) / 5 + len(found)


def test_an_empty_channel_has_no_window() -> None:
    assert windows([]) == windows([""]) == []
