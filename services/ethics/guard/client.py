"""Ask a guard model through inference, with a clearance that ethics gives itself: purpose JUDGE, for this one call.

Nobody judges such a call, so there is no recursion; inference takes JUDGE from ethics alone, so what the model says
returns only here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from kala.common.v1.clearance_pb2 import PURPOSE_JUDGE, Principal, SealedAction
from kala.errors import UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from services.common.clearance import JUDGE_AUDIENCE, ClearanceSigner
from services.common.sealing import pack
from services.common.status import translated
from services.ethics.guard.prompt import ASSISTANT, SYSTEM, USER, Turn
from services.ethics.guard.verdict import MAX_REPLY_CHARS, Reply, Token

if TYPE_CHECKING:
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub

PRINCIPAL: Final = Principal(id="ethics", tenant="kala")
"""Whose act it is: nobody's request, and nobody's budget."""

_ROLES: Final = {SYSTEM: pb.ROLE_SYSTEM, USER: pb.ROLE_USER, ASSISTANT: pb.ROLE_ASSISTANT}
_ENDS: Final = frozenset({pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH})


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt for the guard."""

    turns: tuple[Turn, ...]
    max_output_tokens: int
    logprobs: bool


class GuardClient(Protocol):
    """Whatever can put a prompt to the guard."""

    @property
    def model(self) -> str:
        """The model's name; it goes into every piece of evidence."""
        ...

    async def ask(self, ask: Ask) -> Reply:
        """The model's reply; any error means that there is none."""
        ...


class InferenceGuardClient:
    """Asks by inference.Chat; the caller sets the deadline."""

    def __init__(
        self,
        stub: InferenceServiceAsyncStub,
        *,
        model: str,
        signer: ClearanceSigner,
        presenter: str,
        constitution_digest: bytes,
        timeout_seconds: float,
        random_hex: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self.model = model
        self._stub = stub
        self._signer = signer
        self._presenter = presenter
        self._constitution_digest = constitution_digest
        self._timeout_seconds = timeout_seconds
        self._random_hex = random_hex

    async def ask(self, ask: Ask) -> Reply:
        """The whole reply; a KalaError when there is none, UnavailableError when it broke off or is no text."""
        texts: list[str] = []
        tokens: list[Token] = []
        finish = pb.FINISH_REASON_UNSPECIFIED
        with translated():
            request = pb.ChatRequest(sealed=self._sealed(_action(self.model, ask)))
            # A connection that is being made, or an inference that starts again, is waited for within the deadline.
            call = self._stub.Chat(request, timeout=self._timeout_seconds, wait_for_ready=True)
            try:
                async for response in call:
                    texts.append(response.delta.text)
                    tokens += [Token(item.token, item.logprob) for item in response.delta.logprobs]
                    finish = response.finish.reason or finish
                    if response.delta.tool_calls or sum(map(len, texts)) > MAX_REPLY_CHARS:
                        raise UnavailableError("the guard answered something else than a verdict")
            finally:
                call.cancel()
        if finish not in _ENDS:
            raise UnavailableError("the guard's answer did not end in order")
        return Reply("".join(texts), tuple(tokens))

    def _sealed(self, action: pb.ChatAction) -> SealedAction:
        packed = pack(action)
        clearance = self._signer.mint(
            decision_id=self._random_hex(),
            audience=JUDGE_AUDIENCE,
            action=packed,
            constitution_digest=self._constitution_digest,
            presenter=self._presenter,
            principal=PRINCIPAL,
            purpose=PURPOSE_JUDGE,
        )
        return SealedAction(action=packed, clearance=clearance)


def _action(model: str, ask: Ask) -> pb.ChatAction:
    """The generation: greedy, short, and never beyond this machine's own backends."""
    return pb.ChatAction(
        model=model,
        messages=[_message(turn) for turn in ask.turns],
        sampling=pb.Sampling(
            temperature=0.0, max_output_tokens=ask.max_output_tokens, logprobs=ask.logprobs or None
        ),
        allow_remote=False,
    )


def _message(turn: Turn) -> pb.ChatMessage:
    return pb.ChatMessage(role=_ROLES[turn.role], content=[pb.ContentPart(text=turn.text)])
