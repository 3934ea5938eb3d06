"""What the gateway writes into the transparency log: intents, outcomes, refusals, denials and administrative acts.

Every method returns only after the record is durable, in the log or, where the policy allows it, in the spool; else it
raises UnavailableError with reason AUDIT_UNAVAILABLE.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.acts import Act, Ending, Logged, Served
from gateway.answer import Answer
from gateway.call_facts import facts_of_call, tool_of
from gateway.identity import Caller
from kala.audit.canonical import MAX_INTEGER
from kala.audit.v1 import audit_pb2
from kala.common.v1 import decision_pb2, usage_pb2
from kala.errors import InternalError, InvalidArgumentError, KalaError
from services.common.audit_client import Appended, AppendStatus, AuditPolicy, AuditWriter, Payload
from services.common.sealing import action_digest

ANONYMOUS_TENANT: Final = "anonymous"
"""The tenant of requests that nobody could be found behind."""

OUTCOME_NOT_TAKEN: Final = "OUTCOME_NOT_TAKEN"
"""An act ended, and the log refused the record of how: a fault of KALA's parts, not of the request."""

MILLION: Final = 1_000_000
MAX_ATTRIBUTE_CHARS: Final = 1024
MAX_NAME_CHARS: Final = 1024
"""The log refuses longer texts; a backend chooses its models' names, and must not undo its own record with one."""


@dataclass(frozen=True, slots=True)
class Inquiry:
    """One question that is answered without any act: nothing runs, so there is neither intent nor outcome."""

    kind: str  # begins the types of its records: "moderation" gives moderation.verdict, moderation.refused
    rpc: str
    caller: Caller
    request_id: str
    trace_id: str
    started: float  # monotonic seconds, when the request arrived
    body: bytes
    may_spool: bool = True


class Ledger:
    """Builds records and appends them."""

    def __init__(self, writer: AuditWriter, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._writer = writer
        self._clock = clock

    def is_ready(self) -> bool:
        """Tell whether a record would become durable now: the log answers, or the spool has room."""
        return self._writer.ready()

    async def intent(self, act: Act, decision: decision_pb2.Decision, *, key: bytes) -> Logged:
        """Log that an allowed act is about to happen; `key` is the receipt's id, made before."""
        record = _record_of(act, "intent")
        record.decision.CopyFrom(_decision_of(decision))
        return await self._append(
            record, [Payload("request", act.action.value)], key=key, may_spool=act.may_spool
        )

    async def outcome(self, act: Act, ending: Ending, *, intent: bytes | None) -> Logged:
        """Log how an act ended, with commitments to what was generated and to what was released."""
        record = _record_of(act, "outcome")
        record.intent = intent or b""
        if ending.decision is not None:
            record.decision.CopyFrom(_decision_of(ending.decision))
        record.model.CopyFrom(_model_of(act, ending.served))
        record.result.CopyFrom(_result_of(act, ending, self._clock()))
        if ending.rejudged_by:
            _add(record, {"result.rejudged": ending.rejudged_by})
        _add(record, {**ending.facts, **facts_of_call(act, ending)})
        payloads = [*_answer_payloads(record, ending.generated, ending.released)]
        if ending.derived_digest:
            _add(record, {"result.derived": ending.derived_digest.hex()})
        if splices := sum(attempt.spliced for attempt in ending.served.attempts):
            _add(record, {"result.splices": str(splices)})
        try:
            return await self._append(record, payloads, may_spool=act.may_spool)
        except InvalidArgumentError as error:
            await self._outcome_not_taken(act, error, intent=intent)
            raise InternalError(
                "the log refuses the record of how this act ended; the outcome in its place names the field",
                reason=OUTCOME_NOT_TAKEN,
            ) from error

    async def _outcome_not_taken(
        self, act: Act, error: InvalidArgumentError, *, intent: bytes | None
    ) -> None:
        """Log an outcome of which only the act is known, and which field the log refused: no intent stays alone."""
        structlog.get_logger().error("the log refuses an outcome", field=error.field, rpc=act.rpc)
        record = _record_of(act, "outcome")
        record.intent = intent or b""
        record.result.status, record.result.code = "error", OUTCOME_NOT_TAKEN
        _add(record, {"result.not_taken": error.field})
        await self._append(record, [], may_spool=act.may_spool)

    async def refused(self, act: Act, decision: decision_pb2.Decision, words: str) -> Logged:
        """Log an act that was judged and not allowed, with the words given instead."""
        record = _record_of(act, "refused")
        record.decision.CopyFrom(_decision_of(decision))
        record.model.requested = act.model
        record.result.CopyFrom(_result_of(act, Ending("refused"), self._clock()))
        payloads = [Payload("request", act.action.value), Payload("released", words.encode())]
        return await self._append(record, payloads, may_spool=act.may_spool)

    async def not_judged(self, act: Act, status: str, code: str) -> Logged:
        """Log an act that got no judgement and therefore did not happen."""
        record = _record_of(act, "refused")
        record.model.requested = act.model
        record.result.status = status
        record.result.code = code
        return await self._append(record, [Payload("request", act.action.value)], may_spool=act.may_spool)

    async def answered(
        self, inquiry: Inquiry, decision: decision_pb2.Decision, *, released: bytes, facts: Mapping[str, str]
    ) -> Logged:
        """Log what was said to an inquiry; the question is committed to and not kept, the answer is kept."""
        record = self._inquiry_record(inquiry, "verdict", "ok")
        record.decision.CopyFrom(_decision_of(decision))
        _add(record, {**facts, "result.released_form": inquiry.kind})
        payloads = [Payload("request", inquiry.body, store=False), Payload("released", released)]
        return await self._append(record, payloads, may_spool=inquiry.may_spool)

    async def unanswered(self, inquiry: Inquiry, status: str, code: str) -> Logged:
        """Log an inquiry that got no answer; the question is committed to and not kept."""
        record = self._inquiry_record(inquiry, "refused", status, code)
        return await self._append(
            record, [Payload("request", inquiry.body, store=False)], may_spool=inquiry.may_spool
        )

    async def invalid(self, caller: Caller, *, kind: str, rpc: str, error: KalaError, body: bytes, request_id: str,
                      trace_id: str) -> Logged:  # fmt: skip
        """Log a request of a known caller that was malformed; its body is committed to, not kept."""
        record = _edge_record(f"{kind}.invalid", rpc, error, request_id=request_id, trace_id=trace_id)
        _name_caller(record, caller)
        payloads = [Payload("request", body, store=False)] if body else []
        return await self._append(record, payloads)

    async def denied(self, *, rpc: str, error: KalaError, caller: Caller | None, request_id: str, trace_id: str,
                     coalesced: int = 0) -> Logged:  # fmt: skip
        """Log a request that was turned away: no key, a bad one, or one without the scope."""
        record = _edge_record("rpc.denied", rpc, error, request_id=request_id, trace_id=trace_id)
        if caller is None:
            record.tenant = ANONYMOUS_TENANT
        else:
            _name_caller(record, caller)
        if coalesced:
            _add(record, {"coalesced": str(coalesced)})
        return await self._append(record, [])

    async def administered(self, caller: Caller, *, rpc: str, facts: Mapping[str, str], request_id: str,
                           trace_id: str) -> Logged:  # fmt: skip
        """Log an administrative act before it happens; never spooled (design section 7)."""
        record = audit_pb2.Record(type="admin", trace_id=trace_id)
        record.action.rpc = rpc
        record.result.status = "ok"
        _name_caller(record, caller)
        _add(record, {"request_id": request_id, **facts})
        return await self._append(record, [], may_spool=False)

    def _inquiry_record(self, inquiry: Inquiry, step: str, status: str, code: str = "") -> audit_pb2.Record:
        record = audit_pb2.Record(type=f"{inquiry.kind}.{step}", trace_id=inquiry.trace_id)
        _name_caller(record, inquiry.caller)
        record.action.rpc = inquiry.rpc
        record.result.status, record.result.code = status, code
        record.result.duration_ms = max(0, round((self._clock() - inquiry.started) * 1000))
        _add(record, {"request_id": inquiry.request_id})
        return record

    async def _append(
        self,
        record: audit_pb2.Record,
        payloads: Sequence[Payload],
        *,
        key: bytes | None = None,
        may_spool: bool = True,
    ) -> Logged:
        policy = AuditPolicy.SPOOL if may_spool else AuditPolicy.FAIL_CLOSED
        return logged_of(await self._writer.append(record, payloads=payloads, key=key, policy=policy))


def logged_of(appended: Appended) -> Logged:
    """Give what a client is told of a record; the leaf's hash where there is an answer to hold against it."""
    salt = appended.openings.get("released")
    return Logged(
        id=appended.receipt_id,
        is_logged=appended.status is AppendStatus.LOGGED,
        index=appended.index,
        leaf_hash=appended.leaf_hash.hex() if salt else None,
        released_salt=salt.hex() if salt else None,
    )


def _record_of(act: Act, step: str) -> audit_pb2.Record:
    record = audit_pb2.Record(type=f"{act.kind}.{step}", trace_id=act.trace_id)
    _name_caller(record, act.caller)
    record.action.rpc = act.rpc
    record.action.digest = action_digest(act.action)
    record.action.tool = tool_of(act.action)
    _add(record, {"request_id": act.request_id, **act.facts})
    return record


def _edge_record(
    kind: str, rpc: str, error: KalaError, *, request_id: str, trace_id: str
) -> audit_pb2.Record:
    record = audit_pb2.Record(type=kind, trace_id=trace_id)
    record.action.rpc = rpc
    record.result.status = "refused"
    record.result.code = error.reason
    _add(record, {"request_id": request_id})
    return record


def _name_caller(record: audit_pb2.Record, caller: Caller) -> None:
    record.tenant = caller.tenant
    record.actor = caller.actor
    record.subject_key_id = caller.subject


def _add(record: audit_pb2.Record, attributes: Mapping[str, str]) -> None:
    for key, value in attributes.items():
        record.attributes.add(key=key, value=value[:MAX_ATTRIBUTE_CHARS])


def _answer_payloads(
    record: audit_pb2.Record, generated: Answer | None, released: Answer | None
) -> Iterable[Payload]:
    if generated is None or released is None:
        return
    made, left = generated.to_bytes(), released.to_bytes()
    # What was withheld is kept for the auditor; what left is the same text and is kept once.
    yield Payload("generated", made, store=made != left)
    yield Payload("released", left)
    _add(record, {"result.generated_form": generated.form, "result.released_form": released.form})


def _decision_of(decision: decision_pb2.Decision) -> audit_pb2.RecordDecision:
    record = audit_pb2.RecordDecision(
        id=decision.id,
        outcome=decision.outcome,
        law=decision.law if decision.HasField("law") else None,
        category=decision.category,
        constitution_digest=decision.constitution_digest,
    )
    version = f"constitution:{decision.constitution_digest.hex()[:16]}"
    strongest: dict[str, decision_pb2.Evidence] = {}
    for evidence in decision.evidence:
        strongest.setdefault(evidence.judge, evidence)
    for name in decision.judges:
        judge = record.judges.add(name=name, version=version, outcome=decision_pb2.OUTCOME_ALLOW)
        if (seen := strongest.get(name)) is not None:
            judge.version = seen.rule or version
            judge.outcome = seen.outcome or decision_pb2.OUTCOME_ALLOW
            judge.score_millionths = min(MILLION, max(0, round(seen.score * MILLION)))
            if seen.HasField("law"):
                judge.law = seen.law
    return record


def _model_of(act: Act, served: Served) -> audit_pb2.RecordModel:
    return audit_pb2.RecordModel(
        requested=act.model,
        served=served.model[:MAX_NAME_CHARS],
        backend=served.backend,
        base_digest=served.base_digest,
        adapter_digest=served.adapter_digest,
    )


def _result_of(act: Act, ending: Ending, now: float) -> audit_pb2.RecordResult:
    result = audit_pb2.RecordResult(
        status=ending.status,
        code=ending.code,
        finish_reason=ending.finish_reason,
        attempts=[
            audit_pb2.RecordAttempt(
                backend=attempt.backend,
                model=attempt.model[:MAX_NAME_CHARS],
                outcome="failed" if attempt.reason else "ok",
                reason=attempt.reason,
            )
            for attempt in ending.served.attempts
        ],
        duration_ms=max(0, round((now - act.started) * 1000)),
    )
    if ending.usage is not None:
        _count_tokens(result, ending.usage)
    return result


def _count_tokens(result: audit_pb2.RecordResult, usage: usage_pb2.Usage) -> None:
    # A backend counts the tokens: a count that no log takes must not cost the record of what it said.
    if usage.HasField("input_tokens") and usage.input_tokens <= MAX_INTEGER:
        result.input_tokens = usage.input_tokens
    if usage.HasField("output_tokens") and usage.output_tokens <= MAX_INTEGER:
        result.output_tokens = usage.output_tokens
