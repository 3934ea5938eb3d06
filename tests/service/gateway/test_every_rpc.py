"""Every RPC of every contract over REST: each is reached by its own path, and its answer is its own message.

Inference, tools and trainer are one server that answers any RPC with an empty message and keeps what it was asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
import pytest_asyncio
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from gateway.bridge_routes import Binding, bindings_of, contract_files
from gateway.openapi import OpenApi
from gateway.openapi_bridge import open_path
from kala.tools.v1 import execution_pb2
from kala.tools.v1 import tools_pb2 as tools
from services.common.peers import INFERENCE, TOOLS, TRAINER
from tests.fakes.gateway_suite import Suite, running_suite

pytestmark = pytest.mark.asyncio(loop_scope="session")

BINDINGS = bindings_of(contract_files())
OPERATIONS: Any = OpenApi(BINDINGS, version="1").document["paths"]
ANSWERED = {INFERENCE, TOOLS, TRAINER}
EVENT = "text/event-stream"


class AnyService(grpc.GenericRpcHandler):
    """Answers every RPC that the bridge may call, and those that the gateway calls by itself."""

    def __init__(self) -> None:
        self.asked: dict[str, Message] = {}
        self.seconds: dict[str, float] = {}
        self.failure: grpc.StatusCode | None = None
        self._bindings = {binding.rpc: binding for binding in BINDINGS}

    def service(self, details: grpc.HandlerCallDetails) -> Any:  # Any: grpc's handlers are untyped
        binding = self._bindings.get(details.method)
        if binding is None:
            return None
        make = (
            grpc.unary_stream_rpc_method_handler
            if binding.is_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(
            self._stream(binding) if binding.is_streaming else self._unary(binding),
            request_deserializer=binding.request_class.FromString,
            response_serializer=binding.response_class.SerializeToString,
        )

    def _unary(self, binding: Binding) -> Callable[[Message, Any], Any]:
        async def answer(request: Message, context: Any) -> Message:
            await self._keep(binding, request, context)
            return _answer(binding)

        return answer

    def _stream(self, binding: Binding) -> Callable[[Message, Any], Any]:
        async def answer(request: Message, context: Any) -> AsyncIterator[Message]:
            await self._keep(binding, request, context)
            yield _answer(binding)

        return answer

    async def _keep(self, binding: Binding, request: Message, context: Any) -> None:
        self.asked[binding.rpc] = request
        self.seconds[binding.rpc] = context.time_remaining()
        if self.failure is not None:
            await context.abort(self.failure, "as the test says")


def _answer(binding: Binding) -> Message:
    if binding.rpc.endswith("ToolsService/Execute"):
        # A run says how it ended; nothing else may stand for its end.
        return tools.ExecuteResponse(exit=execution_pb2.RunExit(status=execution_pb2.RUN_STATUS_OK))
    return binding.response_class()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def services(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[AnyService, str]]:
    """The server of any RPC, and its address."""
    anything = AnyService()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((anything,))
    address = f"unix:{tmp_path_factory.mktemp('any')}/any.sock"
    server.add_insecure_port(address)
    await server.start()
    yield anything, address
    await server.stop(0)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def every(
    tmp_path_factory: pytest.TempPathFactory, services: tuple[AnyService, str]
) -> AsyncIterator[Suite]:
    """A gateway before it."""
    folder, address = tmp_path_factory.mktemp("every"), services[1]
    addresses: dict[str, Any] = {f"{part}_address": address for part in ANSWERED}
    async with running_suite(Path(folder), **addresses) as suite:
        yield suite


def call_of(binding: Binding) -> tuple[str, Any]:
    """The path and body of an RPC's own example."""
    template, names = open_path(binding)
    operation = OPERATIONS[template][binding.verb.lower()]
    given = {each["name"]: each["example"] for each in operation["parameters"] if "$ref" not in each}
    path = template
    for name in names:
        path = path.replace("{" + name + "}", str(given[name]))
    body = operation["requestBody"]["content"]["application/json"]["example"] if binding.has_body else None
    return path, body


async def send(suite: Suite, binding: Binding, **headers: str) -> Any:
    path, body = call_of(binding)
    return await suite.http.request(binding.verb, path, json=body, headers=suite.bearer() | headers)


@pytest.mark.parametrize(
    "binding",
    [binding for binding in BINDINGS if binding.part in ANSWERED],
    ids=lambda binding: f"{binding.part}.{binding.kind}",
)
async def test_an_rpc_of_a_service_takes_its_example_and_gives_its_own_message(
    every: Suite, services: tuple[AnyService, str], binding: Binding
) -> None:
    response = await send(every, binding)
    assert response.status_code == 200, response.text
    assert isinstance(services[0].asked[binding.rpc], binding.request_class)
    if binding.is_streaming:
        (line,) = response.text.splitlines()
        assert response.headers["content-type"] == "application/x-ndjson"
        ParseDict(orjson.loads(line), binding.response_class())
        events = await send(every, binding, accept=EVENT)
        assert events.headers["content-type"] == EVENT
        assert events.text == f"data: {line}\n\n"
    else:
        ParseDict(response.json(), binding.response_class())
    assert ("x-kala-receipt" in response.headers) >= (binding.action_class is not None)


@pytest.mark.parametrize(
    "binding",
    [binding for binding in BINDINGS if binding.part not in ANSWERED and "Watch" not in binding.rpc],
    ids=lambda binding: f"{binding.part}.{binding.kind}",
)
async def test_an_rpc_of_the_log_ethics_and_the_gateway_answers_or_says_why_not(
    every: Suite, binding: Binding
) -> None:
    response = await send(every, binding)
    if response.status_code == 200 and not binding.is_streaming:
        ParseDict(response.json(), binding.response_class())
    elif response.status_code != 200:
        error = response.json()["error"]
        assert error["code"] == response.status_code < 600
        assert response.status_code != 500, error
        assert "there is no /kala" not in error["message"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.CANCELLED, 499),
        (grpc.StatusCode.UNKNOWN, 500),
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
        (grpc.StatusCode.NOT_FOUND, 404),
        (grpc.StatusCode.ALREADY_EXISTS, 409),
        (grpc.StatusCode.PERMISSION_DENIED, 403),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
        (grpc.StatusCode.FAILED_PRECONDITION, 400),
        (grpc.StatusCode.ABORTED, 503),
        (grpc.StatusCode.OUT_OF_RANGE, 400),
        (grpc.StatusCode.UNIMPLEMENTED, 501),
        (grpc.StatusCode.INTERNAL, 500),
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.DATA_LOSS, 500),
        (grpc.StatusCode.UNAUTHENTICATED, 401),
    ],
)
async def test_every_code_of_grpc_has_its_status_in_calls_streams_and_acts(
    every: Suite, services: tuple[AnyService, str], code: grpc.StatusCode, status: int
) -> None:
    services[0].failure = code
    try:
        for method in ("GetBackend", "PullModel", "Embed"):
            response = await send(every, next(each for each in BINDINGS if each.rpc.endswith(f"/{method}")))
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (status, status), error
            assert isinstance(error["status"], str)
            assert isinstance(error["details"], list)
    finally:
        services[0].failure = None


async def test_a_callers_deadline_reaches_the_service_and_a_field_mask_cuts_the_answer(
    every: Suite, services: tuple[AnyService, str]
) -> None:
    await every.get("/kala/v1/inference/backends/lmstudio", headers={"x-server-timeout": "7.5"})
    left = services[0].seconds["/kala.inference.v1.InferenceService/GetBackend"]
    assert 0 < left < 8  # not the minute that the call has by itself; gRPC rounds up
    masked = await every.get("/kala/v1/inference/models", headers={"x-goog-fieldmask": "next_page_token"})
    assert masked.json() == {"next_page_token": ""}
    for name, value in (
        ("x-server-timeout", "soon"),
        ("x-server-timeout", "0"),
        ("x-server-timeout", "1e9"),
        ("x-goog-fieldmask", "nothing"),
        ("x-goog-fieldmask", ""),
        ("x-goog-fieldmask", "models." * 700),
    ):
        response = await every.get("/kala/v1/inference/models", headers={name: value})
        assert (response.status_code, response.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
        assert name in response.json()["error"]["message"]
