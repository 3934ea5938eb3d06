"""What a role adds to a request, as tables."""

from __future__ import annotations

import pytest

from kala.errors import InvalidArgumentError
from services.inference.chat import ChatCall, Message, Sampling, Text
from services.inference.chat import Role as Speaker
from services.inference.roles import Role, Routing
from services.inference.router import Wanted

RANK = Role("qwen3-4b", "lmstudio", Sampling(temperature=0.0, seed=42), context_tokens=16384)
CODE = Role(model="llamacpp/coder")
ROUTING = Routing(provider="ollama", roles={"rank": RANK, "code": CODE})


@pytest.mark.parametrize(
    ("asked", "role", "settled"),
    [
        (Wanted(), "rank", ("qwen3-4b", "lmstudio")),
        (Wanted("auto"), "rank", ("qwen3-4b", "lmstudio")),
        (Wanted(provider="lmstudio"), "rank", ("qwen3-4b", "lmstudio")),
        (Wanted(provider="mlx"), "rank", ("", "mlx")),
        (Wanted("mine"), "rank", ("mine", "ollama")),
        (Wanted(), "code", ("llamacpp/coder", "")),
        (Wanted(), "", ("", "ollama")),
        (Wanted("mlx/mine"), "", ("mlx/mine", "")),
        (Wanted("llamacpp-2/mine"), "", ("llamacpp-2/mine", "")),
        (Wanted("qwen/qwen3-4b"), "", ("qwen/qwen3-4b", "ollama")),
        (Wanted(provider="auto"), "", ("", "auto")),
    ],
    ids=str,
)
def test_a_role_fills_what_a_request_leaves_open(asked: Wanted, role: str, settled: tuple[str, str]) -> None:
    wanted = ROUTING.settle(asked, ROUTING.role(role))
    assert (wanted.model, wanted.provider) == settled


def test_a_role_asks_for_its_context() -> None:
    assert ROUTING.settle(Wanted(), RANK).context_tokens == 16384
    assert ROUTING.settle(Wanted(), ROUTING.role("")).context_tokens is None


@pytest.mark.parametrize("name", ["extract", "x" * 65])
def test_an_unknown_role_lists_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="there are: code, rank") as caught:
        ROUTING.role(name)
    assert caught.value.field == "role"


def test_a_requests_own_settings_stand_before_the_roles() -> None:
    call = ChatCall((Message(Speaker.USER, (Text("x"),)),), Sampling(temperature=0.7))
    assert call.filled(RANK.sampling).sampling == Sampling(temperature=0.7, seed=42)
    assert call.filled(Sampling()) is call
