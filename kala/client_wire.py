"""What the blocking and the asynchronous client share: requests, answers, errors and retries, without any waiting."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

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
from kala.tool_replies import ToolResult
from kala.wire_errors import error_of

MODEL_AUTO: Final = "auto"
PROVIDER_HEADER: Final = "x-kala-provider"
ROLE_HEADER: Final = "x-kala-role"
TRUNCATION_HEADER: Final = "x-kala-truncation"

RECEIPT_HEADER: Final = "x-kala-receipt"
RETRY_HEADER: Final = "x-should-retry"
"""`false` on a failure after which the same request would act twice, as where the model's tools have run."""

CHAT_PATH: Final = "/v1/chat/completions"
EMBEDDINGS_PATH: Final = "/v1/embeddings"
EXECUTE_PATH: Final = "/kala/v1/tools/execute"
BACKENDS_PATH: Final = "/kala/v1/inference/backends"
REFUSALS: Final = frozenset({"REFUSE", "REDIRECT", "ASK_CLARIFICATION"})
"""The outcomes of the Five Laws but ALLOW, as reasons of an error."""

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 900.0
"""No act lasts longer (`max_act_seconds`), and a cold model may be silent for most of it."""

MAX_RETRIES: Final = 2
FIRST_RETRY_SECONDS: Final = 0.25
LONGEST_RETRY_SECONDS: Final = 20.0
"""A server that asks for more patience than this is reported instead."""
LATER_BY: Final = 0.1
"""By up to this share of the wait a server asked for, clients come later: never sooner, and not all at once."""

PAGE_SIZE: Final = "1000"
REQUEST_ID: Final = "request_id"
"""With it in its body a call of the REST bridge is done once, however often it is sent."""

CONNECTION_LOST: Final = "CONNECTION_LOST"
QUOTA_USED_UP: Final = "INSUFFICIENT_QUOTA"
"""A limit that no short wait lifts."""

_DONE: Final = "[DONE]"
_READING: Final = frozenset({"GET", "HEAD"})

# `Any` in this module: parsed JSON, and OpenAI's open set of request parameters.
Message = Mapping[str, Any]
Json = dict[str, Any]

END: Final[Json] = {}
"""Stands after the last chunk of a stream that ended in order; told by its identity."""


@dataclass(frozen=True, slots=True)
class Retries:
    """Which failures are worth another attempt, and after which pause."""

    jitter: Callable[[], float] = random.random
    """From 0 to 1; spreads the attempts of clients that failed in the same moment."""
    most: int = MAX_RETRIES

    def pause(self, error: KalaError, attempt: int, *, is_idempotent: bool, is_allowed: bool) -> float | None:
        """Seconds until the next attempt; None when there is none.

        A part that is away and a limit that is full released nothing, so any request may follow. After a lost connection
        the request may have been carried out: only one that may be repeated is sent again.
        """
        if not is_allowed or attempt >= self.most or error.reason == QUOTA_USED_UP:
            return None
        is_lost = isinstance(error, InternalError) and error.reason == CONNECTION_LOST
        if not isinstance(error, UnavailableError | ResourceExhaustedError) and not (
            is_lost and is_idempotent
        ):
            return None
        asked = error.retry_after_seconds
        if asked is None:
            return FIRST_RETRY_SECONDS * (1 << attempt) * (0.5 + self.jitter())
        return None if asked > LONGEST_RETRY_SECONDS else asked * (1 + LATER_BY * self.jitter())


def is_idempotent(method: str, body: Mapping[str, Any] | None) -> bool:
    """Whether a call may be carried out twice without harm: it only reads, or it carries its own id."""
    return method in _READING or bool(body and body.get(REQUEST_ID))


def may_retry(response: httpx.Response | None) -> bool:
    """Whether the server lets a failed request be sent again."""
    return response is None or response.headers.get(RETRY_HEADER) != "false"


def chat_body(
    messages: Sequence[Message], model: str, parameters: Mapping[str, Any], *, is_stream: bool = False
) -> Json:
    """The body of a chat."""
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if is_stream else {}
    return {"model": model, "messages": list(messages), **streamed, **parameters}


def headers_of(
    provider: str | None, role: str | None = None, truncation: str | None = None
) -> dict[str, str]:
    """The headers by which a request names where it goes and how it is fitted."""
    named = {PROVIDER_HEADER: provider, ROLE_HEADER: role, TRUNCATION_HEADER: truncation}
    return {name: value for name, value in named.items() if value is not None}


def timeouts(read_seconds: float | None = None) -> httpx.Timeout:
    """How long to wait for a connection, and for an answer."""
    return httpx.Timeout(READ_SECONDS if read_seconds is None else read_seconds, connect=CONNECT_SECONDS)


def is_loopback(url: str) -> bool:
    """Whether a URL means this machine; a proxy of the environment must not see what goes there."""
    return httpx.URL(url).host in {"127.0.0.1", "::1", "localhost"}


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn what goes wrong on the way into the classes of `kala.errors`."""
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
        raise InternalError(f"the connection to {url} broke: {error}", reason=CONNECTION_LOST) from error


def failure_of(response: httpx.Response) -> KalaError:
    """The error that an answer stands for; its body has been read."""
    return error_of(response.status_code, response.content, response.headers)


def object_of(response: httpx.Response) -> Json:
    """The JSON object that a call answered with; raises for what no gateway says."""
    try:
        parsed = response.json()
    except ValueError as error:
        raise failure_of(response) from error
    if not isinstance(parsed, dict):
        raise failure_of(response)
    return parsed


class Lines:
    """Cuts a body into lines, at line feeds alone; for one stream.

    httpx's own lines end at U+2028, U+0085 and others too, which JSON's strings may hold as they are.
    """

    def __init__(self) -> None:
        self._held: list[bytes] = []

    def take(self, data: bytes) -> list[str]:
        """The lines that end in this piece of the body."""
        *ended, rest = data.split(b"\n")
        if ended:
            ended[0] = b"".join((*self._held, ended[0]))
            self._held.clear()
        self._held.append(rest)
        return [line.decode("utf-8", "replace") for line in ended]

    def rest(self) -> str:
        """What follows the last line feed, once the body has ended."""
        return b"".join(self._held).decode("utf-8", "replace")


def chunk_of(line: str) -> Json | None:
    """The chunk in a line of an event stream; None for a line without one; raises the error that ends a stream."""
    if not line.startswith("data:"):
        return None
    data = line.removeprefix("data:").strip()
    if data == _DONE:
        return None
    parsed = _parsed(data)
    if "error" in parsed:
        raise error_of(int(parsed["error"].get("status") or 500), data.encode(), {})
    return parsed


def is_done(line: str) -> bool:
    """Whether a line ends an event stream in order."""
    return line.startswith("data:") and line.removeprefix("data:").strip() == _DONE


def cut_stream() -> KalaError:
    """What a stream without its end is."""
    return UnavailableError("the stream ended before the answer was complete", reason="STREAM_CUT")


def message_of(line: str) -> Json | None:
    """The message in a line of a streamed call; None for an empty one; raises the error that ends the stream."""
    if not line.strip():
        return None
    message = _parsed(line)
    if set(message) == {"error"}:
        status = message["error"].get("code")
        raise error_of(status if isinstance(status, int) else 500, line.encode(), {})
    return message


def _parsed(text: str) -> Json:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InternalError(f"the stream holds what is no JSON: {text[:80]!r}", reason="NOT_JSON") from error
    if not isinstance(parsed, dict):
        raise InternalError(f"the stream holds what is no object: {text[:80]!r}", reason="NOT_JSON")
    return parsed


@dataclass(slots=True)
class Assembly:
    """A streamed answer, put together from its chunks."""

    steps: list[Json] = field(default_factory=list)
    """What KALA's own tools did, in the order in which it was told."""
    _text: list[str] = field(default_factory=list)
    _calls: dict[int, Json] = field(default_factory=dict)
    _finish_reason: str = ""
    _last: Json = field(default_factory=dict)

    def take(self, chunk: Mapping[str, Any]) -> Iterable[str]:
        """Take one chunk and give the pieces of text in it."""
        if step := (chunk.get("kala") or {}).get("step"):
            self.steps.append(dict(step))
        self._last |= {key: value for key, value in chunk.items() if value is not None}
        pieces = []
        for choice in chunk.get("choices") or ():
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            delta = choice.get("delta") or {}
            for call in delta.get("tool_calls") or ():
                self._take_call(call)
            if piece := delta.get("content"):
                pieces.append(str(piece))
        self._text += pieces
        return pieces

    def reply(self) -> ChatReply:
        """The whole answer."""
        return ChatReply.assemble(
            text="".join(self._text),
            finish_reason=self._finish_reason,
            body=self._last,
            tool_calls=tuple(call for _, call in sorted(self._calls.items())),
        )

    def _take_call(self, piece: Mapping[str, Any]) -> None:
        call = self._calls.setdefault(
            int(piece.get("index") or 0),
            {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
        )
        call["id"] = piece.get("id") or call["id"]
        function = piece.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


def files_of(found: Iterable[Mapping[str, Any]]) -> list[Json]:
    """The files of a workspace as an ExecuteAction names them."""
    return [
        {"name": file["path"], "sha256": file["sha256"], "bytes": file["bytes"]}
        for file in found
        if file.get("sha256")
    ]


def refused_tool(error: PermissionDeniedError) -> ToolResult:
    """What a call came to that the laws refused; raises the error again where it says something else."""
    if error.reason not in REFUSALS:
        raise error
    return ToolResult.refused(error.message)


def vectors_of(reply: Mapping[str, Any]) -> list[list[float]]:
    """The vectors of an answer about embeddings, in the order of the texts."""
    given: list[Json] = reply.get("data") or []
    rows = sorted(given, key=lambda row: int(row["index"]))
    return [[float(number) for number in row["embedding"]] for row in rows]
