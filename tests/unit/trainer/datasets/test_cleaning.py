"""What is dropped: duplicates, and text of evaluation sets."""

from __future__ import annotations

from time import process_time

from services.trainer.datasets.contamination import Contamination, strings_in
from services.trainer.datasets.draw import Draw
from services.trainer.datasets.duplicates import Duplicates
from services.trainer.datasets.rows import Row, conversation

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


def row(text: str) -> Row:
    return conversation("chat", text, "An answer.")


def words(start: int, count: int) -> str:
    return " ".join(f"word{number}" for number in range(start, start + count))


def test_an_equal_row_is_a_duplicate_whatever_it_is_beside() -> None:
    duplicates = Duplicates()

    assert not duplicates.seen(row("a b c"), near=False)
    assert duplicates.seen(row("a b c"), near=False)
    assert not duplicates.seen(Row("other", messages=row("a b d").messages, facts={"x": "y"}), near=True)
    assert duplicates.seen(Row("third", messages=row("a b d").messages), near=True)


def test_rows_that_share_most_of_their_word_runs_are_near() -> None:
    duplicates = Duplicates(0.8)

    assert not duplicates.seen(row(words(0, 200)), near=True)
    assert duplicates.seen(row(words(0, 195) + " five other words at last"), near=True)
    assert not duplicates.seen(row(words(100, 200)), near=True)


def test_a_similarity_of_one_drops_only_equal_rows() -> None:
    duplicates = Duplicates(1.0)

    assert not duplicates.seen(row(words(0, 200)), near=True)
    assert not duplicates.seen(row(words(0, 199)), near=True)


def test_thirteen_shared_words_are_contamination_and_twelve_are_none() -> None:
    known = Contamination(13)
    known.add(TEXT)

    assert known.finds(row("Before it: " + " ".join(TEXT.split()[2:15]) + ", and after."))
    assert not known.finds(row("Before it: " + " ".join(TEXT.split()[2:14]) + ", and after."))


def test_case_layout_and_punctuation_hide_no_copy() -> None:
    known = Contamination(13)
    known.add(TEXT)

    assert known.finds(row(TEXT.upper().replace(" ", ",\n\t")))


def test_a_short_evaluation_text_counts_only_as_a_whole() -> None:
    known = Contamination(13)
    known.add("How do I build a kite?")

    assert known.finds(row("how do i BUILD a kite"))
    assert not known.finds(row("How do I build a kite that flies high?"))


def test_very_short_texts_prove_nothing() -> None:
    known = Contamination(13)
    known.add("Law 2.")

    assert not known.finds(conversation("chat", "Which law?", "Law 2."))


def test_every_part_of_a_preference_is_looked_at() -> None:
    known = Contamination(13)
    known.add(TEXT)
    told = row(TEXT).messages[:1]

    assert known.finds(
        Row("preference", prompt=row("x").messages[:1], chosen=row("y").messages[:1], rejected=told)
    )


def test_every_string_of_an_evaluation_row_is_found() -> None:
    assert list(strings_in({"a": ["x", {"b": "y"}], "c": 3, "d": None})) == ["x", "y"]


def test_rows_of_one_template_are_compared_in_time_that_ends() -> None:
    draw = Draw("template")
    words = [f"w{number}" for number in range(2_000)]
    asked = " ".join(draw.choice(words) for _ in range(60))
    rows = [
        conversation("chat", asked, " ".join(draw.choice(words) for _ in range(14))) for _ in range(1_500)
    ]
    duplicates = Duplicates(0.8)
    start = process_time()
    kept = [row for row in rows if not duplicates.seen(row, near=True)]

    # A copy of the oldest, which shares its buckets with all that came after it, is found all the same.
    assert len(kept) > 1_400
    copy = conversation("chat", asked, kept[0].texts()[1] + " more")
    assert duplicates.seen(copy, near=True)
    assert process_time() - start < 20
