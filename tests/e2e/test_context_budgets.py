"""Conversations over the context, through the whole suite: refused with both numbers, or fitted where that is asked for."""

from __future__ import annotations

import re
from typing import Any

import httpx

from tests.e2e.suites import Suite
from tests.fakes.lm_studio import FakeLMStudio

QUESTION = {"role": "user", "content": "What is the capital of France?"}
SENTENCES = "The train leaves the station at noon and reaches the sea in the evening. "


def ask(suite: Suite, messages: list[dict[str, str]], *, model: str, truncation: str = "") -> httpx.Response:
    headers = {"authorization": f"Bearer {suite.key}"}
    if truncation:
        headers["x-kala-truncation"] = truncation
    body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": 40}
    return httpx.post(f"{suite.url}/v1/chat/completions", json=body, headers=headers, timeout=120)


def long_conversation(turns: int) -> list[dict[str, str]]:
    turn = [
        {"role": "user", "content": f"Read this: {SENTENCES * 3}"},
        {"role": "assistant", "content": "I have read about the train and the sea."},
    ]
    return [*(turn * turns), QUESTION]


def test_the_embedded_model_reads_exactly_what_was_fitted(suite: Suite) -> None:
    refused = ask(suite, long_conversation(20), model="kala-demo")
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "context_length_exceeded")
    assert re.search(r"has \d{3,} tokens.*context of 512 tokens.*shorten", error["message"])

    answer = ask(suite, long_conversation(20), model="kala-demo", truncation="keep-system-and-tail")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    fitted = body["kala"]["fitted"]
    assert not fitted["estimated"]
    assert fitted["dropped_messages"] % 2 == 0
    assert fitted["prompt_tokens"] > 512 >= fitted["fitted_tokens"] + 40
    assert body["usage"]["prompt_tokens"] == fitted["fitted_tokens"]


def test_a_document_is_cut_to_the_content_budget_before_lm_studio_sees_it(
    suite: Suite, upstream: FakeLMStudio
) -> None:
    document = [{"role": "user", "content": f"What is this about?\n\n{SENTENCES * 400}"}]
    answer = ask(suite, document, model="tiny-qwen", truncation="content-budget")
    assert answer.status_code == 200, answer.text
    fitted = answer.json()["kala"]["fitted"]
    # A context of 4,096 tokens is that of a 3B model: 2,600 tokens of content.
    assert 2400 < fitted["fitted_tokens"] < 2700
    read = upstream.asked[-1]["messages"][-1]["content"]
    assert read.startswith("What is this about?")
    assert read.endswith("was left out to fit the model's context.]")
    assert len(read) < 14_000
