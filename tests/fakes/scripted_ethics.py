"""An ethics service whose judgements a test writes: real clearances, real offsets, and every way to fail."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.common.v1 import decision_pb2
from kala.errors import UnavailableError
from kala.ethics.v1 import ethics_pb2 as pb
from kala.ethics.v1 import ethics_pb2_grpc
from services.common.clearance import ClearanceSigner
from services.common.peers import Context, peer_of
from services.common.sealing import action_digest
from services.common.status import abort

FORBIDDEN = "forbiddenword"
CONSTITUTION = b"c" * 32

_OUTCOMES = {
    "please refuse": decision_pb2.OUTCOME_REFUSE,
    "please redirect": decision_pb2.OUTCOME_REDIRECT,
    "please ask": decision_pb2.OUTCOME_ASK_CLARIFICATION,
}


@dataclass
class ScriptedEthics(ethics_pb2_grpc.EthicsServiceServicer):
    """Refuses actions that say `please refuse`, and outputs that hold FORBIDDEN."""

    signer: ClearanceSigner = field(default_factory=lambda: ClearanceSigner(Ed25519PrivateKey.generate()))
    is_down: bool = False
    hangs_on_output: bool = False
    dies_after_chunks: int | None = None
    allows_without_checking: bool = False
    window: int = 1
    """Characters after which a check runs by itself; large windows need a flush or the finish."""
    actions: list[pb.CheckActionRequest] = field(default_factory=list)
    starts: list[pb.OutputStart] = field(default_factory=list)
    flushes: int = 0
    clearance_age_seconds: list[float] = field(default_factory=list)
    """Ages of the next clearances; an old one is expired on arrival."""
    on_check: list[asyncio.Event] = field(default_factory=list)

    async def CheckAction(self, request: pb.CheckActionRequest, context: Context) -> pb.CheckActionResponse:
        self.actions.append(request)
        if self.is_down:
            await abort(context, UnavailableError("down"))
        outcome = next(
            (found for words, found in _OUTCOMES.items() if words.encode() in request.action.value),
            decision_pb2.OUTCOME_ALLOW,
        )
        decision = _decision(outcome)
        decision.action_digest = action_digest(request.action)
        if outcome != decision_pb2.OUTCOME_ALLOW:
            return pb.CheckActionResponse(decision=decision)
        return pb.CheckActionResponse(
            decision=decision,
            clearance=self._signer().mint(
                decision_id=decision.id,
                audience=request.audience,
                action=request.action,
                constitution_digest=CONSTITUTION,
                presenter=peer_of(context).name,
                principal=request.principal,
                purpose=request.purpose,
            ),
        )

    def _signer(self) -> ClearanceSigner:
        if not self.clearance_age_seconds:
            return self.signer
        age = self.clearance_age_seconds.pop(0)
        aged = ClearanceSigner(self.signer._private_key, clock=lambda: _now() - age)
        return aged

    async def CheckOutput(
        self, requests: AsyncIterator[pb.CheckOutputRequest], context: Context
    ) -> AsyncIterator[pb.CheckOutputResponse]:
        texts: dict[tuple[int, int], str] = {}
        waiting: dict[tuple[int, int], int] = {}
        chunks = 0
        async for request in requests:
            match request.WhichOneof("event"):
                case "start":
                    self.starts.append(request.start)
                    continue
                case "chunk":
                    key = (request.chunk.channel, request.chunk.index)
                    texts[key] = texts.get(key, "") + request.chunk.text
                    waiting[key] = waiting.get(key, 0) + len(request.chunk.text)
                    chunks += 1
                    if chunks == self.dies_after_chunks:
                        await abort(context, UnavailableError("killed"))
                    due = [key] if waiting[key] >= self.window else []
                case "flush":
                    self.flushes += 1
                    due = list(texts)
                case _:
                    due = []
            if self.hangs_on_output:
                await asyncio.Event().wait()
            is_last = request.WhichOneof("event") == "finish"
            for key in texts if is_last else due:
                if FORBIDDEN in texts[key]:
                    yield pb.CheckOutputResponse(decision=_decision(decision_pb2.OUTCOME_REFUSE))
                    return
                waiting[key] = 0
                held = 0 if is_last else min(len(texts[key]), len(FORBIDDEN) - 1)
                if not self.allows_without_checking:
                    yield pb.CheckOutputResponse(
                        checked=pb.CheckedUpTo(
                            channel=key[0], index=key[1], characters=len(texts[key]) - held
                        )
                    )
            if is_last:
                yield pb.CheckOutputResponse(decision=_decision(decision_pb2.OUTCOME_ALLOW))
                return


def _decision(outcome: decision_pb2.Outcome) -> decision_pb2.Decision:
    decision = decision_pb2.Decision(
        id=secrets.token_hex(16), outcome=outcome, constitution_digest=CONSTITUTION, judges=["scripted"]
    )
    decision.decided_at.GetCurrentTime()
    if outcome != decision_pb2.OUTCOME_ALLOW:
        decision.law, decision.category = 1, "harm.test"
        decision.message = "I cannot help with that."
        decision.path.extend(["judge scripted: law 1", "outcome by law 1"])
        decision.evidence.add(
            judge="scripted", law=1, category="harm.test", field="messages[0]", view="plain", rule="rule-1",
            score=1.0, outcome=outcome,
        )  # fmt: skip
    return decision


def _now() -> float:
    import time

    return time.time()


def add_to(servicer: ScriptedEthics, server: grpc.aio.Server) -> None:
    ethics_pb2_grpc.add_EthicsServiceServicer_to_server(servicer, server)
