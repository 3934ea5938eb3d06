"""A scripted model server: raw asyncio, so that it can send what no HTTP library would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

CRLF: Final = b"\r\n"


@dataclass(frozen=True, slots=True)
class Hang:
    """Wait here until the client goes away."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Wait here for an event of the test's."""

    event: asyncio.Event


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the connection here, in the middle of whatever it is."""


@dataclass(frozen=True, slots=True)
class Drip:
    """Send this over and over, a hundred times a second, until the client goes away."""

    data: bytes


Step = bytes | Hang | Gate | Cut | Drip


@dataclass(frozen=True, slots=True)
class Scripted:
    """What to answer. `framing`: "length", "chunked", or "close" (the body ends with the connection), "raw" (no head)."""

    steps: Sequence[Step] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    framing: str = "length"
    head_after: asyncio.Event | None = None
    version: str = "HTTP/1.1"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


Script = Scripted | Callable[[Seen], Scripted]
"""What to answer, or how to find it out from the request."""


def as_json(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Scripted:
    """Answer with a JSON body."""
    body = json.dumps(value).encode()
    return Scripted([body], status, {"content-type": "application/json", **(headers or {})})


def as_stream(*steps: Step, headers: Mapping[str, str] | None = None) -> Scripted:
    """Answer with server-sent events, one chunk per step."""
    return Scripted(steps, 200, {"content-type": "text/event-stream", **(headers or {})}, framing="chunked")


def chunk(
    text: str | None = None,
    *,
    finish: str | None = None,
    model: str = "tiny",
    usage: Mapping[str, int] | None = None,
    delta: Mapping[str, object] | None = None,
) -> bytes:
    """Write one chat.completion.chunk event."""
    content: dict[str, object] = dict(delta or {})
    if text is not None:
        content["content"] = text
    choices = [] if usage else [{"index": 0, "delta": content, "finish_reason": finish}]
    body: dict[str, object] = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "model": model,
        "choices": choices,
    }
    if usage:
        body["usage"] = usage
    return b"data: " + json.dumps(body).encode() + b"\n\n"


DONE: Final = b"data: [DONE]\n\n"


def completion(text: str = "Hello", *, model: str = "tiny", finish: str = "stop") -> dict[str, object]:
    """Write a whole chat.completion."""
    return {
        "id": "c1",
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }


def in_turn(*scripts: Scripted) -> Script:
    """Answer with these one after the other, and with the last from then on."""
    waiting = list(scripts)
    return lambda _seen: waiting.pop(0) if len(waiting) > 1 else waiting[0]


def llama_models(*names: str, n_ctx: int = 256) -> dict[str, object]:
    """Write llama-server's /v1/models."""
    data = [
        {"id": name, "object": "model", "owned_by": "llamacpp", "meta": {"n_ctx": n_ctx, "n_ctx_train": 512}}
        for name in names
    ]
    return {"object": "list", "data": data}


class FakeModelServer:
    """Listens on a free port of this machine; unscripted paths answer 404.  Looks like llama-server with model `tiny`."""

    def __init__(self, *, like_llama_server: bool = True, port: int = 0, host: str = "127.0.0.1") -> None:
        self._scripts: dict[tuple[str, str], Script] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._port = port
        self._host = host
        self.requests: list[Seen] = []
        self.connections = 0
        self.client_left = asyncio.Event()
        if like_llama_server:
            self.on("GET", "/health", as_json({"status": "ok"}))
            self.on("GET", "/v1/models", as_json(llama_models("tiny"), headers={"server": "llama.cpp"}))
            self.on("POST", "/v1/chat/completions", as_json(completion()))

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self.port}"

    @property
    def port(self) -> int:
        return self._port

    def on(self, method: str, path: str, script: Script) -> None:
        """Answer this from now on."""
        self._scripts[method, path] = script

    def on_chat(self, script: Script) -> None:
        """Answer chat completions so from now on."""
        self.on("POST", "/v1/chat/completions", script)

    @property
    def chats(self) -> list[Seen]:
        """The chat requests that arrived."""
        return [seen for seen in self.requests if seen.path == "/v1/chat/completions"]

    async def start(self) -> None:
        """Listen; after `stop`, on the same port again."""
        self._server = await asyncio.start_server(self._accept, self._host, self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._server is None:
            return
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.connections += 1
        try:
            while (seen := await _read_request(reader)) is not None:
                self.requests.append(seen)
                if not await self._answer(seen, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        script = self._script(seen)
        if script.head_after is not None and not await self._wait(script.head_after, reader):
            return False
        if script.framing != "raw":
            writer.write(_head(script))
        for step in script.steps:
            if isinstance(step, Cut):
                await writer.drain()
                writer.transport.abort()
                return False
            if isinstance(step, Hang):
                await self._wait(asyncio.Event(), reader)
                return False
            if isinstance(step, Gate):
                await writer.drain()
                if not await self._wait(step.event, reader):
                    return False
                continue
            if isinstance(step, Drip):
                await self._drip(_framed(step.data, script.framing), reader, writer)
                return False
            writer.write(_framed(step, script.framing))
            await writer.drain()
        if script.framing == "chunked":
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return script.framing != "close"

    def _script(self, seen: Seen) -> Scripted:
        script = self._scripts.get((seen.method, seen.path.partition("?")[0]))
        script = script or as_json({"error": {"message": "File Not Found", "code": 404}}, status=404)
        return script if isinstance(script, Scripted) else script(seen)

    async def _drip(self, data: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = asyncio.create_task(reader.read(1))
        while not left.done():
            writer.write(data)
            await asyncio.wait({left}, timeout=0.01)
        self.client_left.set()

    async def _wait(self, event: asyncio.Event, reader: asyncio.StreamReader) -> bool:
        """Wait for the event; False when the client left first."""
        left, happened = asyncio.create_task(reader.read(1)), asyncio.create_task(event.wait())
        try:
            await asyncio.wait({left, happened}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (left, happened):
                if not task.done():
                    task.cancel()
        if left.done() and not left.cancelled():
            self.client_left.set()
            return False
        return True


def _framed(data: bytes, framing: str) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if framing == "chunked" else data


def _head(script: Scripted) -> bytes:
    lines = [
        f"{script.version} {script.status} X",
        *(f"{name}: {value}" for name, value in script.headers.items()),
    ]
    if script.framing == "length":
        size = sum(len(step) for step in script.steps if isinstance(step, bytes))
        lines.append(f"content-length: {size}")
    elif script.framing == "chunked":
        lines.append("transfer-encoding: chunked")
    else:
        lines.append("connection: close")
    return "\r\n".join(lines).encode() + CRLF + CRLF


async def _read_request(reader: asyncio.StreamReader) -> Seen | None:
    try:
        head = (await reader.readuntil(CRLF + CRLF)).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(method, path, headers, body)
