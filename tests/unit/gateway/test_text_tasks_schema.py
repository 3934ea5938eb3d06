"""Requests for completions, embeddings and rankings are read as clients write them; mistakes are named with their cure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.text_tasks_schema import (
    MAX_DOCUMENTS,
    MAX_INPUTS,
    MAX_QUERY_CHARS,
    MAX_TEXT_CHARS,
    parse_completion_request,
    parse_embedding_request,
    parse_rerank_request,
)
from kala.errors import InvalidArgumentError


def test_one_text_and_a_list_of_texts_are_embedded() -> None:
    assert parse_embedding_request({"input": "one"}).texts == ["one"]
    request = parse_embedding_request({"input": ["one", "two"], "model": "m", "user": "a", "dimensions": 3})
    assert (request.texts, request.person, request.dimensions) == (["one", "two"], "a", 3)


def test_the_largest_list_is_taken() -> None:
    assert len(parse_embedding_request({"input": ["x"] * MAX_INPUTS}).texts) == MAX_INPUTS


def test_one_prompt_may_come_in_a_list_and_stops_in_two_forms() -> None:
    assert parse_completion_request({"prompt": ["Once"]}).text == "Once"
    assert parse_completion_request({"prompt": "Once", "stop": "a"}).stops == ["a"]
    assert parse_completion_request({"prompt": "Once", "stop": ["a", "b"]}).stops == ["a", "b"]
    assert parse_completion_request({"prompt": "Once", "stop": []}).stops == []


def test_what_openai_clients_send_by_default_is_accepted() -> None:
    request = parse_completion_request(
        {"prompt": "Once", "n": 1, "best_of": 1, "logprobs": None, "logit_bias": {}, "echo": False, "suffix": None}
    )  # fmt: skip
    assert not request.echo
    assert parse_embedding_request({"input": "one", "encoding_format": "base64"}).encoding_format == "base64"


def test_documents_may_be_texts_or_objects() -> None:
    request = parse_rerank_request({"query": "q", "documents": ["one", {"text": "two"}], "top_n": 1})
    assert (request.texts, request.top_n) == (["one", "two"], 1)


@pytest.mark.parametrize(
    ("parse", "body", "field", "says"),
    [
        (parse_embedding_request, {}, "input", "is required"),
        (parse_embedding_request, {"input": ""}, "input", "at least 1 character"),
        (parse_embedding_request, {"input": []}, "input", "at least 1 entry"),
        (parse_embedding_request, {"input": ["a", ""]}, "input[1]", "at least 1 character"),
        (parse_embedding_request, {"input": ["a"] * (MAX_INPUTS + 1)}, "input", "at most 2048 entries"),
        (parse_embedding_request, {"input": ["a" * (MAX_TEXT_CHARS + 1)]}, "input[0]", "at most 1048576"),
        (parse_embedding_request, {"input": {"text": "a"}}, "input", "a string or a list of strings"),
        (parse_embedding_request, {"input": [1, 2]}, "input[0]", "token ids, which no judge can read"),
        (parse_embedding_request, {"input": [[1, 2]]}, "input[0]", "token ids, which no judge can read"),
        (parse_embedding_request, {"input": ["a", 3]}, "input[1]", "token ids"),
        (parse_embedding_request, {"input": "a", "dimensions": 0}, "dimensions", "at least 1"),
        (parse_embedding_request, {"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or"),
        (parse_embedding_request, {"input": "a", "made_up": 1}, "made_up", "is not a parameter"),
        (parse_completion_request, {}, "prompt", "is required"),
        (parse_completion_request, {"prompt": [1, 2]}, "prompt[0]", "token ids"),
        (parse_completion_request, {"prompt": ["a", "b"]}, "prompt", "only one text"),
        (parse_completion_request, {"prompt": "a", "n": 2}, "n", "only 1 is supported"),
        (parse_completion_request, {"prompt": "a", "best_of": 3}, "best_of", "only 1 is supported"),
        (parse_completion_request, {"prompt": "a", "logprobs": 5}, "logprobs", "/v1/chat/completions"),
        (parse_completion_request, {"prompt": "a", "logit_bias": {"1": 2}}, "logit_bias", "token ids"),
        (parse_completion_request, {"prompt": "a", "temperature": 3}, "temperature", "at most 2"),
        (parse_completion_request, {"prompt": "a", "max_tokens": 0}, "max_tokens", "at least 1"),
        (parse_completion_request, {"prompt": "a", "stream_options": {}}, "stream_options", "stream: true"),
        (parse_rerank_request, {"documents": ["a"]}, "query", "is required"),
        (parse_rerank_request, {"query": "q" * (MAX_QUERY_CHARS + 1), "documents": ["a"]}, "query", "at most 65536"),
        (parse_rerank_request, {"query": "q", "documents": []}, "documents", "at least 1 entry"),
        (parse_rerank_request, {"query": "q", "documents": ["a"] * (MAX_DOCUMENTS + 1)}, "documents", "at most 1000"),
        (parse_rerank_request, {"query": "q", "documents": [{"title": "a"}]}, "documents[0].text", "is required"),
        (parse_rerank_request, {"query": "q", "documents": [["a"]]}, "documents[0]", "a string or an object"),
        (parse_rerank_request, {"query": "q", "documents": ["a"], "top_n": 0}, "top_n", "at least 1"),
        (parse_rerank_request, {"query": "q", "documents": ["a"], "top_n": 2**32}, "top_n", "at most 4294967295"),
        (parse_rerank_request, {"query": "q", "documents": ["a"], "max_tokens_per_doc": 9}, "max_tokens_per_doc", "never cut"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_field_and_its_cure(
    parse: Callable[[dict[str, Any]], object], body: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(body)
    assert caught.value.field == field
    assert says in caught.value.problem


def test_token_ids_and_unsupported_parameters_have_their_own_codes() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_embedding_request({"input": [[1]]})
    assert caught.value.reason == "UNJUDGED_PART"
    with pytest.raises(InvalidArgumentError) as caught:
        parse_completion_request({"prompt": "a", "n": 2})
    assert caught.value.reason == "UNSUPPORTED_PARAMETER"
