"""An ethics service whose judgements a test writes: real clearances, real offsets, and every way to fail."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.common.v1 import decision_pb2
from kala.errors import InvalidArgumentError, UnavailableError
from kala.ethics.v1 import ethics_pb2 as pb
from kala.ethics.v1 import ethics_pb2_grpc
from services.common.clearance import ClearanceSigner
from services.common.peers import Context, peer_of
from services.common.sealing import action_digest
from services.common.status import abort
from services.ethics.measuring import Measuring

FORBIDDEN = "forbiddenword"
CONSTITUTION = b"c" * 32

_OUTCOMES = {
    "please refuse": decision_pb2.OUTCOME_REFUSE,
    "please redirect": decision_pb2.OUTCOME_REDIRECT,
    "please ask": decision_pb2.OUTCOME_ASK_CLARIFICATION,
    "Here is how": decision_pb2.OUTCOME_REFUSE,
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
    endings: list[str] = field(default_factory=list)
    """How each output check ended: open, decided or cancelled."""
    scores: list[pb.ScoreRequest] = field(default_factory=list)
    hangs_on_score: str = ""
    """Texts that hold this are never judged."""
    rejects_score: bool = False
    """Whether every text breaks a rule of the contract."""
    verdict: pb.ScoreResponse | None = None
    """What every text comes to, in place of what its words say."""
    scoring: int = 0
    most_scoring: int = 0

    async def CheckAction(  # noqa: N802 - the contract's name
        self, request: pb.CheckActionRequest, context: Context
    ) -> pb.CheckActionResponse:
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
                presenter=f"local:{request.presenter}" if request.presenter else peer_of(context).name,
                principal=request.principal,
                purpose=request.purpose,
            ),
        )

    def _signer(self) -> ClearanceSigner:
        if not self.clearance_age_seconds:
            return self.signer
        age = self.clearance_age_seconds.pop(0)
        return ClearanceSigner(self.signer._private_key, clock=lambda: time.time() - age)

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:  # noqa: N802
        self.scores.append(request)
        if self.is_down:
            await abort(context, UnavailableError("down"))
        if self.rejects_score:
            await abort(context, InvalidArgumentError("text", "is too long"))
        self.scoring += 1
        self.most_scoring = max(self.most_scoring, self.scoring)
        try:
            await asyncio.sleep(0)
            if self.hangs_on_score and self.hangs_on_score in request.text:
                await asyncio.Event().wait()
        finally:
            self.scoring -= 1
        answer = pb.ScoreResponse()
        answer.CopyFrom(self.verdict or verdict_on(request.text))
        if request.HasField("measurement"):
            signed = self._measuring().count(request, answer.decision, began_at=answer.decision.decided_at)
            answer.measurement.CopyFrom(signed)
        return answer

    async def SumMeasurements(  # noqa: N802 - the contract's name
        self, request: pb.SumMeasurementsRequest, _context: Context
    ) -> pb.SumMeasurementsResponse:
        return pb.SumMeasurementsResponse(sum=self._measuring().sum(request.parts))

    def _measuring(self) -> Measuring:
        return Measuring(self.signer._private_key)

    async def ListLaws(self, request: pb.ListLawsRequest, context: Context) -> pb.ListLawsResponse:  # noqa: N802
        names = ("Risk", "Safety", "Obedience", "Self", "Equality")
        laws = [pb.Law(number=n, name=name, text=f"It keeps law {n}.") for n, name in enumerate(names)]
        return pb.ListLawsResponse(laws=laws)

    async def CheckOutput(  # noqa: N802 - the contract's name
        self, requests: AsyncIterator[pb.CheckOutputRequest], context: Context
    ) -> AsyncIterator[pb.CheckOutputResponse]:
        check = _Check(self)
        self.endings.append("open")
        try:
            async for request in requests:
                for response in await check.take(request, context):
                    yield response
                    if response.HasField("decision"):
                        self.endings[-1] = "decided"
                        return
        except (asyncio.CancelledError, GeneratorExit):
            if self.endings[-1] == "open":
                self.endings[-1] = "cancelled"
            raise


class _Check:
    """The texts of one output."""

    def __init__(self, script: ScriptedEthics) -> None:
        self._script = script
        self._texts: dict[tuple[int, int], str] = {}
        self._waiting: dict[tuple[int, int], int] = {}
        self._chunks = 0

    async def take(self, request: pb.CheckOutputRequest, context: Context) -> list[pb.CheckOutputResponse]:
        event = request.WhichOneof("event")
        if event == "start":
            self._script.starts.append(request.start)
            return []
        due = list(self._texts)
        if event == "chunk":
            due = await self._take_chunk(request.chunk, context)
        elif event == "flush":
            self._script.flushes += 1
            for chunk in request.flush.chunks:
                await self._take_chunk(chunk, context)
            due = list(self._texts)
        elif event == "finish":
            for chunk in request.finish.chunks:
                await self._take_chunk(chunk, context)
            due = list(self._texts)
        if self._script.hangs_on_output:
            await asyncio.Event().wait()
        return self._answer(due, is_last=event == "finish") or self._nothing_more(event)

    async def _take_chunk(self, chunk: pb.OutputChunk, context: Context) -> list[tuple[int, int]]:
        key = (chunk.channel, chunk.index)
        self._texts[key] = self._texts.get(key, "") + chunk.text
        self._waiting[key] = self._waiting.get(key, 0) + len(chunk.text)
        self._chunks += 1
        if self._chunks == self._script.dies_after_chunks:
            await abort(context, UnavailableError("killed"))
        return [key] if self._waiting[key] >= self._script.window else []

    @staticmethod
    def _nothing_more(event: str | None) -> list[pb.CheckOutputResponse]:
        """A flush is always answered."""
        return [pb.CheckOutputResponse()] if event == "flush" else []

    def _answer(self, due: list[tuple[int, int]], *, is_last: bool) -> list[pb.CheckOutputResponse]:
        if any(FORBIDDEN in self._texts[key] for key in due):
            return [pb.CheckOutputResponse(decision=_decision(decision_pb2.OUTCOME_REFUSE))]
        checked = []
        for key in [] if self._script.allows_without_checking else due:
            self._waiting[key] = 0
            held = 0 if is_last else min(len(self._texts[key]), len(FORBIDDEN) - 1)
            checked.append(
                pb.CheckedUpTo(channel=key[0], index=key[1], characters=len(self._texts[key]) - held)
            )
        decision = _decision(decision_pb2.OUTCOME_ALLOW) if is_last else None
        return [pb.CheckOutputResponse(checked=checked, decision=decision)] if checked or is_last else []


def verdict_on(text: str) -> pb.ScoreResponse:
    """Give the verdict that a text's words ask for; law 1 speaks against what is not allowed."""
    outcome = next((found for words, found in _OUTCOMES.items() if words in text), decision_pb2.OUTCOME_ALLOW)
    decision = _decision(outcome)
    if outcome == decision_pb2.OUTCOME_ALLOW:
        return pb.ScoreResponse(decision=decision, laws=[pb.LawScore(law=law) for law in range(5)])
    decision.category = decision.evidence[0].category = "violence.killing"
    return pb.ScoreResponse(
        decision=decision,
        laws=[
            pb.LawScore(
                law=law, score=1.0 if law == 1 else 0.0, category=decision.category if law == 1 else ""
            )
            for law in range(5)
        ],
        categories=[
            pb.CategoryScore(category="violence.killing", score=0.9),
            pb.CategoryScore(category="cyber.malware", score=0.25),
        ],
    )


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
