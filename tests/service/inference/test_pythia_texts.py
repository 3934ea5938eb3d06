"""Texts continued and embedded by the model in process."""

from __future__ import annotations

from pathlib import Path

import pytest

from kala.errors import (
    InvalidArgumentError,
)
from kala.inference.v1 import inference_pb2 as pb
from services.common.status import translated
from tests.service.inference.conftest import StartSuite, Suite

pytestmark = pytest.mark.torch


@pytest.fixture
async def suite(start: StartSuite, tiny: Path) -> Suite:
    return await start(model_dir=tiny)


def sampling(**fields: object) -> pb.Sampling:
    return pb.Sampling(**{"max_output_tokens": 12, **fields})


async def completed(suite: Suite, prompt: str, **fields: object) -> tuple[str, pb.ChatFinish]:
    wanted = pb.CompleteAction(prompt=prompt, **{"sampling": sampling(temperature=0), **fields})
    sealed = suite.ethics.seal(wanted, audience="/kala.inference.v1.InferenceService/Complete")
    with translated():
        responses = [response async for response in suite.stub.Complete(pb.CompleteRequest(sealed=sealed))]
    return "".join(response.text for response in responses), responses[-1].finish


async def test_a_text_is_continued_without_a_template(suite: Suite) -> None:
    text, finish = await completed(suite, "Once upon")
    assert (len(text) > 0, finish.usage.input_tokens, finish.usage.output_tokens) == (True, 9, 12)
    assert (await completed(suite, "Once upon", stream=True))[0] == text
    with pytest.raises(InvalidArgumentError, match="control token"):
        await completed(suite, "Once<|endoftext|>upon")
    with pytest.raises(InvalidArgumentError, match="cannot fill a gap"):
        await completed(suite, "Once", suffix="a time")


async def embedded(suite: Suite, *texts: str, **fields: object) -> list[list[float]]:
    wanted = pb.EmbedAction(inputs=texts, **fields)
    sealed = suite.ethics.seal(wanted, audience="/kala.inference.v1.InferenceService/Embed")
    with translated():
        reply = await suite.stub.Embed(pb.EmbedRequest(sealed=sealed))
    return [list(vector.values) for vector in reply.embeddings]


async def test_texts_become_vectors_of_length_one(suite: Suite) -> None:
    first, second, again = await embedded(suite, "a cat", "a dog", "a cat")
    assert len(first) == 32
    assert sum(number**2 for number in first) == pytest.approx(1, abs=1e-5)
    assert first == again != second
    with pytest.raises(InvalidArgumentError, match="32 numbers"):
        await embedded(suite, "a cat", dimensions=8)
    with pytest.raises(InvalidArgumentError, match="64 tokens"):
        await embedded(suite, "x" * 65)
