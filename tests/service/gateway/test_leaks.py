"""The leak matrix: a forbidden span, split at every boundary, in every field a model can fill, whole and streamed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest

from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.gateway_suite import Suite
from tests.fakes.scripted_ethics import FORBIDDEN
from tests.fakes.scripted_inference import finish, route

pytestmark = pytest.mark.asyncio(loop_scope="session")

REFUSAL = "I cannot help with that."
ACTION = {"model": "auto", "messages": [{"role": "ROLE_USER", "content": [{"text": "Hi"}]}]}
TOOLS = [{"type": "function", "function": {"name": "declared"}}]


def _call(**fields: str) -> pb.ChatDelta:
    return pb.ChatDelta(tool_calls=[pb.ToolCall(index=0, **fields)])


def _chosen(piece: str) -> pb.ChatDelta:
    return pb.ChatDelta(logprobs=[pb.TokenLogprob(token=piece, logprob=-1)])


def _alternative(piece: str) -> pb.ChatDelta:
    entry = pb.TokenLogprob(token="x", logprob=-1, top=[pb.TokenLogprob(token=piece, logprob=-2)])
    return pb.ChatDelta(logprobs=[entry])


def _bytes_of(token: str) -> pb.ChatDelta:
    alternative = pb.TokenLogprob(token="x", token_bytes=token.encode())
    entry = pb.TokenLogprob(token="x", token_bytes=token.encode(), top=[alternative])
    return pb.ChatDelta(logprobs=[entry])


FIELDS: dict[str, Callable[[str], pb.ChatDelta]] = {
    "text": lambda piece: pb.ChatDelta(text=piece),
    "reasoning": lambda piece: pb.ChatDelta(reasoning=piece),
    "refusal": lambda piece: pb.ChatDelta(refusal=piece),
    "tool arguments": lambda piece: _call(arguments=piece),
    "chosen token": _chosen,
    "alternative token": _alternative,
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_no_split_of_a_forbidden_word_leaks_any_of_it(
    suite: Suite, field: str, *, is_stream: bool
) -> None:
    make = FIELDS[field]
    for offset in range(1, len(FORBIDDEN)):
        pieces = ["~~~~~~~~~~~~~~~~", FORBIDDEN[:offset], FORBIDDEN[offset:], "~~~~"]
        head = [pb.ChatDelta(tool_calls=[pb.ToolCall(index=0, id="c", name="declared")])]
        deltas = [*(head if field == "tool arguments" else []), *map(make, pieces)]
        suite.inference.script = lambda _, deltas=deltas: [
            route(), *(pb.ChatResponse(delta=delta) for delta in deltas), finish(),
        ]  # fmt: skip
        if is_stream:
            response, events = await suite.stream(tools=TOOLS, logprobs=True, top_logprobs=1)
            seen = "".join(_strings(events[:-2]))
            assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
        else:
            response = await suite.chat(tools=TOOLS, logprobs=True, top_logprobs=1)
            seen = "".join(_strings(response.json()["choices"]))
        assert response.status_code == 200
        # Not even its beginning: `~` is all that may have left before the constitution's words.
        assert set(seen.partition(REFUSAL)[0]) <= {"~"} | set("assistantdeclaredcx")
        assert FORBIDDEN not in seen


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_a_made_up_tool_name_is_the_models_words_too(suite: Suite, *, is_stream: bool) -> None:
    call = pb.ChatResponse(delta=_call(id="c", name=FORBIDDEN, arguments="{}"))
    suite.inference.script = lambda _: [route(), call, finish(pb.FINISH_REASON_TOOL_CALLS)]
    seen = (
        json.dumps((await suite.stream(tools=TOOLS))[1])
        if is_stream
        else (await suite.chat(tools=TOOLS)).text
    )
    assert REFUSAL in seen
    assert FORBIDDEN not in seen


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_the_id_of_a_call_is_the_backends_words_too(suite: Suite, *, is_stream: bool) -> None:
    call = pb.ChatResponse(delta=_call(id=FORBIDDEN, name="declared", arguments="{}"))
    suite.inference.script = lambda _: [route(), call, finish(pb.FINISH_REASON_TOOL_CALLS)]
    seen = (
        json.dumps((await suite.stream(tools=TOOLS))[1])
        if is_stream
        else (await suite.chat(tools=TOOLS)).text
    )
    assert REFUSAL in seen
    assert FORBIDDEN not in seen


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_bytes_of_tokens_say_only_what_was_checked(suite: Suite, *, is_stream: bool) -> None:
    suite.inference.script = lambda _: [
        route(), pb.ChatResponse(delta=pb.ChatDelta(text="x")), pb.ChatResponse(delta=_bytes_of(FORBIDDEN)), finish(),
    ]  # fmt: skip
    seen = json.dumps(
        (await suite.stream(logprobs=True, top_logprobs=1))[1]
        if is_stream
        else (await suite.chat(logprobs=True, top_logprobs=1)).json()
    )
    assert json.dumps(list(FORBIDDEN.encode())) not in seen


async def test_bytes_of_tokens_say_no_more_over_the_bridge(suite: Suite) -> None:
    suite.inference.script = lambda _: [route(), pb.ChatResponse(delta=_bytes_of(FORBIDDEN)), finish()]
    response = await suite.post("/kala/v1/inference/chat", ACTION)
    assert response.json()["kala"]["decision"]["outcome"] == "REFUSE", response.text
    assert base64.b64encode(FORBIDDEN.encode()).decode() not in response.text


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_a_backends_own_words_about_its_failure_are_checked(suite: Suite, *, is_stream: bool) -> None:
    said = InvalidArgumentError("", f"llamacpp refused the request: {FORBIDDEN}", reason="BACKEND_REJECTED")
    suite.inference.script = lambda _: [said]
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": is_stream}
    response = await suite.post("/v1/chat/completions", body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "backend_rejected")
    assert FORBIDDEN not in response.text
    assert (await suite.leaves(kind="chat.outcome"))[0]["result"]["code"] == "BACKEND_REJECTED"


async def test_a_backends_own_words_about_its_failure_are_checked_over_the_bridge(suite: Suite) -> None:
    said = InvalidArgumentError("", f"llamacpp refused the request: {FORBIDDEN}", reason="BACKEND_REJECTED")
    suite.inference.script = lambda _: [said]
    response = await suite.post("/kala/v1/inference/chat", ACTION)
    assert response.status_code == 400
    assert FORBIDDEN not in response.text


@pytest.mark.parametrize(
    ("usage", "model"),
    [(2**53, "m"), (2**63, "m"), (7, "m" * 2000)],
    ids=["more tokens than the log counts", "more than 63 bits", "an endless name"],
)
async def test_nothing_that_a_backend_claims_costs_the_record_of_what_it_said(
    suite: Suite, usage: int, model: str
) -> None:
    start, end = route(), finish()
    start.route.model = start.route.attempts[0].model = end.finish.attempts[0].model = model
    end.finish.usage.input_tokens = usage
    suite.inference.script = lambda _: [start, pb.ChatResponse(delta=pb.ChatDelta(text="Hello")), end]
    response, events = await suite.stream()
    assert (response.status_code, events[-1]) == (200, "[DONE]")
    (outcome,) = await suite.leaves(kind="chat.outcome")
    assert outcome["result"]["status"] == "ok"


@pytest.mark.parametrize("piece", ["word " * 50_000, "\x01" * 50_000], ids=["words", "what JSON spells long"])
async def test_an_answer_without_end_is_ended_while_its_record_still_holds_it(
    suite: Suite, piece: str
) -> None:
    delta = pb.ChatResponse(delta=pb.ChatDelta(text=piece))
    suite.inference.script = lambda _: [route(), *[delta] * 160, finish()]
    response, events = await suite.stream()
    assert (response.status_code, events[-1]["error"]["code"]) == (200, "answer_too_long")
    (outcome,) = await suite.leaves(kind="chat.outcome")
    assert (outcome["result"]["status"], outcome["result"]["code"]) == ("error", "ANSWER_TOO_LONG")
    assert events[-1]["kala"]["receipt"]["status"] == "LOGGED"


def _strings(value: object) -> list[str]:
    """Collect what a model could have written into an answer."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    if isinstance(value, dict):
        names = ("content", "reasoning_content", "refusal", "arguments", "token", "name")
        return [
            text
            for key, item in value.items()
            if key in names or isinstance(item, dict | list)
            for text in _strings(item)
        ]
    return []
