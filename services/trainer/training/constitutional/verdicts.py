"""What ethics says about requests and drafts: `Score` over gRPC, several at once, and no verdict is never a good one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc

from kala.common.v1 import decision_pb2
from kala.errors import FailedPreconditionError, UnavailableError
from kala.ethics.v1 import ethics_pb2, ethics_pb2_grpc
from services.common.channel import open_channel
from services.common.status import from_error
from services.trainer.work.order import ServicePlaces

CONCURRENT_SCORES: Final = 8
"""Calls in flight: enough to keep ethics' judges busy, few enough to leave its queue to the people who chat."""

SCORE_TIMEOUT_SECONDS: Final = 30.0
MAX_SCORED_CHARS: Final = 1_048_576
"""As the contract has it; a longer text is judged by its beginning and its draft is dropped."""

OUTAGE_SECONDS: Final = 120.0
"""How long a job waits for an ethics service that has gone, before it ends and may be resumed."""

_RETRY_SECONDS: Final = 2.0
_SCORE: Final = "/kala.ethics.v1.EthicsService/Score"
_LIST_LAWS: Final = "/kala.ethics.v1.EthicsService/ListLaws"
_RETRIED: Final = (UnavailableError.default_reason, "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")


@dataclass(frozen=True, slots=True)
class Law:
    """One of the Five Laws as ethics has it in force."""

    number: int
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a text came to."""

    decision_id: str
    is_allowed: bool
    law: int | None
    """The law that decided; None where none applied (0 is a law)."""
    category: str
    constitution: str
    """Digest of the constitution in force, in hex."""


class Judge(Protocol):
    """Judges texts; raises KalaError when no verdict is to be had, and never makes one up."""

    async def laws(self) -> dict[int, Law]: ...

    async def requests(self, texts: Sequence[str]) -> list[Verdict]: ...

    async def outputs(self, texts: Sequence[tuple[str, str]]) -> list[Verdict]: ...


class EthicsJudge:
    """The ethics service; `constitution` is the digest that the job was cleared under, in hex, and empty for any."""

    def __init__(
        self,
        stub: ethics_pb2_grpc.EthicsServiceAsyncStub,
        *,
        constitution: str = "",
        outage_seconds: float = OUTAGE_SECONDS,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self._stub = stub
        self._constitution = constitution
        self._outage_seconds = outage_seconds
        self._retry_seconds = retry_seconds
        self._slots = asyncio.Semaphore(CONCURRENT_SCORES)

    async def laws(self) -> dict[int, Law]:
        """Returns the laws by number."""
        reply: ethics_pb2.ListLawsResponse = await self._ask(
            self._stub.ListLaws, ethics_pb2.ListLawsRequest()
        )
        return {law.number: Law(law.number, law.name, " ".join(law.text.split())) for law in reply.laws}

    async def requests(self, texts: Sequence[str]) -> list[Verdict]:
        """Judges what users ask, in order."""
        asked = [
            ethics_pb2.ScoreRequest(text=text[:MAX_SCORED_CHARS], stage=ethics_pb2.STAGE_REQUEST)
            for text in texts
        ]
        return await self._all(asked)

    async def outputs(self, texts: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Judges (request, answer), in order."""
        asked = [
            ethics_pb2.ScoreRequest(
                text=answer[:MAX_SCORED_CHARS], stage=ethics_pb2.STAGE_OUTPUT, request_text=request
            )
            for request, answer in texts
        ]
        return await self._all(asked)

    async def _all(self, asked: Sequence[ethics_pb2.ScoreRequest]) -> list[Verdict]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._score(request)) for request in asked]
        except ExceptionGroup as failed:
            # The others were ended because of the first, which is what the owner of the job must read.
            raise failed.exceptions[0] from failed
        return [task.result() for task in tasks]

    async def _score(self, request: ethics_pb2.ScoreRequest) -> Verdict:
        async with self._slots:
            reply: ethics_pb2.ScoreResponse = await self._ask(self._stub.Score, request)
        decision = reply.decision
        constitution = decision.constitution_digest.hex()
        if self._constitution and constitution != self._constitution:
            raise FailedPreconditionError(
                "the constitution changed since the job was cleared; submit the job again",
                reason="CONSTITUTION_CHANGED",
            )
        return Verdict(
            decision.id,
            decision.outcome == decision_pb2.OUTCOME_ALLOW,
            decision.law if decision.HasField("law") else None,
            decision.category,
            constitution,
        )

    async def _ask(self, call: Any, request: Any) -> Any:  # Any: a method of the stub with its messages
        """Asks again while ethics is away, for a while; an ordinary refusal of the call is raised at once."""
        until = asyncio.get_running_loop().time() + self._outage_seconds
        while True:
            try:
                return await call(request, timeout=SCORE_TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as failed:
                error = from_error(failed)
                is_over = asyncio.get_running_loop().time() >= until
                if is_over or type(error).default_reason not in _RETRIED:
                    raise error from failed
            await asyncio.sleep(self._retry_seconds)


@asynccontextmanager
async def open_judge(places: ServicePlaces, *, constitution: str = "") -> AsyncIterator[EthicsJudge]:
    """Connects to ethics as the trainer; raises FailedPreconditionError where the order names no ethics service."""
    if not places.ethics_address:
        raise FailedPreconditionError(
            "constitutional training needs the ethics service; set KALA_TRAINER_ETHICS_ADDRESS",
            reason="ETHICS_NOT_CONFIGURED",
        )
    async with open_channel(
        places.ethics_address,
        peer_name=places.peer_name,
        tls=places.tls,
        idempotent=(_SCORE, _LIST_LAWS),
        default_timeout_seconds=SCORE_TIMEOUT_SECONDS,
    ) as channel:
        # The async stub is an annotation only: at run time one class serves both.
        stub: Any = ethics_pb2_grpc.EthicsServiceStub(channel)
        yield EthicsJudge(stub, constitution=constitution)
