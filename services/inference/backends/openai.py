"""OpenAI itself, or a service that speaks its protocol; used only by requests that allow data to leave."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import ClassVar, Final

from services.inference.backend import BackendFailure, Capability, ModelInfo, cannot_do
from services.inference.backends.openai_compatible import OpenAICompatibleBackend
from services.inference.backends.openai_tasks import EmbeddingServer
from services.inference.backends.remote import RemoteBackend
from services.inference.chat import ChatCall, Event
from services.inference.tasks import EmbedCall, Vectors

EMBEDDING_MODEL: Final = "text-embedding-"
"""How the names of its embedding models begin."""


class OpenAIBackend(RemoteBackend, EmbeddingServer, OpenAICompatibleBackend):
    """OpenAI's chat completions and embeddings."""

    # Its reasoning models know the limit by this name only.
    limit_field: ClassVar[str] = "max_completion_tokens"

    @property
    def key_cure(self) -> str:
        return "set OPENAI_API_KEY to a key that is valid"

    def answer(self, call: ChatCall, model: ModelInfo, begin: Callable[[], None]) -> AsyncGenerator[Event]:
        return OpenAICompatibleBackend.chat(self, call, model, begin)

    def abilities(self, name: str) -> frozenset[Capability]:
        """Tell embedding models by their names."""
        return frozenset({Capability.EMBED}) if name.startswith(EMBEDDING_MODEL) else super().abilities(name)

    async def embed(self, call: EmbedCall, model: ModelInfo, begin: Callable[[], None]) -> Vectors:
        """Embed; see Embedder."""
        try:
            return await super().embed(call, model, begin)
        except BackendFailure as failure:
            self.note(failure)
            raise

    def extras(self, model: ModelInfo) -> dict[str, object]:  # noqa: ARG002 - the same for all
        """Keep the conversation out of the service's own store."""
        return {"store": False}

    def _request(self, call: ChatCall, model: ModelInfo, *, stream: bool) -> bytes:
        if call.sampling.top_k:
            raise cannot_do("sampling.top_k: OpenAI has none; leave it out")
        return super()._request(call, model, stream=stream)
