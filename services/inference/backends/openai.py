"""OpenAI itself, or a service that speaks its protocol; used only by requests that allow data to leave."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import ClassVar

from services.inference.backend import ModelInfo, cannot_do
from services.inference.backends.openai_compatible import OpenAICompatibleBackend
from services.inference.backends.remote import RemoteBackend
from services.inference.chat import ChatCall, Event


class OpenAIBackend(RemoteBackend, OpenAICompatibleBackend):
    """OpenAI's chat completions."""

    # Its reasoning models know the limit by this name only.
    limit_field: ClassVar[str] = "max_completion_tokens"

    @property
    def key_cure(self) -> str:
        return "set OPENAI_API_KEY to a key that is valid"

    def answer(self, call: ChatCall, model: ModelInfo, begin: Callable[[], None]) -> AsyncGenerator[Event]:
        return OpenAICompatibleBackend.chat(self, call, model, begin)

    def extras(self, model: ModelInfo) -> dict[str, object]:  # noqa: ARG002 - the same for all
        """Keep the conversation out of the service's own store."""
        return {"store": False}

    def _request(self, call: ChatCall, model: ModelInfo, *, stream: bool) -> bytes:
        if call.sampling.top_k:
            raise cannot_do("sampling.top_k: OpenAI has none; leave it out")
        return super()._request(call, model, stream=stream)
