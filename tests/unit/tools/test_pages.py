"""Page tokens: signed, of one list, for one hour."""

from __future__ import annotations

import pytest

from kala.errors import InvalidArgumentError
from services.common.page_tokens import TOKEN_SECONDS, page_size_of
from services.tools.pages import PageTokens


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> PageTokens:
    return PageTokens(key=b"k" * 32, now=clock)


def test_a_token_gives_its_place_back(tokens: PageTokens) -> None:
    assert tokens.after("runs of a", tokens.make("runs of a", b"\xff/key")) == b"\xff/key"


def test_the_first_page_needs_no_token(tokens: PageTokens) -> None:
    assert tokens.after("runs of a", "") is None


def test_a_token_of_another_list_says_so(tokens: PageTokens) -> None:
    with pytest.raises(InvalidArgumentError, match="page_token: belongs to another list"):
        tokens.after("runs of b", tokens.make("runs of a", b"1"))


def test_a_token_past_its_time_says_so(tokens: PageTokens, clock: Clock) -> None:
    token = tokens.make("runs of a", b"1")
    clock.now += TOKEN_SECONDS + 1
    with pytest.raises(InvalidArgumentError, match="page_token: has expired"):
        tokens.after("runs of a", token)


def test_a_token_that_another_process_made_is_refused(tokens: PageTokens, clock: Clock) -> None:
    foreign = PageTokens(key=b"other" * 8, now=clock).make("runs of a", b"1")
    with pytest.raises(InvalidArgumentError, match="page_token: was not made by this process"):
        tokens.after("runs of a", foreign)


@pytest.mark.parametrize("position", range(0, 60, 7))
def test_a_changed_character_is_noticed(tokens: PageTokens, position: int) -> None:
    token = tokens.make("runs of a", b"somewhere")
    changed = token[:position] + ("A" if token[position] != "A" else "B") + token[position + 1 :]
    with pytest.raises(InvalidArgumentError, match="page_token"):
        tokens.after("runs of a", changed)


@pytest.mark.parametrize("text", ["!", "a", "AAAA", "ä", "x" * 4096])
def test_what_is_no_token_is_refused_with_the_cure(tokens: PageTokens, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"page_token: .*start again without one"):
        tokens.after("runs of a", text)


@pytest.mark.parametrize(("asked", "size"), [(0, 100), (1, 1), (1000, 1000)])
def test_a_page_size_within_bounds_is_taken(asked: int, size: int) -> None:
    assert page_size_of(asked, default=100, most=1000) == size


@pytest.mark.parametrize("asked", [-1, 1001])
def test_a_page_size_out_of_bounds_names_them(asked: int) -> None:
    with pytest.raises(InvalidArgumentError, match="page_size: must be 1 to 1000; 100 when unset"):
        page_size_of(asked, default=100, most=1000)
