"""How much a request may use, guessed before it is carried out; the settlement puts it right.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kala.common.v1 import usage_pb2
from kala.inference.v1 import inference_pb2 as pb
from kala.tools.v1 import tools_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

BYTES_PER_TOKEN: Final = 3
"""English has about four bytes to a token and Chinese three: a guess that errs upward."""

TOKENS_PER_IMAGE: Final = 1024
"""About what vision models of today make of one image in detail."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is set aside for one request."""

    input_tokens: int = 0
    output_tokens: int | None = 0
    """None where the request names no limit: the gateway's `reserve_output_tokens` is taken."""
    model: str = ""
    """As asked for; finds the price."""


NOTHING: Final = Estimate()
"""For what uses no tokens; it counts as a request."""

_GENERATING: Final = (pb.ChatAction, pb.CompleteAction, tools_pb2.GenerateCodeAction)
_READING: Final = (pb.EmbedAction, pb.RerankAction)


def estimate_of(action: Message) -> Estimate:
    """Guess what an action will use; nothing where no model is asked."""
    model = getattr(action, "model", "")
    if not isinstance(action, _GENERATING):
        return Estimate(_tokens_in(action), 0, model) if isinstance(action, _READING) else NOTHING
    if isinstance(action, tools_pb2.GenerateCodeAction) or not action.sampling.HasField("max_output_tokens"):
        return Estimate(_tokens_in(action), None, model)
    return Estimate(_tokens_in(action), action.sampling.max_output_tokens, model)


def _tokens_in(action: Message) -> int:
    size, images = action.ByteSize(), 0
    if isinstance(action, pb.ChatAction):
        for message in action.messages:
            for part in message.content:
                if part.image_data_uri:
                    images += 1
                    size -= len(part.image_data_uri)
    return tokens_in_bytes(size) + images * TOKENS_PER_IMAGE


def tokens_in_bytes(size: int) -> int:
    """Guess how many tokens a text is, by its length in UTF-8."""
    return -(-size // BYTES_PER_TOKEN)


def tokens_of(usage: usage_pb2.Usage | None, estimate: Estimate) -> tuple[int, int]:
    """Give input and output tokens as they were counted; what the backend did not count stays as estimated."""
    if usage is None:
        return estimate.input_tokens, estimate.output_tokens or 0
    counted_input = usage.input_tokens if usage.HasField("input_tokens") else estimate.input_tokens
    counted_output = usage.output_tokens if usage.HasField("output_tokens") else (estimate.output_tokens or 0)
    return counted_input, counted_output
