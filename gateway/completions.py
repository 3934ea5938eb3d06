"""`POST /v1/completions`: a text, continued, judged and audited as a chat is."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from gateway.acts import COMPLETE_RPC, Act
from gateway.adapters import refuse_adapters
from gateway.chat import ID_BYTES
from gateway.chat_action import AUTO_MODEL, tail_of
from gateway.chat_answer import Identity
from gateway.completion_answer import TextChunkWriter, text_completion
from gateway.destination import Destination, refuse_role
from gateway.edge import Exchange, until_disconnect
from gateway.intake import Desk, Intake
from gateway.limits.estimates import estimate_of
from gateway.pipeline import Pipeline
from gateway.readers import Stream, Whole
from gateway.text_tasks_schema import CompletionRequest, parse_completion_request
from kala.common.v1 import options_pb2
from kala.inference.v1 import inference_pb2 as pb
from services.common.sealing import pack

ROUTE: Final = "HTTP POST /v1/completions"
KIND: Final = "complete"


class Completions:
    """Answers completion requests; one per process."""

    def __init__(
        self,
        desk: Desk,
        *,
        pipeline: Pipeline,
        wall_clock: Callable[[], float] = time.time,
        new_id: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._desk = desk
        self._gate = desk.gate
        self._intake = Intake(desk, KIND, ROUTE)
        self._pipeline = pipeline
        self._wall_clock = wall_clock
        self._new_id = new_id

    async def complete(self, exchange: Exchange) -> None:
        """Handle one request."""
        exchange.is_audited = True
        key = await self._gate.admit(exchange, rpc=ROUTE, scope=options_pb2.SCOPE_CHAT)

        def parse(body: dict[str, object]) -> tuple[CompletionRequest, pb.CompleteAction]:
            request = parse_completion_request(body)
            refuse_role(exchange.headers)
            refuse_adapters(exchange.headers)
            return request, build_action(
                request, self._desk.destinations.of(exchange.headers, request.model or "")
            )

        request, action = await self._intake.read(exchange, key, parse)
        act = Act(
            rpc=COMPLETE_RPC,
            kind=KIND,
            action=pack(action),
            caller=self._gate.caller(key, request.person),
            request_id=exchange.request_id,
            trace_id=exchange.trace_id,
            started=exchange.started,
            model=action.model,
            request_text=tail_of(action.prompt),
            must_log_first=action.allow_remote,
            may_spool=self._desk.may_spool,
        )
        reader = self._reader(exchange, action.model, request)
        async with self._gate.reserve(exchange, key, estimate_of(action)):
            await until_disconnect(exchange, reader.run(act))

    def _reader(self, exchange: Exchange, model: str, request: CompletionRequest) -> Whole | Stream:
        identity = Identity(f"cmpl-{self._new_id(ID_BYTES)}", int(self._wall_clock()), model)
        if request.stream:
            chunks = TextChunkWriter(identity, wants_usage=request.wants_usage)
            return Stream(exchange, self._pipeline, chunks)
        return Whole(exchange, self._pipeline, lambda conclusion, _: text_completion(identity, conclusion))


def build_action(request: CompletionRequest, destination: Destination) -> pb.CompleteAction:
    """Build the action, bound for this destination."""
    return pb.CompleteAction(
        model=request.model or AUTO_MODEL,
        prompt=request.text,
        suffix=request.suffix or "",
        sampling=pb.Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            max_output_tokens=request.max_tokens,
            stop=request.stops,
        ),
        stream=bool(request.stream),
        echo=bool(request.echo),
        provider=destination.provider,
        allow_remote=destination.allow_remote,
    )
