"""Completions, embeddings and rankings of the OpenAI protocol: what is sent, and what is not believed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.backend import BackendFailure, Blame
from services.inference.backends.openai_wire import ChunkReader, read_completion
from services.inference.backends.task_wire import (
    BATCH_CHARS,
    BATCH_TEXTS,
    batches,
    completion_body,
    embeddings_body,
    joined,
    read_embeddings,
    read_scores,
)
from services.inference.chat import Delta, Finish, FinishReason, Opened, Sampling, Usage
from services.inference.tasks import CompleteCall
from tests.fakes.recordings import recording


def embeddings(*vectors: object, **fields: object) -> bytes:
    data = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return json.dumps({"model": "m", "data": data, **fields}).encode()


def scores(*values: object) -> bytes:
    results = [{"index": index, "relevance_score": value} for index, value in enumerate(values)]
    return json.dumps({"model": "m", "results": results}).encode()


def reason_of(read: object, *arguments: object, **options: object) -> str:
    with pytest.raises(BackendFailure) as caught:
        read(*arguments, **options)  # type: ignore[operator]
    return caught.value.reason


def test_a_completion_asks_for_a_whole_usage_and_always_limits_the_tokens() -> None:
    call = CompleteCall("Once", sampling=Sampling(temperature=0.0, stop=("\n",)), stream=True)
    sent = json.loads(
        completion_body(call, model="m", stream=True, max_output_tokens=9, extra={"store": False})
    )
    assert sent == {
        "model": "m", "prompt": "Once", "stream": True, "stream_options": {"include_usage": True},
        "temperature": 0.0, "max_tokens": 9, "stop": ["\n"], "store": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "text"),
    [
        ("llama-server-tiny-neox", "\nHello\nHello"),
        ("mlx_lm-0.32.2-tiny-llama", "! How can I help you? What"),
    ],
)
def test_real_completions_are_read(folder: str, text: str) -> None:
    opened, delta, finish = read_completion(recording(folder, "completions").body, is_text=True)
    assert isinstance(opened, Opened)
    assert delta == Delta(text=text)
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.usage.output_tokens is not None) == (FinishReason.LENGTH, True)


def test_a_real_stream_of_a_completion_is_read() -> None:
    body = recording("mlx_lm-0.32.2-tiny-llama", "completions_stream").body
    payloads = [(b"", line[6:]) for line in body.split(b"\n") if line.startswith(b"data: ")]
    events = list(ChunkReader(is_text=True).read(payloads))
    assert events[1] == Delta(text="! How can I")
    assert events[-1] == Finish(FinishReason.LENGTH, Usage())


def test_a_chat_is_no_completion_and_a_completion_no_chat() -> None:
    chat = b'{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}'
    text = b'{"choices":[{"text":"Hi","finish_reason":"stop"}]}'
    assert reason_of(read_completion, chat, is_text=True) == "MALFORMED_ANSWER"
    assert reason_of(read_completion, text) == "MALFORMED_ANSWER"


@given(
    st.lists(
        st.sampled_from(["a", "b" * 1000, "c" * (BATCH_CHARS // 2), "d" * (BATCH_CHARS + 1)]),
        min_size=1,
        max_size=200,
    )
)
def test_batches_hold_every_text_once_and_in_order(texts: list[str]) -> None:
    cut = list(batches(texts))
    assert [text for batch in cut for text in batch] == texts
    for batch in cut:
        assert 1 <= len(batch) <= BATCH_TEXTS
        assert len(batch) == 1 or sum(map(len, batch)) <= BATCH_CHARS


def test_dimensions_are_sent_only_when_they_are_asked_for() -> None:
    assert "dimensions" not in json.loads(embeddings_body(["a"], model="m", dimensions=None))
    assert json.loads(embeddings_body(["a"], model="m", dimensions=3))["dimensions"] == 3


def test_real_embeddings_are_read() -> None:
    model, vectors = read_embeddings(recording("llama-server-embeddings", "emb").body, texts=2)
    assert (model, [len(vector) for vector in vectors.values]) == ("emb", [128, 128])
    assert vectors.values[0][0] == pytest.approx(-0.02655157633125782)
    assert vectors.usage.input_tokens == 4


def test_vectors_are_put_into_the_order_of_their_texts() -> None:
    data = [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1]}]
    _, vectors = read_embeddings(json.dumps({"data": data}).encode(), texts=2)
    assert [vector.tolist() for vector in vectors.values] == [[1], [2]]


@pytest.mark.parametrize(
    "body",
    [
        embeddings([1.0]),
        embeddings([1.0], [1.0], [1.0]),
        json.dumps({"data": [{"index": 0, "embedding": [1]}] * 2}).encode(),
        json.dumps({"data": [{"index": 0, "embedding": [1]}, {"index": [1], "embedding": [1]}]}).encode(),
        embeddings([1.0], []),
        embeddings([1.0], None),
        embeddings([1.0], ["a"]),
        embeddings([1.0], [None]),
        embeddings([1.0], [[1.0], [2.0]]),
        embeddings([1.0], [1e300]),
        b'{"data":{"0":[1]}}',
        b"{}",
        b"[]",
        b"<html>",
    ],
    ids=["one", "three", "twice", "index", "empty", "null", "text", "nulls", "per token", "huge", "object", "none", "list", "page"],
)  # fmt: skip
def test_an_answer_without_a_vector_for_every_text_is_none(body: bytes) -> None:
    assert reason_of(read_embeddings, body, texts=2) in {"MALFORMED_ANSWER", "NOT_AN_API"}


def test_an_error_inside_a_200_is_a_failure() -> None:
    assert reason_of(read_embeddings, b'{"error":"No models loaded"}', texts=1) == "NO_MODEL_LOADED"
    assert reason_of(read_embeddings, b"  ", texts=1) == "EMPTY_ANSWER"


def test_batches_of_one_call_must_have_one_length() -> None:
    parts = [
        read_embeddings(embeddings([1.0, 2.0]), texts=1)[1],
        read_embeddings(embeddings([1.0]), texts=1)[1],
    ]
    assert reason_of(joined, parts, dimensions=None) == "MALFORMED_ANSWER"


def test_other_dimensions_than_asked_for_are_told_with_both_numbers() -> None:
    part = read_embeddings(embeddings([1.0, 2.0]), texts=1)[1]
    with pytest.raises(BackendFailure) as caught:
        joined([part], dimensions=256)
    assert caught.value.blame is Blame.CALLER
    assert "vectors of 2 numbers, not 256; leave dimensions out" in caught.value.told


def test_the_cost_of_batches_is_added_up_and_unknown_if_one_is() -> None:
    known = read_embeddings(embeddings([1.0], usage={"prompt_tokens": 3}), texts=1)[1]
    unknown = read_embeddings(embeddings([1.0]), texts=1)[1]
    assert joined([known, known], dimensions=None).usage.input_tokens == 6
    assert joined([known, unknown], dimensions=None).usage.input_tokens is None


def test_scores_are_put_into_the_order_of_their_documents() -> None:
    results = [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": -2}]
    _, read = read_scores(json.dumps({"results": results}).encode(), documents=2)
    assert read.values == (-2.0, 0.9)


@pytest.mark.parametrize("values", [(0.5,), (0.5, 0.5, 0.5), (0.5, "a"), (0.5, None), (0.5, True)])
def test_a_ranking_without_a_number_for_every_document_is_none(values: tuple[object, ...]) -> None:
    assert reason_of(read_scores, scores(*values), documents=2) == "MALFORMED_ANSWER"
