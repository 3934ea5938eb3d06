"""A blocking client of a KALA gateway: chat, streams, models, receipts, and the rest over the REST bridge."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import httpx

from kala.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    KalaError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from kala.replies import ChatReply
from kala.target import Target
from kala.tool_replies import ToolResult
from kala.wire_errors import error_of

MODEL_AUTO: Final = "auto"
PROVIDER_HEADER: Final = "x-kala-provider"
ROLE_HEADER: Final = "x-kala-role"
TRUNCATION_HEADER: Final = "x-kala-truncation"

RECEIPT_HEADER: Final = "x-kala-receipt"
RETRY_HEADER: Final = "x-should-retry"
"""`false` on a failure after which the same request would act twice, as where the model's tools have run."""

EXECUTE_PATH: Final = "/kala/v1/tools/execute"
REFUSALS: Final = frozenset({"REFUSE", "REDIRECT", "ASK_CLARIFICATION"})
"""The outcomes of the Five Laws but ALLOW, as reasons of an error."""

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 900.0
"""No act lasts longer (`max_act_seconds`), and a cold model may be silent for most of it."""

MAX_RETRIES: Final = 2
FIRST_RETRY_SECONDS: Final = 0.25
LONGEST_RETRY_SECONDS: Final = 20.0
"""A server that asks for more patience than this is reported instead."""

PAGE_SIZE: Final = "1000"

_DONE: Final = "[DONE]"

# `Any` in this module: parsed JSON, and OpenAI's open set of request parameters.
Message = Mapping[str, Any]


@dataclass(slots=True)
class ChatStream:
    """An answer while it arrives: iterate over its text; `reply` is there when the iteration has ended."""

    _chunks: Iterator[Mapping[str, Any]]
    _reply: ChatReply | None = None

    def __iter__(self) -> Iterator[str]:
        """Every piece of text, as soon as it has been checked and released."""
        text: list[str] = []
        finish_reason, last = "", dict[str, Any]()
        for chunk in self._chunks:
            last = {**last, **{key: value for key, value in chunk.items() if value is not None}}
            for choice in chunk.get("choices") or ():
                finish_reason = choice.get("finish_reason") or finish_reason
                piece = (choice.get("delta") or {}).get("content")
                if piece:
                    text.append(piece)
                    yield piece
        self._reply = ChatReply.assemble(text="".join(text), finish_reason=finish_reason, body=last)

    @property
    def reply(self) -> ChatReply:
        """The whole answer with decision and receipt; only after the iteration."""
        if self._reply is None:
            raise InternalError("the stream has not been read to its end")
        return self._reply


@dataclass(slots=True)
class KalaClient:
    """Talks to one gateway; close it, or use it as a context manager. Safe for use by several threads."""

    target: Target
    transport: httpx.BaseTransport | None = None
    """For tests; None takes the network."""
    sleep: Callable[[float], None] = time.sleep
    _http: httpx.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Open the connection pool; nothing is sent yet."""
        self._http = httpx.Client(
            base_url=self.target.url,
            headers={"authorization": f"Bearer {self.target.key}"},
            timeout=_timeouts(READ_SECONDS),
            transport=self.transport,
            # A proxy of the environment must not see what goes to a gateway on this machine.
            trust_env=not _is_loopback(self.target.url),
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
        body = {"model": model, "messages": list(messages), **parameters}
        reply = self.call(
            "POST",
            "/v1/chat/completions",
            body=body,
            headers=_headers(provider, role, truncation),
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
        body = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **parameters,
        }
        headers = _headers(provider, role, truncation)
        with contextlib.ExitStack() as stack:
            response = self._retried(
                lambda: stack.enter_context(
                    self._http.stream("POST", "/v1/chat/completions", json=body, headers=headers)
                )
            )
            yield ChatStream(_events(response))

    def run_tool(self, action: Mapping[str, Any], *, timeout_seconds: float | None = None) -> ToolResult:
        """Run one tool; `action` is a kala.tools.v1.ExecuteAction. What the laws refuse is a result too.

        Sent once, never again by itself: it may have run. Failures of the suite raise a KalaError.
        """
        waits = _timeouts(READ_SECONDS if timeout_seconds is None else timeout_seconds)
        try:
            response = self._sent(
                lambda: self._http.request("POST", EXECUTE_PATH, json=action, timeout=waits)
            )
        except PermissionDeniedError as error:
            if error.reason not in REFUSALS:
                raise
            return ToolResult.refused(error.message)
        return ToolResult.of(_messages(response), receipt=response.headers.get(RECEIPT_HEADER, ""))

    def workspace_files(self, workspace: str) -> list[dict[str, Any]]:
        """The regular files of a workspace as an ExecuteAction names them: a run sees those, as they are now."""
        asked = {"recursive": "true", "with_digests": "true"}
        found = self.pages(f"/kala/v1/tools/{workspace}/files", "files", params=asked)
        return [
            {"name": file["path"], "sha256": file["sha256"], "bytes": file["bytes"]}
            for file in found
            if file.get("sha256")
        ]

    def models(self) -> list[str]:
        """The ids of the models that can be asked for."""
        return [str(model["id"]) for model in self.call("GET", "/v1/models")["data"]]

    def backends(self) -> list[Mapping[str, Any]]:
        """The backends with their state, in the order in which they are tried."""
        return list(self.call("GET", "/kala/v1/inference/backends").get("backends") or ())

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
        """Any call of the gateway that answers with one JSON object; `timeout_seconds` bounds the wait for it."""
        waits = _timeouts(READ_SECONDS if timeout_seconds is None else timeout_seconds)
        response = self._retried(
            lambda: self._http.request(method, path, json=body, params=params, headers=headers, timeout=waits)
        )
        try:
            parsed = response.json()
        except ValueError as error:
            raise error_of(response.status_code, response.content, response.headers) from error
        if not isinstance(parsed, dict):
            raise error_of(response.status_code, response.content, response.headers)
        return parsed

    def text(self, path: str) -> str:
        """What a path of the gateway holds that is plain text, such as the log's published checkpoint."""
        waits = _timeouts(READ_SECONDS)
        return self._retried(lambda: self._http.request("GET", path, timeout=waits)).text

    def pages(
        self, path: str, items: str, *, params: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Everything that a paged list holds under the key `items`."""
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            asked = {**(params or {}), "page_size": PAGE_SIZE, **({"page_token": token} if token else {})}
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

    def _retried(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """Send until it succeeds, for the few failures that time may heal and that certainly released nothing."""
        for attempt in range(MAX_RETRIES + 1):
            may_repeat = attempt < MAX_RETRIES
            try:
                with _translated(self.target.url):
                    response = send()
                    may_repeat = may_repeat and response.headers.get(RETRY_HEADER) != "false"
                    return _succeeded(response)
            except (UnavailableError, ResourceExhaustedError) as error:
                pause = _pause(error, attempt)
                if not may_repeat or pause > LONGEST_RETRY_SECONDS:
                    raise
                self.sleep(pause)
        raise InternalError("unreachable")

    def _sent(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        with _translated(self.target.url):
            return _succeeded(send())


def _succeeded(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    raise error_of(response.status_code, response.read(), response.headers)


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectError as error:
        raise UnavailableError(
            f"no gateway answers at {url}: start one with `kala up`, or check the URL",
            reason="GATEWAY_UNREACHABLE",
        ) from error
    except httpx.TimeoutException as error:
        raise DeadlineExceededError(f"the gateway at {url} did not answer in time") from error
    except UnicodeEncodeError as error:
        raise InvalidArgumentError("body", "holds half a surrogate pair, which no UTF-8 can spell") from error
    except httpx.HTTPError as error:
        # The request may have been executed: not UNAVAILABLE, which would send it again.
        raise InternalError(f"the connection to {url} broke: {error}", reason="CONNECTION_LOST") from error


def _events(response: httpx.Response) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of a server-sent event stream; raises when it ends before `[DONE]`."""
    with _translated(str(response.url)):
        for line in response.iter_lines():
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == _DONE:
                return
            chunk = json.loads(data)
            if "error" in chunk:
                raise error_of(int(chunk["error"].get("status") or 500), data.encode(), {})
            yield chunk
    raise UnavailableError("the stream ended before the answer was complete", reason="STREAM_CUT")


def _messages(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of lines; the error that ends it is raised."""
    with _translated(str(response.url)):
        for line in response.iter_lines():
            if not line.strip():
                continue
            message = json.loads(line)
            if set(message) == {"error"}:
                status = message["error"].get("code")
                raise error_of(status if isinstance(status, int) else 500, line.encode(), {})
            yield message


def _timeouts(read_seconds: float) -> httpx.Timeout:
    return httpx.Timeout(read_seconds, connect=CONNECT_SECONDS)


def _pause(error: KalaError, attempt: int) -> float:
    asked = error.retry_after_seconds
    return FIRST_RETRY_SECONDS * 2**attempt if asked is None else asked


def _headers(provider: str | None, role: str | None, truncation: str | None) -> dict[str, str]:
    named = {PROVIDER_HEADER: provider, ROLE_HEADER: role, TRUNCATION_HEADER: truncation}
    return {name: value for name, value in named.items() if value is not None}


def _is_loopback(url: str) -> bool:
    return httpx.URL(url).host in {"127.0.0.1", "::1", "localhost"}
