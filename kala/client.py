"""A blocking client of a KALA gateway: chat, streams, models, receipts, and the rest over the REST bridge."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import httpx

from kala import client_wire as wire
from kala.client_wire import MODEL_AUTO, READ_SECONDS, Message, Retries
from kala.errors import InternalError, KalaError, PermissionDeniedError
from kala.replies import ChatReply
from kala.target import Target
from kala.tool_replies import ToolResult

__all__ = ["MODEL_AUTO", "READ_SECONDS", "ChatStream", "KalaClient"]

_WORKSPACE_FILES: Final = {"recursive": "true", "with_digests": "true"}

# `Any` in this module: parsed JSON, and OpenAI's open set of request parameters.


@dataclass(slots=True)
class ChatStream:
    """An answer while it arrives: iterate over its text; `reply` is there when the iteration has ended."""

    _chunks: Iterator[Mapping[str, Any]]
    _assembly: wire.Assembly = field(default_factory=wire.Assembly)
    _is_whole: bool = False

    def __iter__(self) -> Iterator[str]:
        """Every piece of text, as soon as it has been checked and released."""
        for chunk in self._chunks:
            if chunk is wire.END:
                self._is_whole = True
                continue
            yield from self._assembly.take(chunk)

    @property
    def steps(self) -> Sequence[Mapping[str, Any]]:
        """What KALA's own tools have done so far."""
        return self._assembly.steps

    @property
    def reply(self) -> ChatReply:
        """The whole answer with decision and receipt; only after the iteration."""
        if not self._is_whole:
            raise InternalError("the stream has not been read to its end")
        return self._assembly.reply()


@dataclass(slots=True)
class KalaClient:
    """Talks to one gateway; close it, or use it as a context manager. Safe for use by several threads."""

    target: Target
    transport: httpx.BaseTransport | None = None
    """For tests; None takes the network."""
    sleep: Callable[[float], None] = time.sleep
    retries: Retries = field(default_factory=Retries)
    _http: httpx.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Open the connection pool; nothing is sent yet."""
        self._http = httpx.Client(
            base_url=self.target.url,
            headers={"authorization": f"Bearer {self.target.key}"},
            timeout=wire.timeouts(),
            transport=self.transport,
            trust_env=not wire.is_loopback(self.target.url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def chat(
        self,
        messages: Sequence[Message],
        *,
        model: str = MODEL_AUTO,
        provider: str | None = None,
        role: str | None = None,
        truncation: str | None = None,
        timeout_seconds: float | None = None,
        **parameters: Any,  # Any: OpenAI parameters are an open set
    ) -> ChatReply:
        """Ask for one answer; refusals are answers too (`reply.allowed` tells), failures raise a KalaError.

        `role` names one of inference's configuration, whose model and settings apply where this call says nothing.
        `truncation` is `keep-system-and-tail` or `content-budget`; without it a conversation over the context is refused.
        """
        reply = self.call(
            "POST",
            wire.CHAT_PATH,
            body=wire.chat_body(messages, model, parameters),
            headers=wire.headers_of(provider, role, truncation),
            timeout_seconds=timeout_seconds,
        )
        return ChatReply.of(reply)

    @contextlib.contextmanager
    def stream(
        self,
        messages: Sequence[Message],
        *,
        model: str = MODEL_AUTO,
        provider: str | None = None,
        role: str | None = None,
        truncation: str | None = None,
        **parameters: Any,  # Any: OpenAI parameters are an open set
    ) -> Iterator[ChatStream]:
        """Ask for one answer, piece by piece: `with client.stream(…) as answer: for text in answer: …`."""
        body = wire.chat_body(messages, model, parameters, is_stream=True)
        headers = wire.headers_of(provider, role, truncation)
        with contextlib.ExitStack() as stack:
            response = self._retried(
                lambda: stack.enter_context(
                    self._http.stream("POST", wire.CHAT_PATH, json=body, headers=headers)
                )
            )
            yield ChatStream(_chunks(response))

    def embed(
        self, texts: Sequence[str], *, model: str = MODEL_AUTO, provider: str | None = None
    ) -> list[list[float]]:
        """One vector for each text, in their order; PermissionDeniedError for texts that the Five Laws refuse."""
        body = {"model": model, "input": list(texts)}
        headers = wire.headers_of(provider)
        return wire.vectors_of(self.call("POST", wire.EMBEDDINGS_PATH, body=body, headers=headers))

    def run_tool(self, action: Mapping[str, Any], *, timeout_seconds: float | None = None) -> ToolResult:
        """Run one tool; `action` is a kala.tools.v1.ExecuteAction. What the laws refuse is a result too.

        Sent once, never again by itself: it may have run. Failures of the suite raise a KalaError.
        """
        waits = wire.timeouts(timeout_seconds)
        try:
            response = self._sent(
                lambda: self._http.request("POST", wire.EXECUTE_PATH, json=action, timeout=waits)
            )
        except PermissionDeniedError as error:
            return wire.refused_tool(error)
        return ToolResult.of(_messages(response), receipt=response.headers.get(wire.RECEIPT_HEADER, ""))

    def workspace_files(self, workspace: str) -> list[dict[str, Any]]:
        """The regular files of a workspace as an ExecuteAction names them: a run sees those, as they are now."""
        return wire.files_of(
            self.pages(f"/kala/v1/tools/{workspace}/files", "files", params=_WORKSPACE_FILES)
        )

    def models(self) -> list[str]:
        """The ids of the models that can be asked for."""
        return [str(model["id"]) for model in self.call("GET", "/v1/models")["data"]]

    def backends(self) -> list[Mapping[str, Any]]:
        """The backends with their state, in the order in which they are tried."""
        return list(self.call("GET", wire.BACKENDS_PATH).get("backends") or ())

    def receipt(self, receipt_id: str) -> str:
        """The receipt's proof as text, complete for `kala audit receipt`; NotFoundError while it is only spooled."""
        reply = self.call("GET", f"/kala/v1/audit/receipts/{receipt_id}")
        return str(reply["receipt"]["proof"])

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Any call of the gateway that answers with one JSON object; `timeout_seconds` bounds the wait for it.

        Sent again where a part is away or a limit is full, and after a lost connection where it only reads or its body
        has a `request_id`.
        """
        waits = wire.timeouts(timeout_seconds)
        response = self._retried(
            lambda: self._http.request(
                method, path, json=body, params=params, headers=headers, timeout=waits
            ),
            is_idempotent=wire.is_idempotent(method, body),
        )
        return wire.object_of(response)

    def text(self, path: str) -> str:
        """What a path of the gateway holds that is plain text, such as the log's published checkpoint."""
        return self._retried(lambda: self._http.request("GET", path), is_idempotent=True).text

    def pages(
        self, path: str, items: str, *, params: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Everything that a paged list holds under the key `items`."""
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            asked = {
                **(params or {}),
                "page_size": wire.PAGE_SIZE,
                **({"page_token": token} if token else {}),
            }
            page = self.call("GET", path, params=asked)
            found += page.get(items) or ()
            token = str(page.get("next_page_token") or "")
            if not token:
                return found

    @contextlib.contextmanager
    def lines(
        self,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        method: str = "POST",
        params: Mapping[str, str] | None = None,
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """A streamed call of the REST bridge: its messages as they come; sent once, never again by itself."""
        with contextlib.ExitStack() as stack:
            response = self._sent(
                lambda: stack.enter_context(self._http.stream(method, path, json=body, params=params))
            )
            yield _messages(response)

    def _retried(self, send: Callable[[], httpx.Response], *, is_idempotent: bool = False) -> httpx.Response:
        """Send until it succeeds, for the few failures that time may heal and after which it may be sent again."""
        attempt = 0
        while True:
            response: httpx.Response | None = None
            try:
                with wire.translated(self.target.url):
                    response = send()
                    return _succeeded(response)
            except KalaError as error:
                pause = self.retries.pause(
                    error, attempt, is_idempotent=is_idempotent, is_allowed=wire.may_retry(response)
                )
                if pause is None:
                    raise
            self.sleep(pause)
            attempt += 1

    def _sent(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        with wire.translated(self.target.url):
            return _succeeded(send())


def _succeeded(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    response.read()
    raise wire.failure_of(response)


def _chunks(response: httpx.Response) -> Iterator[Mapping[str, Any]]:
    """The chunks of an event stream and then END; raises when it ends before `[DONE]`."""
    with wire.translated(str(response.url)):
        for line in _lines(response):
            if wire.is_done(line):
                yield wire.END
                return
            if (chunk := wire.chunk_of(line)) is not None:
                yield chunk
    raise wire.cut_stream()


def _messages(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The messages of a streamed call; the error that ends it is raised."""
    with wire.translated(str(response.url)):
        for line in _lines(response):
            if (message := wire.message_of(line)) is not None:
                yield message


def _lines(response: httpx.Response) -> Iterator[str]:
    lines = wire.Lines()
    for piece in response.iter_bytes():
        yield from lines.take(piece)
    yield lines.rest()
