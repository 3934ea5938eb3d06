"""Embeddings and rankings over a real gRPC server in front of scripted and recorded model servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import grpc
import pytest

from kala.errors import (
    ClearanceError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from kala.inference.v1 import inference_pb2 as pb
from services.common.status import translated
from services.inference.servicer import ATTEMPTS_METADATA_KEY
from tests.fakes.model_server import (
    DONE,
    Cut,
    FakeModelServer,
    Gate,
    Scripted,
    Seen,
    as_json,
    as_stream,
    chunk,
)
from tests.fakes.recordings import recording
from tests.service.inference.conftest import StartSuite, Suite, until
from tests.service.inference.conftest import action as chat_action
from tests.service.inference.task_servers import EMBED, embedding, lm_studio, sealed

RERANK = "/v1/rerank"


# --- What is asked, and the servers that answer


async def embed(suite: Suite, *inputs: str, **fields: object) -> pb.EmbedResponse:
    action = pb.EmbedAction(inputs=inputs or ("a", "b"), **fields)
    with translated():
        return await suite.stub.Embed(pb.EmbedRequest(sealed=sealed(suite, action, "Embed")))


async def rerank(suite: Suite, *documents: str, **fields: object) -> pb.RerankResponse:
    action = pb.RerankAction(query="q", documents=documents or ("a", "b", "c"), **fields)
    with translated():
        return await suite.stub.Rerank(pb.RerankRequest(sealed=sealed(suite, action, "Rerank")))


def ranking(seen: Seen) -> Scripted:
    if "query" not in seen.json():
        return as_json({"error": {"code": 400, "message": '"query" must be provided'}}, status=400)
    documents = seen.json()["documents"]
    results = [{"index": index, "relevance_score": -float(index)} for index in range(len(documents))]
    return as_json({"model": "tiny", "results": results[::-1], "usage": {"prompt_tokens": 11}})


def embeddings_of(seen: Sequence[Seen]) -> list[Seen]:
    """The calls that really embedded."""
    return [each for each in seen if each.path == EMBED and b"input" in each.body]


@pytest.fixture
async def llama(llama: FakeModelServer) -> FakeModelServer:
    llama.on("POST", EMBED, embedding)
    return llama


@pytest.fixture
async def studio() -> AsyncIterator[FakeModelServer]:
    async with lm_studio() as server:
        yield server


# --- Embeddings


async def test_texts_become_vectors_in_their_order(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url)
    answer = await embed(suite, "b", "a")
    assert [(each.index, list(each.values)) for each in answer.embeddings] == [(0, [1, 1]), (1, [2, 0])]
    assert (answer.route.backend, answer.route.model, answer.usage.input_tokens) == (
        "backends/llamacpp",
        "tiny",
        2,
    )
    assert [(each.backend, each.reason) for each in answer.route.attempts] == [("backends/llamacpp", "")]


async def test_many_texts_go_in_batches_to_one_backend(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url)
    texts = ["x" * (number + 1) for number in range(150)]
    answer = await embed(suite, *texts)
    assert [len(seen.json()["input"]) for seen in embeddings_of(llama.requests)] == [64, 64, 22]
    assert [each.values[1] for each in answer.embeddings] == [number + 1 for number in range(150)]
    assert answer.usage.input_tokens == 150


async def test_the_next_backend_embeds_all_of_them_when_one_fails_half_way(
    start: StartSuite, llama: FakeModelServer, studio: FakeModelServer
) -> None:
    def fails_on_the_second(seen: Seen) -> Scripted:
        if len(embeddings_of(llama.requests)) > 1:
            return as_json({"error": {"code": 500, "message": "out of memory"}}, status=500)
        return embedding(seen)

    llama.on("POST", EMBED, fails_on_the_second)
    suite = await start(llamacpp_url=llama.url, lmstudio_url=studio.url)
    answer = await embed(suite, *["a"] * 100)
    # Vectors of two models cannot be compared, so none of the first one's are used.
    assert len(answer.embeddings) == 100
    assert (answer.route.backend, answer.route.model) == ("backends/lmstudio", "nomic")
    assert [(each.backend, each.reason) for each in answer.route.attempts] == [
        ("backends/llamacpp", "HTTP_500"),
        ("backends/lmstudio", ""),
    ]


async def test_a_dead_host_leaves_embeddings_to_the_next(start: StartSuite, studio: FakeModelServer) -> None:
    async with FakeModelServer() as dead:
        dead.on("POST", EMBED, embedding)
        suite = await start(llamacpp_url=dead.url, lmstudio_url=studio.url)
        assert (await embed(suite)).route.backend == "backends/llamacpp"
    assert (await embed(suite)).route.backend == "backends/lmstudio"


async def test_lm_studio_embeds_with_its_embedding_model_and_never_with_a_chat_model(
    start: StartSuite, studio: FakeModelServer
) -> None:
    suite = await start(lmstudio_url=studio.url)
    assert (await embed(suite)).route.model == "nomic"
    with pytest.raises(InvalidArgumentError, match="'qwen' on lmstudio is not for embeddings"):
        await embed(suite, model="qwen")


async def test_only_a_llama_server_that_was_started_for_it_is_offered_for_embeddings(
    start: StartSuite,
) -> None:
    async with FakeModelServer() as plain:
        plain.on("POST", EMBED, recording("llama-server-tiny-neox", "embeddings_disabled").scripted())
        suite = await start(llamacpp_url=plain.url)
        with pytest.raises(FailedPreconditionError, match="llamacpp: has no model for embeddings"):
            await embed(suite)
        (model,) = (await suite.stub.ListModels(pb.ListModelsRequest())).models
        assert pb.CAPABILITY_EMBED not in model.capabilities
        # Being asked for what it cannot do must not keep chats from it.
        for _ in range(5):
            with pytest.raises(InvalidArgumentError):
                await embed(suite, model="tiny")
        assert (await suite.chat()).route.backend == "backends/llamacpp"


async def test_a_llama_server_that_embeds_only_tokens_is_not_offered(start: StartSuite) -> None:
    async with FakeModelServer() as tokens:
        message = "Pooling type 'none' is not OAI compatible. Please use a different pooling type"
        tokens.on("POST", EMBED, as_json({"error": {"code": 400, "message": message}}, status=400))
        suite = await start(llamacpp_url=tokens.url)
        with pytest.raises(FailedPreconditionError, match="llamacpp: has no model for embeddings"):
            await embed(suite)


async def test_real_embeddings_of_llama_server_pass_through(start: StartSuite) -> None:
    async with FakeModelServer(like_llama_server=False) as server:
        server.on("GET", "/health", as_json({"status": "ok"}))
        server.on("GET", "/v1/models", recording("llama-server-embeddings", "models").scripted())
        real = recording("llama-server-embeddings", "emb").scripted()
        server.on("POST", EMBED, lambda seen: embedding(seen) if b"input" not in seen.body else real)
        suite = await start(llamacpp_url=server.url)
        answer = await embed(suite, "Hello", "hi")
        assert [len(each.values) for each in answer.embeddings] == [128, 128]
        too_long = recording("llama-server-embeddings", "emb_overflow").scripted()
        server.on("POST", EMBED, too_long)
        # Its 500 is the caller's mistake, and its words hold both numbers and the cure.
        with pytest.raises(InvalidArgumentError, match=r"702 tokens.*batch size: 512"):
            await embed(suite, "word " * 700)


async def test_ollama_embeds_without_cutting_texts(start: StartSuite) -> None:
    async with FakeModelServer(like_llama_server=False) as server:
        server.on("GET", "/api/tags", as_json({"models": [{"name": "nomic:latest", "digest": "d"}]}))
        server.on("GET", "/api/ps", as_json({"models": [{"name": "nomic:latest"}]}))
        server.on("POST", "/api/show", as_json({"capabilities": ["embedding"], "model_info": {}}))
        vectors = {"model": "nomic:latest", "embeddings": [[1, 2], [3, 4]], "prompt_eval_count": 5}
        server.on("POST", "/api/embed", as_json(vectors))
        suite = await start(ollama_url=server.url)
        answer = await embed(suite, "a", "b", model="nomic", dimensions=2)
        assert [list(each.values) for each in answer.embeddings] == [[1, 2], [3, 4]]
        assert answer.usage.input_tokens == 5
        sent = next(seen.json() for seen in server.requests if seen.path == "/api/embed")
        assert sent == {"model": "nomic:latest", "input": ["a", "b"], "truncate": False, "dimensions": 2}
        server.on(
            "POST",
            "/api/embed",
            as_json({"error": "the input length exceeds the context length"}, status=400),
        )
        with pytest.raises(InvalidArgumentError, match="shorten or split it") as caught:
            await embed(suite)
        assert (caught.value.field, caught.value.reason) == ("inputs", "CONTEXT_LENGTH_EXCEEDED")


async def test_the_seeds_embedding_server_embeds_and_does_nothing_else(
    start: StartSuite, llama: FakeModelServer, studio: FakeModelServer
) -> None:
    suite = await start(
        llamacpp_url=llama.url,
        lmstudio_embedding_url=f"{studio.url}/v1/embeddings",
        lmstudio_embedding_model="nomic",
    )
    answer = await embed(suite, provider="lmstudio")
    assert (answer.route.backend, answer.route.model) == ("backends/lmstudio-embeddings", "nomic")
    assert (await suite.chat()).route.backend == "backends/llamacpp"
    assert studio.chats == []


async def test_openai_embeds_only_for_requests_that_may_leave(start: StartSuite) -> None:
    async with FakeModelServer(like_llama_server=False) as server:
        model = "text-embedding-3-small"
        server.on(
            "POST", EMBED, lambda seen: as_json({**json.loads(embedding(seen).steps[0]), "model": model})
        )
        suite = await start(
            openai_api_key="sk-test",
            openai_url=f"{server.url}/v1",
            openai_model="gpt-4o-mini",
            openai_models=(model,),
        )
        with pytest.raises(FailedPreconditionError, match="does not allow data to leave"):
            await embed(suite, provider="openai")
        assert server.requests == []
        answer = await embed(suite, provider="openai", allow_remote=True)
        assert (answer.route.backend, answer.route.model, answer.route.remote) == (
            "backends/openai",
            model,
            True,
        )
        assert server.requests[0].headers["authorization"] == "Bearer sk-test"


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (as_json({"model": "tiny", "data": []}), "without exactly one vector for each of 2 texts"),
        (as_json({"model": "other", "data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1]}]}),
         "answered as another model than tiny"),
        (as_json({"model": "tiny", "data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]}),
         "different lengths"),
        (as_json({"error": "Unexpected endpoint or method. Returning 200 anyway"}), "error inside|answered 200"),
        (Scripted([b"<html>"], 500, {"content-type": "text/html"}), "web page"),
        (Scripted([b'{"data":[', Cut()], framing="chunked"), "closed the connection"),
    ],
    ids=["none", "other model", "lengths", "error in 200", "web page", "cut"],
)  # fmt: skip
async def test_an_answer_that_is_none_is_told_as_a_failure(
    start: StartSuite, llama: FakeModelServer, answer: Scripted, detail: str
) -> None:
    llama.on("POST", EMBED, lambda seen: answer if b"input" in seen.body else embedding(seen))
    suite = await start(llamacpp_url=llama.url)
    with pytest.raises(UnavailableError, match=detail):
        await embed(suite)


async def test_other_dimensions_than_the_models_are_refused_with_both_numbers(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=llama.url)
    with pytest.raises(InvalidArgumentError, match="vectors of 2 numbers, not 256"):
        await embed(suite, dimensions=256)
    assert len((await embed(suite, dimensions=2)).embeddings) == 2


async def test_the_attempts_of_a_failed_call_are_in_its_trailers(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=llama.url)
    await embed(suite)
    llama.on("POST", EMBED, as_json({"error": {"message": "broken"}}, status=500))
    request = pb.EmbedRequest(sealed=sealed(suite, pb.EmbedAction(inputs=["a"]), "Embed"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await suite.stub.Embed(request)
    trailers = dict(caught.value.trailing_metadata() or ())
    finish = pb.ChatFinish.FromString(trailers[ATTEMPTS_METADATA_KEY])
    assert [(each.backend, each.reason) for each in finish.attempts] == [("backends/llamacpp", "HTTP_500")]


async def test_nothing_is_embedded_without_a_clearance_for_exactly_this(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=llama.url)
    with pytest.raises(ClearanceError), translated():
        await suite.stub.Embed(pb.EmbedRequest())
    other = sealed(suite, pb.EmbedAction(inputs=["a"]), "Chat")
    with pytest.raises(ClearanceError), translated():
        await suite.stub.Embed(pb.EmbedRequest(sealed=other))
    assert embeddings_of(llama.requests) == []


async def test_a_clearance_that_ended_in_the_queue_embeds_nothing(
    start: StartSuite, llama: FakeModelServer
) -> None:
    go_on = asyncio.Event()
    llama.on_chat(as_stream(chunk("Hi"), Gate(go_on), chunk(finish="stop"), DONE))
    suite = await start(llamacpp_url=llama.url, max_in_flight=1)
    first = asyncio.create_task(suite.chat(chat_action(stream=True)))
    await until(lambda: bool(llama.chats))
    second = asyncio.create_task(embed(suite))
    await until(lambda: suite.registry.entries()[0].guard.in_flight == 2)
    suite.clock.ahead_seconds = 120
    go_on.set()
    await first
    with pytest.raises(ClearanceError, match="expired"):
        await second
    assert embeddings_of(llama.requests) == []


# --- Rankings


async def test_a_model_for_ranking_orders_documents(start: StartSuite) -> None:
    async with FakeModelServer() as ranker:
        ranker.on("POST", RERANK, ranking)
        suite = await start(llamacpp_url=ranker.url)
        answer = await rerank(suite, top_n=2)
        assert [(each.index, each.score) for each in answer.results] == [(0, 0.0), (1, -1.0)]
        assert not answer.degraded
        assert (answer.route.backend, answer.usage.input_tokens) == ("backends/llamacpp", 11)
        # Such a model has one output: it is offered for nothing else.
        (model,) = (await suite.stub.ListModels(pb.ListModelsRequest())).models
        assert list(model.capabilities) == [pb.CAPABILITY_RERANK]


async def test_embeddings_stand_in_where_nothing_ranks_and_the_answer_says_so(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=llama.url)
    answer = await rerank(suite, "c", "a", "b")
    assert answer.degraded
    assert [each.index for each in answer.results] == [1, 2, 0]
    assert [round(each.score, 3) for each in answer.results] == [1.0, 0.707, -1.0]
    assert answer.usage.input_tokens == 4


async def test_embeddings_stand_in_for_a_ranker_that_fails_and_both_are_listed(
    start: StartSuite, studio: FakeModelServer
) -> None:
    async with FakeModelServer() as ranker:
        ranker.on("POST", RERANK, ranking)
        suite = await start(llamacpp_url=ranker.url, lmstudio_url=studio.url)
        assert not (await rerank(suite)).degraded
        ranker.on("POST", RERANK, as_json({"error": {"message": "broken"}}, status=500))
        answer = await rerank(suite)
        assert answer.degraded
        assert [(each.backend, each.reason) for each in answer.route.attempts] == [
            ("backends/llamacpp", "HTTP_500"),
            ("backends/lmstudio", ""),
        ]


async def test_without_either_it_is_said_what_is_missing(start: StartSuite) -> None:
    async with FakeModelServer() as plain:
        suite = await start(llamacpp_url=plain.url)
        with pytest.raises(FailedPreconditionError, match="llamacpp: has no model for reranking"):
            await rerank(suite)
        with pytest.raises(NotFoundError, match="'nobody' is not known"):
            await rerank(suite, model="nobody")
