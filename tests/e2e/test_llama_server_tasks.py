"""A real llama-server embeds and continues texts, and is offered for what it was started for alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb
from services.common.status import translated
from tests.e2e.test_llama_server_backend import GREEDY, PROGRAM, llama_server
from tests.fakes.tiny_gguf import make_tiny_llama
from tests.service.inference.conftest import Suite, running

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no llama-server on PATH and none named by KALA_TEST_LLAMA_SERVER"
)

RPC = "/kala.inference.v1.InferenceService/"


async def embed(suite: Suite, *inputs: str) -> pb.EmbedResponse:
    sealed = suite.ethics.seal(pb.EmbedAction(inputs=inputs), audience=RPC + "Embed")
    with translated():
        return await suite.stub.Embed(pb.EmbedRequest(sealed=sealed))


async def rerank(suite: Suite, *documents: str) -> pb.RerankResponse:
    action = pb.RerankAction(query="cat", documents=documents)
    sealed = suite.ethics.seal(action, audience=RPC + "Rerank")
    with translated():
        return await suite.stub.Rerank(pb.RerankRequest(sealed=sealed))


async def complete(suite: Suite, prompt: str, **fields: object) -> str:
    action = pb.CompleteAction(prompt=prompt, sampling=GREEDY, **fields)
    sealed = suite.ethics.seal(action, audience=RPC + "Complete")
    with translated():
        responses = [each async for each in suite.stub.Complete(pb.CompleteRequest(sealed=sealed))]
    assert responses[-1].HasField("finish")
    return "".join(each.text for each in responses)


async def capabilities(suite: Suite) -> set[int]:
    (model,) = (await suite.stub.ListModels(pb.ListModelsRequest())).models
    return set(model.capabilities)


async def test_started_for_embeddings_it_embeds_and_stands_in_for_a_ranker(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "tiny.gguf")
    async with (
        llama_server("-m", str(model), "--embeddings", "--pooling", "mean") as url,
        running(tmp_path, llamacpp_url=url) as suite,
    ):
        answer = await embed(suite, "cat", "a dog", "cat")
        first, second, again = (list(each.values) for each in answer.embeddings)
        assert first == pytest.approx(again, abs=1e-5)
        assert first != pytest.approx(second, abs=1e-3)
        assert math.hypot(*first) == pytest.approx(1, abs=1e-3)
        assert answer.usage.input_tokens > 0
        assert pb.CAPABILITY_EMBED in await capabilities(suite)
        ranking = await rerank(suite, "a dog", "cat")
        assert (ranking.degraded, ranking.results[0].index) == (True, 1)
        assert ranking.results[0].score == pytest.approx(1, abs=1e-3)
        with pytest.raises(InvalidArgumentError, match=r"\d+ tokens"):
            await embed(suite, "word " * 400)


async def test_started_plainly_it_continues_texts_and_embeds_none(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "tiny.gguf")
    async with llama_server("-m", str(model)) as url, running(tmp_path, llamacpp_url=url) as suite:
        whole = await complete(suite, "once upon")
        assert whole
        assert await complete(suite, "once upon", stream=True) == whole
        assert await complete(suite, "once upon", echo=True) == "once upon" + whole
        assert pb.CAPABILITY_EMBED not in await capabilities(suite)
        with pytest.raises(FailedPreconditionError, match="has no model for embeddings"):
            await embed(suite, "cat")


async def test_started_for_ranking_it_ranks_and_is_offered_for_nothing_else(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "tiny.gguf")
    async with (
        llama_server("-m", str(model), "--reranking") as url,
        running(tmp_path, llamacpp_url=url) as suite,
    ):
        ranking = await rerank(suite, "a dog", "cat", "the sea")
        assert not ranking.degraded
        assert sorted(each.index for each in ranking.results) == [0, 1, 2]
        scores = [each.score for each in ranking.results]
        assert scores == sorted(scores, reverse=True)
        assert ranking.usage.input_tokens > 0
        assert await capabilities(suite) == {pb.CAPABILITY_RERANK}
