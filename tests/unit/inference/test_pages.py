"""Pages of a list."""

from __future__ import annotations

import pytest

from kala.errors import InvalidArgumentError
from services.inference.pages import page


def of(items: str, *, size: int = 2, token: str = "", filters: str = "", now: float = 0.0) -> tuple[str, str]:
    chosen, following = page(list(items), key=str, rpc="R", filters=filters, size=size, token=token, now=now)
    return "".join(chosen), following


def test_pages_join_to_the_whole_list() -> None:
    text, token, seen = "", "", []
    while True:
        text, token = of("abcde", token=token)
        seen.append(text)
        if not token:
            break
    assert seen == ["ab", "cd", "e"]


@pytest.mark.parametrize("size", [-1, 1001])
def test_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(InvalidArgumentError, match="page_size"):
        of("abc", size=size)


def test_a_token_is_bound_to_its_list_its_filter_and_an_hour() -> None:
    _, token = of("abc")
    for wrong in ({"filters": "x"}, {"now": 3601.0}):
        with pytest.raises(InvalidArgumentError, match="page_token"):
            of("abc", token=token, **wrong)
    with pytest.raises(InvalidArgumentError, match="has changed"):
        of("ac", token=token)


@pytest.mark.parametrize("token", ["x", "////", "AAAA"])
def test_a_strange_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError, match="page_token"):
        of("abc", token=token)
