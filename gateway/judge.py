"""Asks ethics; an ethics that does not answer is a refusal, never a pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc

from gateway.acts import Act
from gateway.errors import ETHICS_UNAVAILABLE
from kala.common.v1 import clearance_pb2, decision_pb2
from kala.errors import InvalidArgumentError, KalaError, UnavailableError
from kala.ethics.v1 import ethics_pb2
from services.common.status import from_error

if TYPE_CHECKING:
    from kala.ethics.v1.ethics_pb2_grpc import EthicsServiceAsyncStub

UNAVAILABLE_TEXT: Final = "the ethics service does not answer, so nothing was forwarded; try again"


class EthicsClient:
    """Judges actions, opens the check of outputs, and asks for verdicts on texts."""

    def __init__(
        self, stub: EthicsServiceAsyncStub, *, timeout_seconds: float, max_act_seconds: float
    ) -> None:
        self._stub = stub
        self.timeout_seconds = timeout_seconds
        self._max_act_seconds = max_act_seconds

    async def check(self, act: Act) -> ethics_pb2.CheckActionResponse:
        """Judge an act; raises UnavailableError with reason ETHICS_UNAVAILABLE when there is no judgement."""
        request = ethics_pb2.CheckActionRequest(
            action=act.action,
            audience=act.rpc,
            principal=act.caller.principal,
            purpose=clearance_pb2.PURPOSE_REQUEST,
            after_untrusted_content=act.after_untrusted_content,
            presenter=act.presenter,
        )
        try:
            response = await self._stub.CheckAction(request, timeout=self.timeout_seconds)
        except grpc.RpcError as error:
            raise ethics_failure(error) from error
        _require_whole(response)
        return response

    async def score(
        self, text: str, *, stage: ethics_pb2.Stage.ValueType, request_text: str = ""
    ) -> ethics_pb2.ScoreResponse:
        """Ask for the verdict on a text; raises UnavailableError with reason ETHICS_UNAVAILABLE when there is none."""
        request = ethics_pb2.ScoreRequest(text=text, stage=stage, request_text=request_text)
        try:
            return await self._stub.Score(request, timeout=self.timeout_seconds)
        except grpc.RpcError as error:
            raise ethics_failure(error) from error

    def open_check(self) -> Any:  # Any: grpc.aio's bidirectional call, typed by its own stubs only loosely
        """Open the check of one output; the caller writes, reads and cancels it."""
        return self._stub.CheckOutput(timeout=self._max_act_seconds)


def ethics_failure(error: grpc.RpcError) -> KalaError:
    """Turn a failed call of ethics into the error that its caller may see: unavailable, unless the request is at fault."""
    known = from_error(error)
    if isinstance(known, InvalidArgumentError):
        return known
    return UnavailableError(UNAVAILABLE_TEXT, reason=ETHICS_UNAVAILABLE)


def _require_whole(response: ethics_pb2.CheckActionResponse) -> None:
    """Refuse a reply that an old or faulty ethics could send: no outcome, or an ALLOW without a clearance."""
    outcome = response.decision.outcome
    if outcome == decision_pb2.OUTCOME_UNSPECIFIED or (
        outcome == decision_pb2.OUTCOME_ALLOW and not response.HasField("clearance")
    ):
        raise UnavailableError(UNAVAILABLE_TEXT, reason=ETHICS_UNAVAILABLE)
