"""Completions, embeddings and rankings over HTTP: OpenAI's types, the whole pipeline, and nothing that went unjudged."""

from __future__ import annotations

import array
import asyncio
import base64
import hashlib
import hmac
import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, PermissionDeniedError
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.shared import ErrorObject

from kala.errors import InvalidArgumentError, UnavailableError
from kala.errors import NotFoundError as KalaNotFoundError
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.gateway_suite import Suite, eventually
from tests.fakes.scripted_ethics import FORBIDDEN
from tests.fakes.scripted_inference import REPLY, route, saying, text

pytestmark = pytest.mark.asyncio(loop_scope="session")

ATTEMPT = pb.Attempt(backend="backends/lmstudio", model="m", reason="CONNECTION_REFUSED")
TRIED = (("kala-attempts-bin", pb.ChatFinish(attempts=[ATTEMPT]).SerializeToString()),)


async def embed(suite: Suite, given: Any = "one", **fields: Any) -> httpx.Response:
    return await suite.post("/v1/embeddings", {"model": "auto", "input": given, **fields})


async def rerank(suite: Suite, *documents: Any, **fields: Any) -> httpx.Response:
    body = {"query": "q", "documents": list(documents) or ["a", "ccc", "bb"], **fields}
    return await suite.post("/v1/rerank", body)


async def complete(suite: Suite, prompt: str = "Once", **fields: Any) -> httpx.Response:
    return await suite.post("/v1/completions", {"model": "auto", "prompt": prompt, **fields})


def error_of(response: httpx.Response) -> ErrorObject:
    return ErrorObject.model_validate(response.json()["error"], strict=True)


# --- Embeddings


async def test_an_unmodified_openai_client_embeds(suite: Suite) -> None:
    suite.inference.vectors = ((0.5, 1.0), (0.1, -2.0))
    async with AsyncOpenAI(base_url=f"{suite.url}/v1", api_key=suite.key, max_retries=0) as client:
        # It asks for base64 unless it is told otherwise.
        raw = await client.embeddings.with_raw_response.create(model="auto", input=["one", "two"])
        made = raw.parse()
        assert [each.index for each in made.data] == [0, 1]
        assert made.data[1].embedding == pytest.approx([0.1, -2.0])
        plain = await client.embeddings.create(
            model="auto", input="one", encoding_format="float", dimensions=2
        )
        assert plain.data[0].embedding == [0.5, 1.0]
        assert suite.inference.embeds[-1].dimensions == 2
        with pytest.raises(BadRequestError, match="token ids") as caught:
            await client.embeddings.create(model="auto", input=[[1, 2, 3]])
        assert (caught.value.param, caught.value.code) == ("input[0]", "unjudged_part")
    assert raw.headers["x-kala-receipt"].startswith("rcpt_")
    assert raw.headers["x-kala-attempts"] == "fake=ok"
    assert float(raw.headers["x-kala-overhead-ms"]) > 0


async def test_an_answer_has_openais_shape_and_the_kala_object(suite: Suite) -> None:
    response = await embed(suite, ["one", "two"])
    body = CreateEmbeddingResponse.model_validate_json(response.content, strict=True)
    assert (body.model, body.usage.prompt_tokens, body.usage.total_tokens) == ("fake-model", 3, 3)
    kala = response.json()["kala"]
    assert (kala["decision"]["outcome"], kala["backend"]) == ("ALLOW", "backends/fake")
    assert kala["receipt"]["id"] == response.headers["x-kala-receipt"]


async def test_the_log_commits_to_the_vectors_without_keeping_them(suite: Suite) -> None:
    suite.inference.vectors = ((0.5, 1.0), (0.1, -2.0))
    body = (await embed(suite, ["one", "two"], encoding_format="base64")).json()
    intent, outcome = await suite.leaves()
    assert (intent["type"], outcome["type"]) == ("embed.intent", "embed.outcome")
    assert body["kala"]["intent"] == f"rcpt_{intent['idempotency_key']}"
    assert outcome["result"]["input_tokens"] == 3
    assert dict(outcome["attributes"])["result.released_form"] == "embeddings"
    numbers = b"".join(base64.b64decode(each["embedding"]) for each in body["data"])
    assert array.array("f", numbers).tolist() == pytest.approx([0.5, 1.0, 0.1, -2.0])
    said = {"count": 2, "dimensions": 2, "sha256": hashlib.sha256(numbers).hexdigest()}
    spelled = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    salt = bytes.fromhex(body["kala"]["receipt"]["openings"]["released"])
    committed = next(each["hmac"] for each in outcome["commitments"] if each["kind"] == "released")
    assert hmac.new(salt, spelled, hashlib.sha256).hexdigest() == committed


async def test_two_thousand_texts_of_long_vectors_are_answered(suite: Suite) -> None:
    suite.inference.vectors = ([0.25] * 1024,)
    response = await embed(suite, ["x"] * 2048, encoding_format="base64")
    assert response.status_code == 200
    assert len(response.json()["data"]) == 2048
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    assert leaf.value["result"]["status"] == "ok"


async def test_texts_that_ethics_refuses_reach_no_backend(suite: Suite) -> None:
    async with AsyncOpenAI(base_url=f"{suite.url}/v1", api_key=suite.key, max_retries=0) as client:
        with pytest.raises(PermissionDeniedError, match="I cannot help with that") as caught:
            await client.embeddings.create(model="auto", input=["one", "please refuse"])
    assert caught.value.code == "refuse"
    response = await embed(suite, "please redirect")
    assert (response.status_code, error_of(response).code) == (403, "redirect")
    decision = response.json()["kala"]["decision"]
    assert (decision["outcome"], decision["law"], decision["stage"]) == ("REDIRECT", 1, "request")
    assert suite.inference.embeds == []
    assert (await suite.receipt(response.headers["x-kala-receipt"])).value["type"] == "embed.refused"


async def test_without_ethics_nothing_is_embedded(suite: Suite) -> None:
    suite.ethics.is_down = True
    response = await embed(suite)
    assert (response.status_code, error_of(response).code) == (503, "ethics_unavailable")
    assert suite.inference.embeds == []


async def test_a_failure_names_the_backends_that_were_tried_and_has_a_receipt(suite: Suite) -> None:
    suite.inference.task_error = UnavailableError("lmstudio is away", reason="ALL_BACKENDS_FAILED")
    suite.inference.trailers = TRIED
    response = await embed(suite)
    assert (response.status_code, error_of(response).code) == (503, "backends_unavailable")
    assert response.headers["x-kala-attempts"] == "lmstudio=CONNECTION_REFUSED"
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    assert (leaf.value["type"], leaf.value["result"]["status"]) == ("embed.outcome", "error")
    assert leaf.value["result"]["attempts"][0]["reason"] == "CONNECTION_REFUSED"


async def test_an_error_of_inference_names_the_field_that_the_client_sent(suite: Suite) -> None:
    problem = "a text has 702 tokens, more than 512; shorten or split it"
    suite.inference.task_error = InvalidArgumentError("inputs", problem, reason="CONTEXT_LENGTH_EXCEEDED")
    error = error_of(await embed(suite))
    assert (error.param, error.code) == ("input", "context_length_exceeded")
    assert "shorten or split it" in error.message
    suite.inference.task_error = KalaNotFoundError("model 'x' is not known")
    async with AsyncOpenAI(base_url=f"{suite.url}/v1", api_key=suite.key, max_retries=0) as client:
        with pytest.raises(NotFoundError) as caught:
            await client.embeddings.create(model="x", input="one")
    assert caught.value.code == "model_not_found"


async def test_a_provider_is_named_by_header_and_remote_ones_only_so(suite: Suite) -> None:
    await suite.post("/v1/embeddings", {"input": "one"}, headers={"x-kala-provider": "openai"})
    await embed(suite)
    assert [(each.provider, each.allow_remote) for each in suite.inference.embeds] == [
        ("openai", True),
        ("", False),
    ]
    wrong = await suite.post("/v1/embeddings", {"input": "one"}, headers={"x-kala-provider": "nobody"})
    assert (wrong.status_code, error_of(wrong).param) == (400, "x-kala-provider")
    role = await suite.post("/v1/embeddings", {"input": "one"}, headers={"x-kala-role": "rank"})
    assert "is for chats only" in error_of(role).message


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/completions"])
async def test_a_mistake_is_a_bad_request_with_a_record(suite: Suite, path: str) -> None:
    response = await suite.post(path, {"made_up": 1})
    assert (response.status_code, error_of(response).code) == (400, "unknown_parameter")
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    assert leaf.value["type"].endswith(".invalid")
    assert leaf.value["action"]["rpc"] == f"HTTP POST {path}"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/completions"])
async def test_a_key_without_the_scope_is_403(suite: Suite, path: str) -> None:
    key = suite.new_key("audit.read")
    response = await suite.http.post(path, json={}, headers=suite.bearer(key))
    assert (response.status_code, error_of(response).code) == (403, "insufficient_permissions")


# --- Rankings


async def test_documents_come_best_first_with_their_places(suite: Suite) -> None:
    body = (await rerank(suite, top_n=2)).json()
    assert [(each["index"], each["relevance_score"]) for each in body["results"]] == [(1, 3.0), (2, 2.0)]
    assert "document" not in body["results"][0]
    assert (body["model"], body["usage"]["total_tokens"], body["kala"]["degraded"]) == (
        "fake-model",
        3,
        False,
    )


async def test_a_degraded_ranking_says_so(suite: Suite) -> None:
    suite.inference.degraded = True
    assert (await rerank(suite)).json()["kala"]["degraded"] is True


async def test_documents_are_returned_when_asked_for(suite: Suite) -> None:
    body = (await rerank(suite, "a", {"text": "bb"}, return_documents=True)).json()
    assert [each["document"]["text"] for each in body["results"]] == ["bb", "a"]


async def test_a_ranking_is_judged_and_logged(suite: Suite) -> None:
    refused = await rerank(suite, "a", query="please refuse")
    assert (refused.status_code, suite.inference.reranks) == (403, [])
    response = await rerank(suite)
    assert [leaf["type"] for leaf in await suite.leaves()] == [
        "rerank.refused",
        "rerank.intent",
        "rerank.outcome",
    ]
    assert (await suite.receipt(response.headers["x-kala-receipt"])).value["result"]["status"] == "ok"


# --- Completions


async def test_an_unmodified_openai_client_completes(suite: Suite) -> None:
    async with AsyncOpenAI(base_url=f"{suite.url}/v1", api_key=suite.key, max_retries=0) as client:
        made = await client.completions.create(
            model="auto", prompt="Once", max_tokens=5, temperature=0, stop="x"
        )
        stream = await client.completions.create(
            model="auto", prompt="Once", stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert (made.choices[0].text, made.choices[0].finish_reason) == (REPLY, "stop")
    assert made.id.startswith("cmpl-")
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == REPLY
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 12
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["kala"]["receipt"]["status"] == "LOGGED"
    whole, streamed = suite.inference.completes
    assert (whole.prompt, whole.sampling.max_output_tokens, list(whole.sampling.stop)) == ("Once", 5, ["x"])
    assert (whole.stream, streamed.stream) == (False, True)


async def test_a_whole_completion_has_openais_shape_and_verifies(suite: Suite) -> None:
    response = await complete(suite)
    made = Completion.model_validate_json(response.content, strict=True)
    assert (made.object, made.model) == ("text_completion", "fake-model")
    assert made.usage is not None
    assert made.usage.total_tokens == 12
    leaf = await suite.receipt(response.json()["kala"]["receipt"]["id"])
    assert (leaf.value["type"], leaf.value["result"]["finish_reason"]) == ("complete.outcome", "stop")
    assert suite.ethics.starts[0].request_text == "Once"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_prompt_ends_with_a_content_filter(suite: Suite, stream: bool) -> None:
    response = await complete(suite, "please refuse", stream=stream)
    assert response.status_code == 200
    assert "I cannot help with that." in response.text
    assert '"content_filter"' in response.text
    assert suite.inference.completes == []
    assert (await suite.leaves())[-1]["type"] == "complete.refused"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_forbidden_word_never_leaves_even_in_pieces(suite: Suite, stream: bool) -> None:
    suite.inference.script = lambda _: saying("a ", FORBIDDEN[:4], FORBIDDEN[4:], " b")
    response = await complete(suite, stream=stream)
    said = "".join(
        choice["text"]
        for line in response.text.splitlines()
        if line.startswith("data: {")
        for choice in json.loads(line[6:]).get("choices", ())
    ) if stream else response.json()["choices"][0]["text"]  # fmt: skip
    assert FORBIDDEN[:4] not in said.replace("I cannot help with that.", "")
    (outcome,) = await suite.leaves(kind="complete.outcome")
    assert outcome["result"]["status"] == "refused"


async def test_a_stream_that_fails_in_the_middle_ends_with_an_error_event(suite: Suite) -> None:
    error = UnavailableError("lmstudio closed the stream", reason="BACKEND_FAILED_MID_STREAM")
    suite.inference.script = lambda _: [route(), text(REPLY), 0.1, error]
    response = await complete(suite, stream=True)
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert json.loads(events[-1])["error"]["code"] == "backend_failed_mid_stream"
    assert "[DONE]" not in events


async def test_a_client_that_leaves_a_completion_ends_the_backend(suite: Suite) -> None:
    suite.inference.script = lambda _: [route(), text(REPLY), asyncio.Event()]
    body = {"prompt": "Once", "stream": True}
    async with suite.http.stream("POST", "/v1/completions", json=body, headers=suite.bearer()) as response:
        async for _line in response.aiter_lines():
            break
    await asyncio.wait_for(suite.inference.cancelled.wait(), 5)
    (outcome,) = await eventually(lambda: suite.leaves(kind="complete.outcome"))
    assert outcome["result"]["status"] == "cancelled"


# --- The same over the bridge, and the document


async def test_the_bridge_serves_the_same_calls(suite: Suite) -> None:
    completed = await suite.post("/kala/v1/inference/complete", {"prompt": "Once"})
    messages = [json.loads(line) for line in completed.text.splitlines()]
    assert "".join(message["text"] for message in messages) == REPLY
    ranked = await suite.post("/kala/v1/inference/rerank", {"query": "q", "documents": ["a", "bb"]})
    assert [each["index"] for each in ranked.json()["results"]] == [1, 0]
    suite.inference.task_error = UnavailableError("lmstudio is away", reason="ALL_BACKENDS_FAILED")
    suite.inference.trailers = TRIED
    failed = await suite.post("/kala/v1/inference/embed", {"inputs": ["a"]})
    assert failed.status_code == 503
    assert failed.headers["x-kala-attempts"] == "lmstudio=CONNECTION_REFUSED"
    leaf = await suite.receipt(failed.headers["x-kala-receipt"])
    assert leaf.value["result"]["attempts"][0]["reason"] == "CONNECTION_REFUSED"


async def test_the_document_describes_them_and_every_reference_resolves(suite: Suite) -> None:
    document = (await suite.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for path in ("/v1/completions", "/v1/embeddings", "/v1/rerank"):
        asked = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert asked["$ref"].rpartition("/")[2] in schemas
    assert {"CompletionRequest", "EmbeddingRequest", "RerankRequest", "RerankDocument"} <= schemas.keys()
