"""What lets data leave, as a table: only a name or the operator's own word."""

from __future__ import annotations

import pytest

from gateway.destination import Destinations
from kala.errors import InvalidArgumentError

HERE = Destinations()
OPENAI = Destinations(provider="openai")
ALLOWED = Destinations(allow_remote=True)


@pytest.mark.parametrize(
    ("settings", "provider", "model", "may_leave"),
    [
        (HERE, "", "auto", False),
        (HERE, "auto", "auto", False),
        (HERE, "lmstudio", "m", False),
        (HERE, "", "openai/gpt-4o", True),
        (HERE, "anthropic", "m", True),
        (OPENAI, "", "auto", True),
        (OPENAI, "auto", "auto", False),
        (OPENAI, "mlx", "m", False),
        (ALLOWED, "", "auto", True),
        (ALLOWED, "auto", "auto", True),
        (ALLOWED, "lmstudio", "m", False),
        (Destinations(provider="lmstudio"), "", "auto", False),
    ],
)
def test_only_a_name_or_the_operators_word_lets_data_leave(
    settings: Destinations, provider: str, model: str, *, may_leave: bool
) -> None:
    headers = {"x-kala-provider": provider} if provider else {}
    destination = settings.of(headers, model)
    assert (destination.allow_remote, destination.provider) == (may_leave, provider)


def test_a_role_is_taken_from_its_header() -> None:
    assert HERE.of({"x-kala-role": " rank "}, "auto").role == "rank"


@pytest.mark.parametrize(
    ("headers", "field"),
    [({"x-kala-provider": "gpt"}, "x-kala-provider"), ({"x-kala-role": "r" * 65}, "x-kala-role")],
)
def test_a_wrong_header_is_named(headers: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        HERE.of(headers, "auto")
    assert caught.value.field == field
