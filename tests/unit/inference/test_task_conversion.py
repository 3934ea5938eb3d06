"""The limits of the contract for completions, embeddings and rankings; each error names the field."""

from __future__ import annotations

import pytest

from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb
from services.inference.backend import Capability
from services.inference.task_conversion import complete_call, embed_call, rerank_call, wanted_for

MEBI = 1024 * 1024


def test_actions_are_read_as_they_are_written() -> None:
    action = pb.CompleteAction(prompt="a", suffix="b", stream=True, sampling=pb.Sampling(temperature=0.0))
    call = complete_call(action)
    assert (call.prompt, call.suffix, call.stream, call.sampling.temperature) == ("a", "b", True, 0.0)
    assert embed_call(pb.EmbedAction(inputs=["a", "b"], dimensions=3)).dimensions == 3
    assert embed_call(pb.EmbedAction(inputs=["a", "b"])).dimensions is None
    assert rerank_call(pb.RerankAction(query="q", documents=["a"])).documents == ("a",)


def test_an_action_says_what_the_model_is_for() -> None:
    wanted = wanted_for(pb.EmbedAction(model="m", provider="ollama", allow_remote=True), Capability.EMBED)
    assert (wanted.model, wanted.provider, wanted.task, wanted.allow_remote) == (
        "m",
        "ollama",
        Capability.EMBED,
        True,
    )


@pytest.mark.parametrize(
    ("action", "field"),
    [
        (pb.CompleteAction(), "prompt"),
        (pb.CompleteAction(prompt="a" * (4 * MEBI + 1)), "prompt"),
        (pb.CompleteAction(prompt="a", suffix="a" * (4 * MEBI + 1)), "suffix"),
        (pb.CompleteAction(prompt="a", sampling=pb.Sampling(temperature=3)), "sampling.temperature"),
        (pb.CompleteAction(prompt="a", sampling=pb.Sampling(logprobs=True)), "sampling.logprobs"),
        (pb.EmbedAction(), "inputs"),
        (pb.EmbedAction(inputs=["a"] * 2049), "inputs"),
        (pb.EmbedAction(inputs=["a", ""]), "inputs[1]"),
        (pb.EmbedAction(inputs=["a", "é" * (MEBI // 2 + 1)]), "inputs[1]"),
        (pb.EmbedAction(inputs=["a"], dimensions=0), "dimensions"),
        (pb.EmbedAction(inputs=["a"], dimensions=65_537), "dimensions"),
        (pb.RerankAction(documents=["a"]), "query"),
        (pb.RerankAction(query="q" * 65_537, documents=["a"]), "query"),
        (pb.RerankAction(query="q"), "documents"),
        (pb.RerankAction(query="q", documents=["a"] * 1001), "documents"),
        (pb.RerankAction(query="q", documents=[""]), "documents[0]"),
        (pb.RerankAction(query="q", documents=["a"], top_n=0), "top_n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_limit_names_its_field(action: object, field: str) -> None:
    read = {pb.CompleteAction: complete_call, pb.EmbedAction: embed_call, pb.RerankAction: rerank_call}
    with pytest.raises(InvalidArgumentError) as caught:
        read[type(action)](action)
    assert caught.value.field == field


def test_a_text_of_exactly_the_limit_is_taken() -> None:
    assert embed_call(pb.EmbedAction(inputs=["é" * (MEBI // 2)]))


def test_a_model_name_is_bounded() -> None:
    with pytest.raises(InvalidArgumentError, match="at most 256 characters"):
        wanted_for(pb.EmbedAction(model="m" * 257), Capability.EMBED)
