"""Anthropic's Messages API; used only by requests that allow data to leave."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Final

from services.inference.backend import BackendFailure, ModelInfo
from services.inference.backends.anthropic_wire import EventReader, request_body
from services.inference.backends.model_server import OK
from services.inference.backends.openai_compatible import fed
from services.inference.backends.remote import RemoteBackend
from services.inference.chat import ChatCall, Event
from services.inference.sse import SseReader

MESSAGES_PATH: Final = "/v1/messages"
NOT_FOUND: Final = 404

VERSION_HEADERS: Final = {"anthropic-version": "2023-06-01"}
KEY_HEADER: Final = "x-api-key"


class AnthropicBackend(RemoteBackend):
    """Anthropic's models."""

    @property
    def key_cure(self) -> str:
        return "set ANTHROPIC_API_KEY to a key that is valid"

    def failure_of(self, status: int, body: bytes) -> BackendFailure:
        failure = super().failure_of(status, body)
        if status == NOT_FOUND and failure.reason == "NOT_SERVED" and failure.told:
            # The endpoint is always there, so what was not found is the model.
            return BackendFailure("MODEL_NOT_FOUND", "does not know the model", told=failure.told)
        return failure

    async def answer(
        self, call: ChatCall, model: ModelInfo, begin: Callable[[], None]
    ) -> AsyncGenerator[Event]:
        """Generate by a stream of events."""
        body = request_body(call, model=model.id, max_output_tokens=self._max_output_tokens)
        async with self._http.post(MESSAGES_PATH, body, begin, streams=True) as answer:
            if answer.status != OK or "event-stream" not in answer.content_type:
                raise self.failure_of(answer.status, await answer.error_body())
            sse, reader = SseReader(), EventReader()
            while not reader.is_done and (data := await answer.read()):
                for event in reader.read(fed(sse, data)):
                    self._check_model(event, model)
                    yield event
            if not reader.is_done:
                for event in reader.read(sse.finish()):
                    self._check_model(event, model)
                    yield event
            if not reader.is_done:
                raise reader.cut()
            await answer.drain()
