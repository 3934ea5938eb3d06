"""A stream that may be carried on: asked for by a header, declared in the answer and in the log."""

from __future__ import annotations

import pytest

from kala.errors import UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.gateway_suite import Suite, words_of
from tests.fakes.scripted_inference import BACKEND, MODEL, finish, route, text

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODY = {"model": "auto", "messages": [{"role": "user", "content": "Tell."}]}
BROKEN = pb.Attempt(backend="backends/mlx", model="m", reason="STREAM_CUT")
SPLICED = pb.Attempt(backend=BACKEND, model=MODEL, spliced=True)
DIGEST = bytes(range(32))


def carried_on() -> pb.ChatResponse:
    end = finish()
    end.finish.ClearField("attempts")
    end.finish.attempts.extend([BROKEN, SPLICED])
    end.finish.derived_digest = DIGEST
    return end


@pytest.mark.parametrize(
    ("headers", "is_stream", "policy"),
    [
        ({}, True, pb.MID_STREAM_POLICY_ERROR),
        ({"x-kala-mid-stream": "error"}, True, pb.MID_STREAM_POLICY_ERROR),
        ({"x-kala-mid-stream": "continue"}, True, pb.MID_STREAM_POLICY_CONTINUE),
        # An answer that is no stream has nothing that could be carried on.
        ({"x-kala-mid-stream": "continue"}, False, pb.MID_STREAM_POLICY_UNSPECIFIED),
    ],
)
async def test_a_header_says_whether_a_broken_stream_is_carried_on(
    suite: Suite, headers: dict[str, str], is_stream: bool, policy: int
) -> None:
    await suite.post("/v1/chat/completions", {**BODY, "stream": is_stream}, headers=headers)
    assert suite.inference.chats[-1].mid_stream == policy


async def test_a_policy_that_nobody_knows_names_the_header(suite: Suite) -> None:
    headers = {"x-kala-mid-stream": "hope"}
    response = await suite.post("/v1/chat/completions", {**BODY, "stream": True}, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "x-kala-mid-stream: must be error or continue"
    assert suite.inference.chats == []


async def test_a_splice_is_declared_to_the_reader_and_in_the_log(suite: Suite) -> None:
    suite.inference.script = lambda _: [route(), text("Once upon"), text(" a time."), carried_on()]
    _, events = await suite.stream()
    assert words_of(events) == "Once upon a time."
    first, second = events[-2]["kala"]["attempts"]
    assert (first["outcome"], first.get("spliced")) == ("failed", None)
    assert (second["outcome"], second["spliced"]) == ("ok", True)
    (outcome,) = await suite.leaves(kind="chat.outcome")
    attributes = dict(outcome["attributes"])
    assert attributes["result.splices"] == "1"
    assert attributes["result.derived"] == DIGEST.hex()


async def test_what_was_added_is_in_the_log_also_where_it_did_not_help(suite: Suite) -> None:
    tried = pb.ChatFinish(attempts=[BROKEN], derived_digest=DIGEST)
    suite.inference.trailers = (("kala-attempts-bin", tried.SerializeToString()),)
    error = UnavailableError("mlx closed the connection", reason="BACKEND_FAILED_MID_STREAM")
    suite.inference.script = lambda _: [route(), text("Once upon"), error]
    await suite.stream()
    (outcome,) = await suite.leaves(kind="chat.outcome")
    assert outcome["result"]["code"] == "BACKEND_FAILED_MID_STREAM"
    assert dict(outcome["attributes"])["result.derived"] == DIGEST.hex()
