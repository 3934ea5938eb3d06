"""`/v1/responses`: create, get, delete, cancel and list the input of responses."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gateway.acts import CHAT_KIND
from gateway.conversations.records import CANCELLED, Owner, StoredResponse
from gateway.edge import Exchange, too_large, until_disconnect
from gateway.files.listing import read_page, written_page
from gateway.lasting_keys import require_lasting
from gateway.limits.estimates import estimate_of
from gateway.responses.answering import EVENT_STREAM, REFUSED, Answering, Order
from gateway.responses.ids import is_response_id
from gateway.responses.keeping import Keeper, Kept
from gateway.responses.replay import read_replay, replayed
from gateway.responses.schema import ResponseRequest, parse_response_request
from gateway.responses.worker import Job, Worker, detached
from gateway.strict_json import read_object
from kala.common.v1 import options_pb2
from kala.errors import FailedPreconditionError, InvalidArgumentError, KalaError, NotFoundError

if TYPE_CHECKING:
    from gateway.answer import Release
    from gateway.chat import ChatLimits
    from gateway.chat_runs import ChatRuns
    from gateway.gate import Gate
    from gateway.keys import ApiKey
    from gateway.ledger import Ledger
    from gateway.pipeline import Progress
    from gateway.responses.intake import ResponseIntake
    from kala.inference.v1 import inference_pb2

ROUTE: Final = "HTTP POST /v1/responses"
ONE: Final = "/v1/responses/{id}"
ITEMS_DEFAULT: Final = 20
ITEMS_MOST: Final = 100
"""OpenAI's."""


@dataclass(frozen=True, slots=True)
class Counter:
    """What every endpoint of responses works with."""

    gate: Gate
    ledger: Ledger
    runs: ChatRuns
    limits: ChatLimits
    keeper: Keeper
    intake: ResponseIntake
    clock: Callable[[], float] = time.time


class Responses:
    """Answers requests for responses."""

    def __init__(self, counter: Counter, *, background_places: int) -> None:
        self._counter = counter
        self._gate = counter.gate
        self._keeper = counter.keeper
        self.worker = Worker(counter.keeper, self._in_background, places=background_places)

    async def create(self, exchange: Exchange) -> None:
        """Handle `POST /v1/responses`."""
        exchange.is_audited = True
        key = await self._gate.admit(exchange, rpc=ROUTE, scope=options_pb2.SCOPE_CHAT)
        body = b""
        try:
            body = await self._body(exchange)
            request = parse_response_request(read_object(body))
            if request.background:
                require_lasting(key)
            _check_size(request, body, self._counter.limits.max_body_bytes)
            owner = Owner.of(self._gate.caller(key, request.person))
            order = await self._counter.intake.order(request, exchange.headers, owner)
        except InvalidArgumentError as error:
            await self._record(exchange, key, error, body)
            raise
        if request.wants_kala_tools:
            await self._gate.require(exchange, key, rpc=ROUTE, scope=options_pb2.SCOPE_TOOLS)
        if request.background:
            job = Job(order, owner, detached(exchange, key.id))
            await exchange.send_json(200, await self.worker.take(job))
            return
        async with self._gate.reserve(exchange, key, estimate_of(order.asked.action)):
            order = await self._prepared(exchange, key, order, body)
            act = self._counter.runs.act(order.asked, exchange, self._gate.caller(key, request.person))
            kept = Kept(self._keeper, order.frame.id, owner, is_stored=request.is_stored)
            answering = Answering(
                exchange,
                self._counter.runs.chats(order.asked, exchange.reservation),
                order,
                kept,
                clock=self._counter.clock,
            )
            await until_disconnect(exchange, answering.run(act))

    async def get(self, exchange: Exchange) -> None:
        """Handle `GET /v1/responses/{id}`, also as a stream of what was answered."""
        stored = await self._find(exchange, f"HTTP GET {ONE}")
        replay = read_replay(exchange.query)
        if replay is None:
            await exchange.send_json(200, stored.body)
            return
        if not stored.is_finished:
            raise FailedPreconditionError(
                f"the response is still {stored.status}; ask again without `stream` until it is whole"
            )
        await exchange.begin_stream(EVENT_STREAM)
        for number, event in enumerate(replayed(stored.body)):
            if number > replay.starting_after:
                await exchange.send_part(event)
        await exchange.end_stream()

    async def delete(self, exchange: Exchange) -> None:
        """Handle `DELETE /v1/responses/{id}`; work on it ends."""
        stored = await self._find(exchange, f"HTTP DELETE {ONE}")
        self._keeper.stop(stored.id)
        await self._keeper.drop(stored.id, stored.owner)
        await exchange.send_json(200, {"id": stored.id, "object": "response", "deleted": True})

    async def cancel(self, exchange: Exchange) -> None:
        """Handle `POST /v1/responses/{id}/cancel`; one that has ended stays as it ended."""
        stored = await self._find(exchange, f"HTTP POST {ONE}/cancel")
        if not stored.body.get("background"):
            raise InvalidArgumentError(
                "response_id", "names a response without `background: true`; to end it, close its connection"
            )
        if not stored.is_finished:
            await self._keeper.change(stored.id, stored.owner, {**stored.body, "status": CANCELLED})
            self._keeper.stop(stored.id)
            stored = await self._keeper.find(stored.owner, stored.id)
        await exchange.send_json(200, stored.body)

    async def input_items(self, exchange: Exchange) -> None:
        """Handle `GET /v1/responses/{id}/input_items`: a page of the response's own input."""
        stored = await self._find(exchange, f"HTTP GET {ONE}/input_items")
        page = read_page(exchange.query, default=ITEMS_DEFAULT, also=("order", "include", "include[]"))
        limit = min(page.limit, ITEMS_MOST)
        items = list(stored.items)
        if page.newest_first:
            items.reverse()
        if page.after:
            places = [place for place, item in enumerate(items) if item["id"] == page.after]
            if not places:
                raise InvalidArgumentError("after", "names no item of this response; begin without it")
            items = items[places[0] + 1 :]
        await exchange.send_json(200, written_page(items[: limit + 1], limit=limit))

    async def _find(self, exchange: Exchange, route: str) -> StoredResponse:
        key = await self._gate.admit(exchange, rpc=route, scope=options_pb2.SCOPE_CHAT)
        name = exchange.path_params["id"]
        if not is_response_id(name):
            raise NotFoundError("there is no such response", reason="RESPONSE_NOT_FOUND")
        return await self._keeper.find(Owner.of(self._gate.caller(key)), name)

    async def _body(self, exchange: Exchange) -> bytes:
        limits = self._counter.limits
        body = await exchange.read_body(
            max_bytes=limits.max_image_body_bytes, timeout_seconds=limits.body_timeout_seconds
        )
        # Cheap first look: only a body that mentions images may be large; `_check_size` looks properly.
        if len(body) > limits.max_body_bytes and b'"input_image"' not in body:
            raise too_large(limits.max_body_bytes)
        return body

    async def _prepared(self, exchange: Exchange, key: ApiKey, order: Order, body: bytes) -> Order:
        if not order.asked.needs_others:
            return order
        try:
            return order.prepared(
                await self._counter.runs.prepare(order.asked, self._gate.caller(key), exchange.reservation)
            )
        except KalaError as error:
            await self._record(exchange, key, error, body)
            raise

    async def _in_background(self, job: Job) -> tuple[dict[str, object], bool]:
        """Carry out a response whose client does not wait."""
        exchange, order = job.exchange, job.order
        key = await self._gate.admit(exchange, rpc=ROUTE, scope=options_pb2.SCOPE_CHAT)
        async with self._gate.reserve(exchange, key, estimate_of(order.asked.action)) as reservation:
            order = await self._prepared(exchange, key, order, b"")
            caller = self._gate.caller(key, order.frame.request.person)
            act = self._counter.runs.act(order.asked, exchange, caller)
            logprobs: list[inference_pb2.TokenLogprob] = []

            async def collect(release: Release, _progress: Progress) -> None:
                logprobs.extend(release.logprobs)

            conclusion = await self._counter.runs.chats(order.asked, reservation).chat(
                act, declared_tools=order.asked.tool_names, is_stream=False, on_release=collect
            )
            reservation.conclude(conclusion)
            if conclusion.error is not None:
                raise conclusion.error
            body = order.whole(conclusion, logprobs, int(self._counter.clock()))
            return body, conclusion.finish_reason == REFUSED

    async def _record(self, exchange: Exchange, key: ApiKey, error: KalaError, body: bytes) -> None:
        """Log a request that came to no judgement."""
        await self._gate.count(exchange, key)
        exchange.receipt = await self._counter.ledger.invalid(
            self._gate.caller(key),
            kind=CHAT_KIND,
            rpc=ROUTE,
            error=error,
            body=body,
            request_id=exchange.request_id,
            trace_id=exchange.trace_id,
        )


def _check_size(request: ResponseRequest, body: bytes, most: int) -> None:
    if len(body) <= most:
        return
    items: Any = request.input if isinstance(request.input, list) else []  # Any: several kinds of items
    contents = [content for item in items if isinstance(content := getattr(item, "content", None), list)]
    if not any(getattr(part, "type", "") == "input_image" for content in contents for part in content):
        raise too_large(most)
