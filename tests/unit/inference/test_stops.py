"""Stop texts and pieces of characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.pythia.stops import PieceDecoder, StopScanner


def scanned(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    scanner = StopScanner(stops)
    released: list[str] = []
    for piece in pieces:
        text, is_stopped = scanner.feed(piece)
        released.append(text)
        if is_stopped:
            return released, True
    return [*released, scanner.finish()], False


@pytest.mark.parametrize(
    ("pieces", "stops", "released", "is_stopped"),
    [
        pytest.param(["a", "b"], [], ["a", "b", ""], False, id="no stops"),
        pytest.param(["ab", "STOP", "c"], ["STOP"], ["ab", ""], True, id="whole"),
        pytest.param(["aS", "TO", "Pb"], ["STOP"], ["a", "", ""], True, id="in pieces"),
        pytest.param(["aS", "Tx"], ["STOP"], ["a", "STx", ""], False, id="not after all"),
        pytest.param(["aST"], ["STOP"], ["a", "ST"], False, id="the end frees what was held"),
        pytest.param(["aab"], ["ab"], ["a"], True, id="overlapping itself"),
        pytest.param(["xAB"], ["B", "AB"], ["x"], True, id="the earliest one wins"),
    ],
)
def test_text_leaves_up_to_the_stop(
    pieces: list[str], stops: list[str], released: list[str], is_stopped: bool
) -> None:
    assert scanned(pieces, stops) == (released, is_stopped)


@given(
    pieces=st.lists(st.text(alphabet="abc", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
)
def test_no_part_of_a_stop_ever_leaves_and_nothing_else_is_lost(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    released, is_stopped = scanned(pieces, stops)
    # Read piece by piece, so the stop that is complete first ends the text, as a stream would have it.
    seen = ""
    for character_count in range(len(text) + 1):
        seen = text[:character_count]
        if any(stop in seen for stop in stops):
            break
    if not is_stopped:
        assert "".join(released) == text
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith("".join(released))
        assert not any(stop in "".join(released) for stop in stops)


def test_a_character_in_pieces_leaves_whole() -> None:
    parts = {1: b"a", 2: b"\xe6\xbc", 3: b"\xa2", 4: b"!"}
    decoder = PieceDecoder(lambda ids: b"".join(parts[number] for number in ids).decode("utf-8", "replace"))
    assert [decoder.feed(token) for token in (1, 2, 3, 4)] == ["a", "", "漢", "!"]
