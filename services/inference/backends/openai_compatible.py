"""Chat and text completion over the OpenAI-compatible protocol, as LM Studio, llama-server, mlx_lm.server and OpenAI itself share it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import ClassVar, Final

from services.inference.backend import BackendFailure, Blame, ModelInfo
from services.inference.backends.model_server import OK, ModelServerBackend
from services.inference.backends.openai_wire import ChunkReader, read_completion, request_body
from services.inference.backends.task_wire import completion_body
from services.inference.chat import ChatCall, Event
from services.inference.failures import failure_of_body
from services.inference.sse import EventTooLongError, SseReader
from services.inference.tasks import CompleteCall

CHAT_PATH: Final = "/v1/chat/completions"
COMPLETE_PATH: Final = "/v1/completions"
MODELS_PATH: Final = "/v1/models"


class OpenAICompatibleBackend(ModelServerBackend):
    """A server that speaks the OpenAI chat protocol; servers differ in how they tell their state, and in a few habits."""

    always_streams: ClassVar[bool] = False
    """Whether the server notices a closed connection only while it streams."""

    limit_field: ClassVar[str] = "max_tokens"
    """What it calls the token limit."""

    def extras(self, model: ModelInfo) -> dict[str, object] | None:  # noqa: ARG002 - for those that need it
        """Give the fields of a request that only this server understands."""
        return None

    def extras_of(self, call: ChatCall) -> dict[str, object]:  # noqa: ARG002 - for those that need it
        """Give more of them, which depend on the conversation."""
        return {}

    def streams(self, call: ChatCall) -> bool:
        """Tell whether the answer is asked for as a stream."""
        return call.stream or self.always_streams

    def chat(self, call: ChatCall, model: ModelInfo, begin: Callable[[], None]) -> AsyncGenerator[Event]:
        """Generate; see Backend.chat."""
        stream = self.streams(call)
        return self._events(CHAT_PATH, self._request(call, model, stream=stream), model, begin, stream=stream)

    def complete(
        self, call: CompleteCall, model: ModelInfo, begin: Callable[[], None]
    ) -> AsyncGenerator[Event]:
        """Continue a text; see Completer."""
        if call.suffix:
            told = "suffix: this server fills no gaps; leave it out, or choose a backend that does"
            raise BackendFailure(
                "BACKEND_REJECTED", "cannot do what the request asks", blame=Blame.CALLER, told=told
            )
        stream = call.stream or self.always_streams
        body = completion_body(
            call,
            model=self.wire_model(model),
            stream=stream,
            max_output_tokens=self._max_output_tokens,
            extra=self.extras(model),
        )
        return self._events(COMPLETE_PATH, body, model, begin, stream=stream, is_text=True)

    async def _events(
        self,
        path: str,
        body: bytes,
        model: ModelInfo,
        begin: Callable[[], None],
        *,
        stream: bool,
        is_text: bool = False,
    ) -> AsyncGenerator[Event]:
        """Send a request and read its answer; leaving early closes the exchange."""
        async with self._http.post(path, body, begin, streams=stream) as answer:
            if answer.status != OK:
                raise self.failure_of(answer.status, await answer.error_body())
            if not stream or "json" in answer.content_type:
                for event in read_completion(await answer.body(), is_text=is_text):
                    self._check_model(event, model)
                    yield event
                return
            if "html" in answer.content_type:
                raise failure_of_body(answer.status, await answer.error_body())
            sse, chunks = SseReader(), ChunkReader(is_text=is_text)
            while not chunks.is_done and (data := await answer.read()):
                for event in chunks.read(fed(sse, data)):
                    self._check_model(event, model)
                    yield event
            if not chunks.is_done:
                for event in chunks.read(sse.finish()):
                    self._check_model(event, model)
                    yield event
            if not chunks.is_done:
                raise chunks.cut()
            await answer.drain()

    def _request(self, call: ChatCall, model: ModelInfo, *, stream: bool) -> bytes:
        """Write the request in this server's dialect."""
        return request_body(
            call,
            model=self.wire_model(model),
            stream=stream,
            max_output_tokens=self._max_output_tokens,
            limit_field=self.limit_field,
            extra={**(self.extras(model) or {}), **self.extras_of(call)},
        )


def fed(sse: SseReader, data: bytes) -> list[tuple[bytes, bytes]]:
    """Give the events that end in a read; raises BackendFailure for one without an end."""
    try:
        return sse.feed(data)
    except EventTooLongError as error:
        raise BackendFailure("MALFORMED_ANSWER", str(error), blame=Blame.BACKEND) from error
