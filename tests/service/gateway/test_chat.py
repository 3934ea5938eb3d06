"""One chat over HTTP: answers, refusals, receipts, streams."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from kala.errors import UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.gateway_suite import Suite, words_of
from tests.fakes.scripted_ethics import FORBIDDEN
from tests.fakes.scripted_inference import REPLY, finish, route, saying, text

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_an_answer_is_a_completion_with_a_receipt_that_verifies_offline(suite: Suite) -> None:
    response = await suite.chat()
    assert response.status_code == 200
    answer = ChatCompletion.model_validate_json(response.content, strict=True)
    assert answer.choices[0].message.content == REPLY
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "fake-model"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 12
    kala = response.json()["kala"]
    assert kala["decision"]["outcome"] == "ALLOW"
    assert kala["receipt"]["status"] == "LOGGED"
    leaf = await suite.receipt(kala["receipt"]["id"])
    assert leaf.hash.hex() == kala["receipt"]["leaf_hash"]
    assert leaf.value["type"] == "chat.outcome"
    assert leaf.value["result"]["status"] == "ok"


async def test_every_answer_carries_the_four_headers(suite: Suite) -> None:
    response = await suite.chat()
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers["x-kala-receipt"] == response.json()["kala"]["receipt"]["id"]
    assert response.headers["x-kala-attempts"] == "fake=ok"
    assert 0 < float(response.headers["x-kala-overhead-ms"]) < 5000


async def test_a_sane_request_id_is_kept_and_another_is_replaced(suite: Suite) -> None:
    kept = await suite.get("/v1/models", headers={"x-request-id": "my-id.1"})
    assert kept.headers["x-request-id"] == "my-id.1"
    replaced = await suite.get("/v1/models", headers={"x-request-id": "no spaces, please"})
    assert replaced.headers["x-request-id"].startswith("req_")


async def test_the_log_holds_an_intent_and_an_outcome_that_name_each_other(suite: Suite) -> None:
    kala = (await suite.chat()).json()["kala"]
    intent, outcome = await suite.leaves()
    assert (intent["type"], outcome["type"]) == ("chat.intent", "chat.outcome")
    assert outcome["intent"] == intent["idempotency_key"]
    assert kala["intent"] == f"rcpt_{intent['idempotency_key']}"
    assert intent["action"]["digest"] == outcome["action"]["digest"]
    assert intent["decision"]["outcome"] == "ALLOW"
    assert outcome["model"] == {
        "requested": "auto", "served": "fake-model", "backend": "backends/fake",
        "base_digest": (b"b" * 32).hex(), "adapter": None,
    }  # fmt: skip
    assert [commitment["kind"] for commitment in intent["commitments"]] == ["request"]
    assert [commitment["kind"] for commitment in outcome["commitments"]] == ["generated", "released"]


async def test_the_salt_in_the_answer_opens_the_commitment_to_its_text(suite: Suite) -> None:
    body = (await suite.chat()).json()
    salt = bytes.fromhex(body["kala"]["receipt"]["openings"]["released"])
    (outcome,) = await suite.leaves(kind="chat.outcome")
    committed = next(each["hmac"] for each in outcome["commitments"] if each["kind"] == "released")
    words = body["choices"][0]["message"]["content"].encode()
    assert hmac.new(salt, words, hashlib.sha256).hexdigest() == committed


async def test_judge_and_actor_get_the_same_bytes(suite: Suite) -> None:
    await suite.chat("Hi", temperature=0, max_completion_tokens=5, stop="x", seed=3)
    (action,) = suite.inference.chats
    assert suite.ethics.actions[0].action.value == action.SerializeToString(deterministic=True)
    assert action.sampling.max_output_tokens == 5
    assert action.sampling.HasField("temperature")
    assert list(action.sampling.stop) == ["x"]


@pytest.mark.parametrize(
    ("words", "outcome", "reason"),
    [
        ("please refuse", "REFUSE", "content_filter"),
        ("please redirect", "REDIRECT", "stop"),
        ("please ask", "ASK_CLARIFICATION", "stop"),
    ],
)
async def test_what_ethics_does_not_allow_never_reaches_inference(
    suite: Suite, words: str, outcome: str, reason: str
) -> None:
    response = await suite.chat(words)
    answer = ChatCompletion.model_validate_json(response.content, strict=True)
    assert response.status_code == 200
    assert answer.choices[0].finish_reason == reason
    assert "I cannot help with that." in (answer.choices[0].message.content or "")
    assert "judge scripted: law 1" in (answer.choices[0].message.content or "")
    assert response.json()["kala"]["decision"]["outcome"] == outcome
    assert response.headers["x-kala-attempts"] == "none"
    assert suite.inference.chats == []
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    assert leaf.value["type"] == "chat.refused"
    assert leaf.value["decision"]["outcome"] == outcome


async def test_a_refused_request_streams_its_refusal(suite: Suite) -> None:
    response, events = await suite.stream("please refuse")
    assert response.status_code == 200
    for event in events[:-1]:
        ChatCompletionChunk.model_validate(event)
    assert "I cannot help with that." in words_of(events)
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
    assert events[-2]["kala"]["receipt"]["id"] == response.headers["x-kala-receipt"]
    assert suite.inference.chats == []


async def test_an_output_that_is_refused_is_replaced_by_words_and_kept_from_the_reader(suite: Suite) -> None:
    suite.inference.script = lambda _: saying("well, ", FORBIDDEN, " indeed")
    response = await suite.chat()
    assert FORBIDDEN not in response.text
    assert response.json()["choices"][0]["finish_reason"] == "content_filter"
    assert response.json()["kala"]["decision"]["stage"] == "output"
    (outcome,) = await suite.leaves(kind="chat.outcome")
    assert outcome["result"]["status"] == "refused"
    generated, released = outcome["commitments"]
    assert generated["hmac"] != released["hmac"]
    assert generated["ciphertext_sha256"] is not None


async def test_a_stream_is_chunks_with_the_outcome_on_the_last_one(suite: Suite) -> None:
    suite.inference.script = lambda _: saying("The capital ", "of France ", "is Paris.")
    response, events = await suite.stream()
    for event in events[:-1]:
        ChatCompletionChunk.model_validate(event)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert words_of(events) == "The capital of France is Paris."
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-1] == "[DONE]"
    last = events[-2]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["kala"]["intent"] == response.headers["x-kala-receipt"]
    intent, outcome = await suite.leaves()
    assert response.headers["x-kala-receipt"] == f"rcpt_{intent['idempotency_key']}"
    assert last["kala"]["receipt"]["id"] == f"rcpt_{outcome['idempotency_key']}"
    assert all("kala" not in event for event in events[:-2])


async def test_usage_comes_in_a_chunk_without_choices_when_it_is_asked_for(suite: Suite) -> None:
    _, events = await suite.stream(stream_options={"include_usage": True})
    *_, last, done = events
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5
    assert "kala" in last
    assert all(event["usage"] is None for event in events[:-2])


async def test_forbidden_words_never_enter_a_stream(suite: Suite) -> None:
    suite.inference.script = lambda _: saying("well, ", FORBIDDEN[:5], FORBIDDEN[5:], " indeed")
    _, events = await suite.stream()
    assert FORBIDDEN[0:5] not in words_of(events)
    assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
    assert events[-2]["kala"]["decision"]["outcome"] == "REFUSE"
    assert "choices" in events[-2]


async def test_tool_calls_pass_through_after_their_check(suite: Suite) -> None:
    call = pb.ToolCall(id="call_x", name="weather", arguments='{"city":', index=0)
    more = pb.ToolCall(arguments='"Paris"}', index=0)
    suite.inference.script = lambda _: [
        route(),
        pb.ChatResponse(delta=pb.ChatDelta(tool_calls=[call])),
        pb.ChatResponse(delta=pb.ChatDelta(tool_calls=[more])),
        finish(pb.FINISH_REASON_TOOL_CALLS),
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    response = await suite.chat(tools=tools, tool_choice="auto")
    answer = ChatCompletion.model_validate_json(response.content, strict=True)
    assert answer.choices[0].finish_reason == "tool_calls"
    (made,) = answer.choices[0].message.tool_calls or []
    assert made.type == "function"
    assert (made.id, made.function.name, made.function.arguments) == ("call_x", "weather", '{"city":"Paris"}')
    assert answer.choices[0].message.content is None
    _, events = await suite.stream(tools=tools)
    deltas = [
        call
        for event in events[:-1]
        for choice in event["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]
    assert "".join(delta["function"]["arguments"] for delta in deltas) == '{"city":"Paris"}'
    assert deltas[0]["id"] == "call_x"


async def test_reasoning_and_log_probabilities_are_passed_on(suite: Suite) -> None:
    entry = pb.TokenLogprob(
        token="Hi", logprob=-0.1, token_bytes=b"Hi", top=[pb.TokenLogprob(token="Yo", logprob=-2)]
    )
    suite.inference.script = lambda _: [
        route(),
        pb.ChatResponse(delta=pb.ChatDelta(reasoning="thinking", text="Hi", logprobs=[entry])),
        finish(),
    ]
    response = await suite.chat(logprobs=True, top_logprobs=1)
    answer = ChatCompletion.model_validate_json(response.content, strict=True)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].token == "Yo"
    assert response.json()["choices"][0]["message"]["reasoning_content"] == "thinking"


async def test_attempts_of_failed_backends_are_named(suite: Suite) -> None:
    failed = pb.Attempt(backend="backends/lmstudio", model="m", reason="CONNECTION_REFUSED")
    served = pb.Attempt(backend="backends/fake", model="fake-model")
    end = finish()
    end.finish.ClearField("attempts")
    end.finish.attempts.extend([failed, served])
    suite.inference.script = lambda _: [route(attempts=[failed]), text("Hi"), end]
    response = await suite.chat()
    assert response.headers["x-kala-attempts"] == "lmstudio=CONNECTION_REFUSED, fake=ok"
    (outcome,) = await suite.leaves(kind="chat.outcome")
    assert [attempt["outcome"] for attempt in outcome["result"]["attempts"]] == ["failed", "ok"]


async def test_an_expired_clearance_is_judged_again_once(suite: Suite) -> None:
    suite.ethics.clearance_age_seconds = [300]
    response = await suite.chat()
    assert response.status_code == 200, response.text
    assert len(suite.ethics.actions) == 2
    (outcome,) = await suite.leaves(kind="chat.outcome")
    assert "result.rejudged" in dict(outcome["attributes"])


async def test_a_clearance_that_expires_twice_is_given_up(suite: Suite) -> None:
    suite.ethics.clearance_age_seconds = [300, 300]
    response = await suite.chat()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "clearance_expired"
    assert suite.inference.chats == []


async def test_all_backends_failing_gives_their_reasons_and_attempts(suite: Suite) -> None:
    tried = pb.ChatFinish(
        attempts=[pb.Attempt(backend="backends/mlx", model="m", reason="CONNECTION_REFUSED")]
    )
    suite.inference.trailers = (("kala-attempts-bin", tried.SerializeToString()),)
    error = UnavailableError("no backend answered: mlx: connection refused", reason="ALL_BACKENDS_FAILED")
    suite.inference.script = lambda _: [error]
    response = await suite.chat()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "backends_unavailable"
    assert "mlx: connection refused" in response.json()["error"]["message"]
    assert response.headers["x-kala-attempts"] == "mlx=CONNECTION_REFUSED"
    (outcome,) = await suite.leaves(kind="chat.outcome")
    assert outcome["result"]["status"] == "error"
    assert outcome["result"]["attempts"][0]["reason"] == "CONNECTION_REFUSED"


async def test_both_peers_see_their_calls_end_by_themselves(suite: Suite) -> None:
    for _ in range(3):
        await suite.chat()
    assert suite.ethics.endings == ["decided"] * 3
    assert not suite.inference.cancelled.is_set()
