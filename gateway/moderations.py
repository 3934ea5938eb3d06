"""`POST /v1/moderations`: the Five Laws' verdict on texts, in OpenAI's shape; nothing is generated and nothing follows.

A call is answered whole or not at all: a text without a verdict must not look like one without a finding.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from gateway.background import Background
from gateway.chat import ChatLimits
from gateway.edge import Exchange, until_disconnect
from gateway.errors import ETHICS_UNAVAILABLE
from gateway.gate import Gate
from gateway.judge import UNAVAILABLE_TEXT, EthicsClient
from gateway.keys import ApiKey
from gateway.ledger import Inquiry, Ledger
from gateway.limits.reservation import Reservation
from gateway.moderation_categories import Json, is_whole, result_of
from gateway.moderation_schema import STAGES, Question, parse_moderation_request
from gateway.pipeline import CLIENT_CLOSED, Recorded
from gateway.strict_json import read_object
from kala.common.v1 import decision_pb2, options_pb2
from kala.errors import InvalidArgumentError, KalaError, UnavailableError

if TYPE_CHECKING:
    from kala.ethics.v1 import ethics_pb2

ROUTE: Final = "HTTP POST /v1/moderations"
KIND: Final = "moderation"
ID_BYTES: Final = 12

MODEL_PREFIX: Final = "kala-constitution-"
DIGEST_CHARS: Final = 16
"""As the log's judges name the constitution."""

SCORES_AT_ONCE: Final = 4
"""Texts of one call that are judged at a time: as many as ethics judges beside each other, so that no call fills its queue."""

CALL_SECONDS: Final = 30.0
"""All texts of one call; a caller that guards its own traffic waits no longer."""


class Moderations:
    """Answers moderation requests; one per process."""

    def __init__(
        self,
        *,
        gate: Gate,
        ledger: Ledger,
        ethics: EthicsClient,
        background: Background,
        limits: ChatLimits,
        allows_unjudged: bool,
        may_spool: bool,
        new_id: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._gate = gate
        self._ledger = ledger
        self._ethics = ethics
        self._background = background
        self._limits = limits
        self._allows_unjudged = allows_unjudged
        self._may_spool = may_spool
        self._new_id = new_id

    async def moderate(self, exchange: Exchange) -> None:
        """Handle one request."""
        exchange.is_audited = True
        key = await self._gate.admit(exchange, rpc=ROUTE, scope=options_pb2.SCOPE_CHAT)
        question, body = await self._read(exchange, key)
        inquiry = Inquiry(
            kind=KIND,
            rpc=ROUTE,
            caller=self._gate.caller(key, question.person),
            request_id=exchange.request_id,
            trace_id=exchange.trace_id,
            started=exchange.started,
            body=body,
            may_spool=self._may_spool,
        )
        async with self._gate.reserve(exchange, key) as reservation:
            await until_disconnect(exchange, self._answer(exchange, inquiry, question, reservation))

    async def _read(self, exchange: Exchange, key: ApiKey) -> tuple[Question, bytes]:
        """Read and validate a request; a malformed one of a known caller leaves a record, then raises."""
        body = b""
        limits = self._limits
        try:
            body = await exchange.read_body(
                # Images are never judged: only where they are left out may they make a body large.
                max_bytes=limits.max_image_body_bytes if self._allows_unjudged else limits.max_body_bytes,
                timeout_seconds=limits.body_timeout_seconds,
            )
            return parse_moderation_request(read_object(body), allows_unjudged=self._allows_unjudged), body
        except InvalidArgumentError as error:
            await self._gate.count(exchange, key)
            exchange.receipt = await self._ledger.invalid(
                self._gate.caller(key),
                kind=KIND,
                rpc=ROUTE,
                error=error,
                body=body,
                request_id=exchange.request_id,
                trace_id=exchange.trace_id,
            )
            raise

    async def _answer(
        self, exchange: Exchange, inquiry: Inquiry, question: Question, reservation: Reservation
    ) -> None:
        try:
            verdicts = await self._judge(question)
        except KalaError as error:
            receipt = await self._ledger.unanswered(inquiry, "error", error.reason)
            raise Recorded(error, receipt) from error
        except asyncio.CancelledError:
            self._background.spawn(self._ledger.unanswered(inquiry, "cancelled", CLIENT_CLOSED))
            raise
        answer = self._body(question, verdicts)
        decisions = [verdict.decision for verdict in verdicts]
        facts = {f"{KIND}.{name}": value for name, value in _facts(question, decisions).items()}
        # Kept: client or no client, what was judged is on record.
        record = self._background.keep(
            self._ledger.answered(inquiry, gravest(decisions), released=released_bytes(answer), facts=facts)
        )
        exchange.receipt = receipt = await asyncio.shield(record)
        reservation.settle_nothing()
        exchange.overhead_ms = exchange.elapsed_ms
        extension = {"receipt": receipt.to_json(), "overhead_ms": exchange.overhead_ms}
        await exchange.send_json(200, {**answer, "kala": extension})

    async def _judge(self, question: Question) -> Sequence[ethics_pb2.ScoreResponse]:
        """Judge every text; the first failure ends the call, and the rest with it."""
        turns = asyncio.Semaphore(SCORES_AT_ONCE)

        async def judge(text: str, field: str) -> ethics_pb2.ScoreResponse:
            async with turns:
                return await self._score(question, text, field)

        tasks = [
            asyncio.ensure_future(judge(text, field))
            for text, field in zip(question.texts, question.fields, strict=True)
        ]
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await asyncio.gather(*tasks)
        except TimeoutError as error:
            raise UnavailableError(
                f"the texts were not judged within {CALL_SECONDS:g} s; send fewer or shorter ones",
                reason=ETHICS_UNAVAILABLE,
            ) from error
        finally:
            for task in tasks:
                task.cancel()

    async def _score(self, question: Question, text: str, field: str) -> ethics_pb2.ScoreResponse:
        try:
            verdict = await self._ethics.score(
                text, stage=STAGES[question.stage], request_text=question.request_text
            )
        except InvalidArgumentError as error:
            # Ethics names the field of its own contract; the caller knows another.
            raise InvalidArgumentError(field, error.problem, reason=error.reason) from error
        if not is_whole(verdict):
            raise UnavailableError(UNAVAILABLE_TEXT, reason=ETHICS_UNAVAILABLE)
        return verdict

    def _body(self, question: Question, verdicts: Sequence[ethics_pb2.ScoreResponse]) -> Json:
        digest = verdicts[0].decision.constitution_digest.hex()
        return {
            "id": f"modr-{self._new_id(ID_BYTES)}",
            "model": MODEL_PREFIX + digest[:DIGEST_CHARS],
            "results": [
                result_of(verdict, stage=question.stage, unjudged=question.unjudged) for verdict in verdicts
            ],
        }


def released_bytes(answer: Json) -> bytes:
    """Spell an answer as the log commits to it: without its receipt, as JSON with sorted keys and no spaces."""
    return json.dumps(answer, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def gravest(decisions: Sequence[decision_pb2.Decision]) -> decision_pb2.Decision:
    """Give the decision that stands for a whole call: refusals before questions, lower laws first, an unfinished check before all."""
    return min(decisions, key=_gravity)


def _gravity(decision: decision_pb2.Decision) -> tuple[int, int]:
    rank = {decision_pb2.OUTCOME_ALLOW: 2, decision_pb2.OUTCOME_ASK_CLARIFICATION: 1}.get(decision.outcome, 0)
    return rank, decision.law if decision.HasField("law") else -1


def _facts(question: Question, decisions: Sequence[decision_pb2.Decision]) -> dict[str, str]:
    """Say in the record what one decision cannot: how many texts there were, and what each came to."""
    flagged = sum(decision.outcome != decision_pb2.OUTCOME_ALLOW for decision in decisions)
    facts = {"stage": question.stage, "texts": str(len(decisions)), "flagged": str(flagged)}
    if question.unjudged:
        facts["unjudged"] = str(len(question.unjudged))
    if len(decisions) > 1:
        facts |= {f"text_{index}": _in_words(decision) for index, decision in enumerate(decisions)}
    return facts


def _in_words(decision: decision_pb2.Decision) -> str:
    outcome = decision_pb2.Outcome.Name(decision.outcome).removeprefix("OUTCOME_")
    law = f" law {decision.law}" if decision.HasField("law") else ""
    return f"{decision.id} {outcome}{law} {decision.category}".rstrip()
