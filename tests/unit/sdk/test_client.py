"""The client against a scripted gateway: values in, typed errors out, retries only where they are safe."""

from __future__ import annotations

import json

import httpx
import pytest

from kala import errors
from kala.client import KalaClient
from kala.client_wire import Retries
from kala.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    KalaError,
    ModelNotAvailable,
    ResourceExhaustedError,
    UnavailableError,
)
from kala.target import Target
from tests.fakes.gateway import RECEIPT_ID, FakeGateway, completion, failure, stream

STEADY = Retries(jitter=lambda: 0.5)
QUESTION = [{"role": "user", "content": "hello"}]


def client_of(gateway: FakeGateway, pauses: list[float] | None = None) -> KalaClient:
    waited = [] if pauses is None else pauses
    return KalaClient(Target("http://127.0.0.1:8800", "kala_x"), gateway.transport, waited.append, STEADY)


def test_an_answer_carries_its_decision_and_receipt() -> None:
    gateway = FakeGateway([completion("Hi.")])
    with client_of(gateway) as client:
        reply = client.chat(QUESTION, max_tokens=9)
    assert (reply.text, reply.allowed, reply.output_tokens) == ("Hi.", True, 5)
    assert reply.receipt is not None
    assert (reply.receipt.id, reply.receipt.index) == (RECEIPT_ID, 7)
    assert reply.attempts == ("lmstudio: ok",)
    assert gateway.chats == [{"model": "auto", "messages": QUESTION, "max_tokens": 9}]
    assert gateway.seen[0].headers["authorization"] == "Bearer kala_x"


def test_a_conversation_is_fitted_when_that_is_asked_for() -> None:
    answer = completion("Hi.").json()
    answer["kala"]["fitted"] = {"dropped_messages": 2}
    gateway = FakeGateway([httpx.Response(200, json=answer), stream("Hi."), completion("Hi.")])
    with client_of(gateway) as client:
        reply = client.chat(QUESTION, truncation="keep-system-and-tail")
        with client.stream(QUESTION, truncation="content-budget", provider="mlx") as streamed:
            list(streamed)
        client.chat(QUESTION)
    assert reply.fitted == {"dropped_messages": 2}
    assert streamed.reply.fitted is None
    named = [request.headers.get("x-kala-truncation") for request in gateway.seen]
    assert named == ["keep-system-and-tail", "content-budget", None]
    assert gateway.seen[1].headers["x-kala-provider"] == "mlx"


def test_a_role_and_a_provider_travel_as_headers() -> None:
    gateway = FakeGateway([completion("Hi.")])
    with client_of(gateway) as client:
        client.chat(QUESTION, role="rank", provider="lmstudio")
    headers = gateway.seen[0].headers
    assert (headers["x-kala-role"], headers["x-kala-provider"]) == ("rank", "lmstudio")


def test_a_refusal_is_an_answer() -> None:
    with client_of(FakeGateway([completion("No.", outcome="REFUSE", law=1)])) as client:
        reply = client.chat(QUESTION)
    assert not reply.allowed
    assert reply.decision is not None
    assert (reply.decision.outcome, reply.decision.law, reply.decision.path) == (
        "REFUSE",
        1,
        ("looked", "decided"),
    )


def test_a_stream_gives_its_pieces_and_then_the_whole_reply() -> None:
    with client_of(FakeGateway([stream("Hel", "lo.")])) as client, client.stream(QUESTION) as answer:
        with pytest.raises(InternalError):
            _ = answer.reply
        assert list(answer) == ["Hel", "lo."]
    assert (answer.reply.text, answer.reply.finish_reason, answer.reply.output_tokens) == (
        "Hello.",
        "stop",
        2,
    )
    assert answer.reply.receipt is not None


def test_a_stream_that_is_cut_is_an_error_and_not_an_answer() -> None:
    gateway = FakeGateway([stream("Hel", done=False)])
    with (
        client_of(gateway) as client,
        client.stream(QUESTION) as answer,
        pytest.raises(UnavailableError, match="ended before"),
    ):
        list(answer)


def test_a_broken_stream_that_is_read_again_is_still_no_answer() -> None:
    with client_of(FakeGateway([stream("Hel", done=False)])) as client, client.stream(QUESTION) as answer:
        with pytest.raises(UnavailableError):
            list(answer)
        assert list(answer) == []
        with pytest.raises(InternalError):
            _ = answer.reply


STRANGE_LINES = "one\u2028two\u2029three\x85four"
"""Ends of lines to Python and httpx, and not to JSON: the gateway sends them as they are."""


def test_characters_that_end_lines_elsewhere_end_none_in_a_stream() -> None:
    chunk = {"model": "tiny", "choices": [{"index": 0, "delta": {"content": STRANGE_LINES}}]}
    body = f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\ndata: [DONE]\n\n".encode()
    gateway = FakeGateway([httpx.Response(200, content=(body[at : at + 1] for at in range(len(body))))])
    with client_of(gateway) as client, client.stream(QUESTION) as answer:
        assert list(answer) == [STRANGE_LINES]
    assert answer.reply.text == STRANGE_LINES


def test_characters_that_end_lines_elsewhere_cost_no_tool_its_result() -> None:
    event = {
        "exit": {"status": "RUN_STATUS_OK", "result_json": json.dumps(STRANGE_LINES, ensure_ascii=False)}
    }
    gateway = FakeGateway([httpx.Response(200, content=json.dumps(event, ensure_ascii=False).encode())])
    with client_of(gateway) as client:
        assert client.run_tool({"tool": "shell", "arguments_json": "{}"}).success


def test_an_error_inside_a_stream_is_raised() -> None:
    body = b'data: {"error": {"message": "the model broke", "code": "internal_error"}}\n\n'
    gateway = FakeGateway([httpx.Response(200, content=body)])
    with (
        client_of(gateway) as client,
        client.stream(QUESTION) as answer,
        pytest.raises(InternalError, match="broke"),
    ):
        list(answer)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_value", InvalidArgumentError),
        (413, "request_too_large", InvalidArgumentError),
        (401, "invalid_api_key", errors.UnauthenticatedError),
        (403, "insufficient_permissions", errors.PermissionDeniedError),
        (404, "model_not_found", errors.NotFoundError),
        (404, "model_not_available", ModelNotAvailable),
        (400, "no_model_loaded", errors.FailedPreconditionError),
        (409, "already_exists", errors.AlreadyExistsError),
        (500, "internal_error", InternalError),
        (501, "unimplemented", errors.UnimplementedError),
        (504, "deadline_exceeded", DeadlineExceededError),
    ],
)
def test_every_status_comes_back_as_its_class(status: int, code: str, kind: type[KalaError]) -> None:
    with (
        client_of(FakeGateway([failure(status, code, "why")])) as client,
        pytest.raises(kind, match="why") as caught,
    ):
        client.chat(QUESTION)
    assert caught.value.reason == code.upper()


def test_a_bridge_error_keeps_its_reason() -> None:
    body = {
        "error": {
            "code": 400,
            "message": "no",
            "status": "FAILED_PRECONDITION",
            "details": [
                {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "MODEL_NOT_AVAILABLE"}
            ],
        }
    }
    with client_of(FakeGateway([httpx.Response(400, json=body)])) as client, pytest.raises(ModelNotAvailable):
        client.call("GET", "/v1/models")


def test_an_unavailable_part_is_asked_again_and_the_pause_grows() -> None:
    pauses: list[float] = []
    gateway = FakeGateway(
        [failure(503, "ethics_unavailable", "a"), failure(503, "ethics_unavailable", "b"), completion("Hi.")]
    )
    with client_of(gateway, pauses) as client:
        assert client.chat(QUESTION).text == "Hi."
    assert pauses == [0.25, 0.5]


def test_retry_after_is_honoured() -> None:
    pauses: list[float] = []
    gateway = FakeGateway([failure(429, "rate_limit_exceeded", "slow", retry_after="3"), completion()])
    with client_of(gateway, pauses) as client:
        client.chat(QUESTION)
    assert pauses == pytest.approx([3.15])


def test_a_long_retry_after_is_reported_instead_of_slept() -> None:
    gateway = FakeGateway([failure(429, "rate_limit_exceeded", "slow", retry_after="3600")])
    with client_of(gateway) as client, pytest.raises(ResourceExhaustedError) as caught:
        client.chat(QUESTION)
    assert caught.value.retry_after_seconds == 3600


def test_a_failure_after_tools_have_run_is_not_sent_again() -> None:
    gateway = FakeGateway([failure(503, "backends_unavailable", "away", x_should_retry="false")])
    with client_of(gateway) as client, pytest.raises(UnavailableError):
        client.chat(QUESTION, kala_tools="auto")
    assert len(gateway.seen) == 1


def test_mistakes_are_not_sent_again() -> None:
    gateway = FakeGateway([failure(400, "invalid_value", "no")])
    with client_of(gateway) as client, pytest.raises(InvalidArgumentError):
        client.chat(QUESTION)
    assert len(gateway.seen) == 1


def _raise(error: Exception) -> httpx.Response:
    raise error


def test_no_gateway_names_the_url_and_the_cure() -> None:
    gateway = FakeGateway([lambda: _raise(httpx.ConnectError("refused"))] * 3)
    with client_of(gateway) as client, pytest.raises(UnavailableError, match=r"127\.0\.0\.1:8800.*kala up"):
        client.chat(QUESTION)


def test_a_connection_that_breaks_is_not_sent_again_because_it_may_have_been_done() -> None:
    gateway = FakeGateway([lambda: _raise(httpx.ReadError("reset"))])
    with client_of(gateway) as client, pytest.raises(InternalError, match="broke"):
        client.chat(QUESTION)
    assert len(gateway.seen) == 1


def test_a_silent_gateway_is_a_deadline() -> None:
    gateway = FakeGateway([lambda: _raise(httpx.ReadTimeout("slow"))])
    with client_of(gateway) as client, pytest.raises(DeadlineExceededError):
        client.chat(QUESTION)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, content=b"<html>hello</html>"),
        httpx.Response(200, json=[1]),
        httpx.Response(502, content=b"x"),
    ],
    ids=["html", "list", "proxy"],
)
def test_what_is_no_gateway_is_said_to_be_none(answer: httpx.Response) -> None:
    with client_of(FakeGateway([answer] * 3)) as client, pytest.raises(KalaError, match="no KALA gateway"):
        client.chat(QUESTION)
