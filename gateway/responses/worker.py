"""Carries out responses in the background: a few at a time, a bounded number waiting, each for a key that is still good."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from gateway.conversations.records import IN_PROGRESS, QUEUED, Owner
from gateway.edge import Exchange
from kala.errors import InternalError, KalaError, ResourceExhaustedError, UnavailableError

if TYPE_CHECKING:
    from gateway.responses.answering import Order
    from gateway.responses.keeping import Keeper

WAITING: Final = 256
"""Responses that wait for a place; each holds its request in memory."""

MOST_OF_A_KEY: Final = 64
"""Of all that run or wait: no key keeps the others out."""

MOST_BYTES: Final = 256 * 1024 * 1024
"""Of all chats that run or wait: one with images may have 32 MiB."""

STOPPED: Final = "the gateway stopped before this response was whole; send the request again"


@dataclass(frozen=True, slots=True)
class Job:
    """One response to carry out."""

    order: Order
    owner: Owner
    exchange: Exchange
    """For its headers and ids; nobody listens on it."""


CarryOut = Callable[[Job], Awaitable[tuple[dict[str, object], bool]]]
"""Gives the response, and whether it was refused; raises KalaError where there is none."""


class Worker:
    """The background of one process."""

    def __init__(self, keeper: Keeper, carry_out: CarryOut, *, places: int, waiting: int = WAITING) -> None:
        self._keeper = keeper
        self._carry_out = carry_out
        self._places = asyncio.Semaphore(places)
        self._most = places + waiting
        self._bytes = 0
        self._of_key: Counter[tuple[str, str]] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    async def take(self, job: Job) -> dict[str, object]:
        """Store a response that will be carried out, and give it as it is now; ResourceExhaustedError where there is no room."""
        size, key = job.order.asked.action.ByteSize(), (job.owner.tenant, job.owner.key)
        if self._of_key[key] >= MOST_OF_A_KEY:
            raise ResourceExhaustedError(
                f"{MOST_OF_A_KEY} responses of your key wait in the background; try again when one has ended",
                retry_after_seconds=5.0,
            )
        if len(self._tasks) >= self._most or self._bytes + size > MOST_BYTES:
            raise ResourceExhaustedError(
                "too many responses wait in the background; try again in a few seconds",
                retry_after_seconds=5.0,
            )
        frame, stored = job.order.frame, asyncio.Event()
        body = frame.response(QUEUED, ())
        task = asyncio.get_running_loop().create_task(self._run(job, stored))
        self._tasks.add(task)
        self._bytes += size
        self._of_key[key] += 1

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._bytes -= size
            self._of_key[key] -= 1
            self._of_key += Counter()  # drops those at nothing

        task.add_done_callback(ended)
        try:
            await self._keeper.begin(
                frame.id,
                job.owner,
                items=list(job.order.items),
                body=body,
                previous_id=frame.request.previous_response_id,
                stop=task.cancel,
            )
        except BaseException:
            task.cancel()
            raise
        stored.set()
        return body

    async def aclose(self) -> None:
        """End all work; what was not whole says so."""
        self._is_closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, job: Job, stored: asyncio.Event) -> None:
        await stored.wait()
        frame = job.order.frame
        try:
            async with self._places:
                if not await self._keeper.change(frame.id, job.owner, frame.response(IN_PROGRESS, ())):
                    return
                body, is_refused = await self._carry_out(job)
        except KalaError as error:
            body, is_refused = frame.failed(error), False
        except Exception as error:  # noqa: BLE001 - the edge of this work: a bug must not leave it unfinished
            structlog.get_logger().exception("a response in the background met a bug", exc_info=error)
            body, is_refused = (
                frame.failed(InternalError("internal error; the log has the request's id")),
                False,
            )
        except asyncio.CancelledError:
            if self._is_closing:
                await self._finish(job, frame.failed(UnavailableError(STOPPED)), is_refused=False)
            raise
        await self._finish(job, body, is_refused=is_refused)

    async def _finish(self, job: Job, body: dict[str, object], *, is_refused: bool) -> None:
        try:
            await self._keeper.finish(job.order.frame.id, job.owner, body, is_refused=is_refused)
        except KalaError as error:
            # Its lease ends, and then it is reported as failed.
            structlog.get_logger().error("a response could not be stored", reason=error.reason)


def detached(exchange: Exchange, key_id: str) -> Exchange:
    """Give a request's headers and ids to work that goes on without its client, for its key."""

    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        raise AssertionError("nothing comes from a client that is gone")

    async def send(_message: object) -> None:
        raise AssertionError("nobody listens to work in the background")

    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in exchange.headers.items()]
    scope = {"method": exchange.method, "path": exchange.path, "query_string": b"", "headers": headers}
    own = Exchange(scope, receive, send)
    own.request_id, own.acting_key = exchange.request_id, key_id
    return own
