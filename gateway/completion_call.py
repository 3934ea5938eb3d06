"""Opens the call of inference that generates: a chat, or a completion that is read as if it were one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

from gateway.acts import COMPLETE_RPC
from kala.common.v1 import clearance_pb2
from kala.inference.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub

Call: TypeAlias = Any  # grpc.aio types its call objects loosely


def open_generation(
    inference: InferenceServiceAsyncStub,
    rpc: str,
    sealed: clearance_pb2.SealedAction,
    *,
    timeout_seconds: float,
) -> Call:
    """Call the RPC; what comes back gives ChatResponses and can be cancelled."""
    if rpc == COMPLETE_RPC:
        return _AsChat(inference.Complete(pb.CompleteRequest(sealed=sealed), timeout=timeout_seconds))
    return inference.Chat(pb.ChatRequest(sealed=sealed), timeout=timeout_seconds)


class _AsChat:
    """A completion's text is checked, held back and recorded as a chat's."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def __aiter__(self) -> AsyncIterator[pb.ChatResponse]:
        async for response in self._call:
            yield as_chat(response)

    def cancel(self) -> None:
        """End the call."""
        self._call.cancel()


def as_chat(response: pb.CompleteResponse) -> pb.ChatResponse:
    """Give a message of a completion as a chat's."""
    return pb.ChatResponse(
        route=response.route if response.HasField("route") else None,
        delta=pb.ChatDelta(text=response.text) if response.text else None,
        finish=response.finish if response.HasField("finish") else None,
    )
