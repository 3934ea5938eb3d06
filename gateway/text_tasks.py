"""`POST /v1/embeddings` and `/v1/rerank`: guarded calls of inference with one answer each, in the shapes that clients know."""

from __future__ import annotations

import base64
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from gateway.acts import EMBED_RPC, RERANK_RPC, Act, decision_json
from gateway.adapters import refuse_adapters
from gateway.bridge_routes import Binding
from gateway.chat import ID_BYTES
from gateway.chat_action import AUTO_MODEL
from gateway.destination import Destination, refuse_role
from gateway.edge import Exchange, until_disconnect
from gateway.errors import http_status, openai_body
from gateway.generation import for_clients
from gateway.guarded import Acted, ActFailedError, GuardedCalls, RefusedError, singles
from gateway.intake import Desk, Intake
from gateway.limits.estimates import estimate_of
from gateway.limits.reservation import Reservation
from gateway.text_tasks_schema import (
    EmbeddingRequest,
    RerankRequest,
    TextRequest,
    parse_embedding_request,
    parse_rerank_request,
)
from kala.common.v1 import options_pb2, usage_pb2
from kala.errors import InvalidArgumentError, KalaError
from kala.inference.v1 import inference_pb2 as pb
from services.common.sealing import pack

if TYPE_CHECKING:
    from google.protobuf.message import Message

_FIELDS: Final = {"inputs": "input"}
"""What inference calls a field, and what the client called it."""

Json = dict[str, Any]  # Any: JSON

Request = TypeVar("Request", bound=TextRequest)
Method = Any  # a grpc.aio multi-callable, which its stubs type loosely


@dataclass(frozen=True, slots=True)
class TextTask(Generic[Request]):
    """What one endpoint is: what it takes, what is judged and executed, what it answers."""

    rpc: str
    kind: str
    route: str
    parse: Callable[[Json], Request]
    action: Callable[[Request, Destination], Message]
    write: Callable[[Request, Any], Json]  # Any: the RPC's own response


class TextTasks(Generic[Request]):
    """Answers the requests to one endpoint; one per process."""

    def __init__(
        self,
        task: TextTask[Request],
        desk: Desk,
        *,
        guarded: GuardedCalls,
        binding: Binding,
        method: Method,
        max_act_seconds: float,
        new_id: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._task = task
        self._desk = desk
        self._gate = desk.gate
        self._intake = Intake(desk, task.kind, task.route)
        self._guarded = guarded
        self._binding = binding
        self._method = method
        self._max_act_seconds = max_act_seconds
        self._new_id = new_id

    async def answer(self, exchange: Exchange) -> None:
        """Handle one request."""
        exchange.is_audited = True
        key = await self._gate.admit(exchange, rpc=self._task.route, scope=options_pb2.SCOPE_CHAT)

        def parse(body: Json) -> tuple[Request, Destination]:
            request = self._task.parse(body)
            refuse_role(exchange.headers)
            refuse_adapters(exchange.headers)
            return request, self._desk.destinations.of(exchange.headers, request.model or "")

        request, destination = await self._intake.read(exchange, key, parse)
        action = self._task.action(request, destination)
        act = Act(
            rpc=self._task.rpc,
            kind=self._task.kind,
            action=pack(action),
            caller=self._gate.caller(key, request.person),
            request_id=exchange.request_id,
            trace_id=exchange.trace_id,
            started=exchange.started,
            model=request.model or AUTO_MODEL,
            must_log_first=True,
            may_spool=self._desk.may_spool,
        )
        async with self._gate.reserve(exchange, key, estimate_of(action)) as reservation:
            await until_disconnect(exchange, self._carry_out(exchange, act, request, reservation))

    async def _carry_out(
        self, exchange: Exchange, act: Act, request: Request, reservation: Reservation
    ) -> None:
        try:
            acted = await self._guarded.carry_out(act, self._binding, self._call)
        except RefusedError as refused:
            reservation.settle_refused(refused.stage)
            await _refuse(exchange, refused)
            return
        except ActFailedError as failed:
            exchange.served = failed.served
            raise ActFailedError(_for_clients(failed.error), failed.receipt, failed.served) from failed
        exchange.receipt, exchange.served = acted.receipt, acted.served
        reservation.settle(acted.usage, model=acted.served.model)
        body = self._task.write(request, acted.responses[0])
        exchange.overhead_ms = round(exchange.elapsed_ms - acted.elsewhere_seconds * 1000, 3)
        identity = f"{self._task.kind}-{self._new_id(ID_BYTES)}"
        extension = {**_kala(acted, exchange.overhead_ms), **body.pop("kala", {})}
        await exchange.send_json(200, {"id": identity, **body, "kala": extension})

    async def _call(self, message: Message) -> AsyncIterator[Message]:
        call = self._method(message, timeout=self._max_act_seconds)
        try:
            yield await call
        finally:
            call.cancel()


def embed_action(request: EmbeddingRequest, destination: Destination) -> pb.EmbedAction:
    """Build the action, bound for this destination."""
    return pb.EmbedAction(
        model=request.model or AUTO_MODEL,
        inputs=request.texts,
        dimensions=request.dimensions,
        provider=destination.provider,
        allow_remote=destination.allow_remote,
    )


def rerank_action(request: RerankRequest, destination: Destination) -> pb.RerankAction:
    """Build the action, bound for this destination."""
    return pb.RerankAction(
        model=request.model or AUTO_MODEL,
        query=request.query,
        documents=request.texts,
        top_n=request.top_n,
        provider=destination.provider,
        allow_remote=destination.allow_remote,
    )


def embeddings_json(request: EmbeddingRequest, response: pb.EmbedResponse) -> Json:
    """Write vectors as OpenAI does: lists of numbers, or base64 of little-endian singles."""
    spelled = _as_base64 if request.encoding_format == "base64" else list
    data = [
        {"object": "embedding", "index": each.index, "embedding": spelled(each.values)}
        for each in response.embeddings
    ]
    return {"object": "list", "data": data, "model": response.route.model, **_usage(response.usage)}


def ranking_json(request: RerankRequest, response: pb.RerankResponse) -> Json:
    """Write a ranking as Jina and Cohere do; `kala.degraded` says that embeddings stood in for a model for it."""
    results = [
        {
            "index": each.index,
            "relevance_score": each.score,
            # The client's own words, not a model's.
            **({"document": {"text": request.texts[each.index]}} if request.return_documents else {}),
        }
        for each in response.results
    ]
    return {
        "object": "list",
        "results": results,
        "model": response.route.model,
        **_usage(response.usage),
        "kala": {"degraded": response.degraded},
    }


EMBEDDINGS: Final = TextTask(
    EMBED_RPC, "embed", "HTTP POST /v1/embeddings", parse_embedding_request, embed_action, embeddings_json
)
RERANK: Final = TextTask(
    RERANK_RPC, "rerank", "HTTP POST /v1/rerank", parse_rerank_request, rerank_action, ranking_json
)


async def _refuse(exchange: Exchange, refused: RefusedError) -> None:
    """Answer with the judgement: there is no place for words in a list of vectors, so it is an error."""
    exchange.receipt = refused.receipt
    body = openai_body(refused)
    body["kala"] = {
        "decision": decision_json(refused.decision, refused.stage),
        "receipt": refused.receipt.to_json(),
    }
    await exchange.send_json(http_status(refused), body)


def _for_clients(error: KalaError) -> KalaError:
    known = for_clients(error)
    if isinstance(known, InvalidArgumentError) and known.field in _FIELDS:
        return InvalidArgumentError(_FIELDS[known.field], known.problem, reason=known.reason)
    return known


def _kala(acted: Acted, overhead_ms: float) -> Json:
    return {
        "decision": decision_json(acted.decision, "output"),
        "receipt": acted.receipt.to_json(),
        "intent": acted.intent_id,
        "attempts": acted.served.attempts_json(),
        "backend": acted.served.backend or None,
        "overhead_ms": overhead_ms,
    }


def _usage(usage: usage_pb2.Usage) -> Json:
    """Write the tokens, or nothing where the backend did not count them."""
    if not usage.HasField("input_tokens"):
        return {}
    return {"usage": {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}}


def _as_base64(values: Any) -> str:  # Any: protobuf's own sequence of numbers
    return base64.b64encode(singles(values)).decode()
