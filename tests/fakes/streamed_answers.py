"""One generation in this process: a scripted backend, the real check of outputs by the shipped rules, no wire."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.any_pb2 import Any as AnyMessage

from gateway.acts import CHAT_KIND, CHAT_RPC, Act
from gateway.answer import Answer, AnswerBuffer, Release
from gateway.generation import Generation, GenerationState, HoldBounds
from gateway.identity import Caller
from gateway.judge import EthicsClient
from kala.common.v1 import clearance_pb2
from kala.ethics.constitution import Trust, VerifiedConstitution, verify_constitution
from kala.ethics.v1 import ethics_pb2
from kala.inference.v1 import inference_pb2 as pb
from services.common.clearance import ClearanceSigner
from services.ethics.bench import Bench
from services.ethics.laws import read_constitution
from services.ethics.measuring import Measuring
from services.ethics.servicer import EthicsServicer, InForce

CONSTITUTION: Final = Path(__file__).parents[2] / "constitution"
TURNS: Final = 12
"""As often as everybody gets a turn between two deltas; a check and its release take fewer."""


class CheckCall:
    """A call of CheckOutput; every message is kept."""

    def __init__(self, ask: Callable[[AsyncIterator[Any], Any], AsyncIterator[Any]]) -> None:
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._answers = ask(self._requests(), None)
        self.written: list[ethics_pb2.CheckOutputRequest] = []

    async def write(self, request: ethics_pb2.CheckOutputRequest) -> None:
        self.written.append(request)
        self._inbox.put_nowait(ethics_pb2.CheckOutputRequest.FromString(request.SerializeToString()))

    async def _requests(self) -> AsyncIterator[ethics_pb2.CheckOutputRequest]:
        while True:
            yield await self._inbox.get()

    async def __aiter__(self) -> AsyncIterator[ethics_pb2.CheckOutputResponse]:
        async for answer in self._answers:
            yield answer

    def cancel(self) -> None:
        """Nothing runs on its own here."""


@functools.cache
def _rules() -> tuple[VerifiedConstitution, Bench]:
    """The shipped rules, compiled once for all tests of a process."""
    verified = verify_constitution(CONSTITUTION, Trust.development())
    return verified, Bench(read_constitution(verified), allow_unreadable=False, on_fault=_raise)


def rules_servicer(
    key: Ed25519PrivateKey, audiences: Mapping[str, str] = MappingProxyType({})
) -> EthicsServicer:
    """The real ethics service with the shipped rules and no other judge."""
    verified, bench = _rules()
    return EthicsServicer(
        bench,
        in_force=InForce(verified, lambda: 0.0),
        signer=ClearanceSigner(key),
        measuring=Measuring(key),
        audiences=audiences,
    )


class LocalEthics:
    """A stub of ethics that judges here."""

    def __init__(self) -> None:
        self._servicer = rules_servicer(Ed25519PrivateKey.generate())
        self.calls: list[CheckCall] = []

    def CheckOutput(self, *, timeout: float) -> CheckCall:  # noqa: N802 - the contract's name
        del timeout
        self.calls.append(CheckCall(self._servicer.CheckOutput))
        return self.calls[-1]


def _raise(judge: str, error: Exception) -> None:
    raise AssertionError(judge) from error


class ScriptedChat:
    """A stub of inference that says the same deltas at every Chat, giving everybody a turn between them."""

    def __init__(self, deltas: Sequence[pb.ChatDelta]) -> None:
        self._deltas = deltas

    def Chat(self, _request: pb.ChatRequest, *, timeout: float) -> ScriptedChat:  # noqa: N802
        del timeout
        return self

    async def __aiter__(self) -> AsyncIterator[pb.ChatResponse]:
        for delta in self._deltas:
            yield pb.ChatResponse(delta=delta)
            for _ in range(TURNS):
                await asyncio.sleep(0)
        yield pb.ChatResponse(finish=pb.ChatFinish(reason=pb.FINISH_REASON_STOP))

    def cancel(self) -> None:
        """Nothing runs on its own here."""


@dataclass
class Left:
    """What one generation let out, and how it ended."""

    state: GenerationState
    record: Answer
    releases: list[Release]
    written: list[ethics_pb2.CheckOutputRequest]

    @property
    def text(self) -> str:
        return "".join(release.text for release in self.releases)

    @property
    def reasoning(self) -> str:
        return "".join(release.reasoning for release in self.releases)

    @property
    def refusal(self) -> str:
        return "".join(release.refusal for release in self.releases)

    def arguments(self, index: int) -> str:
        pieces = (piece for release in self.releases for piece in release.tool_calls)
        return "".join(piece.arguments for piece in pieces if piece.index == index)

    @property
    def names(self) -> str:
        pieces = (piece for release in self.releases for piece in release.tool_calls)
        return "".join(piece.id + piece.name for piece in pieces)

    @property
    def tokens(self) -> str:
        return "".join(entry.token for release in self.releases for entry in release.logprobs)

    def alternatives(self, rank: int) -> str:
        entries = (entry for release in self.releases for entry in release.logprobs)
        return "".join(entry.top[rank].token for entry in entries if rank < len(entry.top))


def prepare(
    ethics: LocalEthics, deltas: Sequence[pb.ChatDelta], buffer: AnswerBuffer, *, hold: HoldBounds
) -> Generation:
    """Make one generation, which has not begun."""
    return Generation(
        ACT,
        clearance_pb2.SealedAction(),
        "d" * 32,
        ethics=EthicsClient(ethics, timeout_seconds=10, max_act_seconds=60),  # type: ignore[arg-type]  # a stub
        inference=ScriptedChat(deltas),  # type: ignore[arg-type]  # a stub
        buffer=buffer,
        hold=hold,
        max_act_seconds=60,
    )


async def generate(
    ethics: LocalEthics, deltas: Sequence[pb.ChatDelta], *, hold: HoldBounds, declared: Sequence[str] = ()
) -> Left:
    """Run one generation to its end; an error of its own is raised."""
    buffer = AnswerBuffer(declared)
    generation = prepare(ethics, deltas, buffer, hold=hold)
    releases: list[Release] = []

    async def on_release(release: Release) -> None:
        releases.append(release)

    await generation.run(on_release)
    return Left(generation.state, buffer.released(), releases, ethics.calls[-1].written)


ACT: Final = Act(
    rpc=CHAT_RPC,
    kind=CHAT_KIND,
    action=AnyMessage(),
    caller=Caller(clearance_pb2.Principal(id="keys/test", tenant="default"), "a" * 64),
    request_id="req_test",
    trace_id="0" * 32,
    started=0.0,
)
