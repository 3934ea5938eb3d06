"""An LM Studio in a thread: counts what reaches it, answers fixed text, and can hold an answer back mid-way."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

MODEL: Final = "tiny-qwen"
WORDS: Final = ("Machine ", "learning ", "is ", "learning ", "from ", "examples.")

_MODELS: Final = {
    "models": [
        {
            "type": "llm",
            "key": MODEL,
            "max_context_length": 4096,
            "loaded_instances": [{"id": MODEL, "config": {"context_length": 4096}}],
            "quantization": {"name": "Q4_K_M"},
            "capabilities": {"vision": False, "trained_for_tool_use": False},
        }
    ]
}


@dataclass
class FakeLMStudio:
    """What the thread serves, and what it saw."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    loaded: bool = True
    gate: threading.Event = field(default_factory=threading.Event)
    """Every answer waits for it half-way; set unless a test clears it."""
    connections: set[socket.socket] = field(default_factory=set)
    calls: list[tuple[str, dict[str, Any]] | None] = field(default_factory=list)
    """Calls of tools, one per answer that may call some; None answers in words all the same, as does an empty list."""

    objects: list[dict[str, Any]] = field(default_factory=list)
    """Answers, one after the other, to requests that want JSON by a schema."""

    def next_text(self, asked: dict[str, Any]) -> str:
        """What the model says: JSON where that is wanted and there is some, else its usual words."""
        wanted = (asked.get("response_format") or {}).get("type")
        return json.dumps(self.objects.pop(0)) if wanted == "json_schema" and self.objects else "".join(WORDS)

    def next_call(self) -> dict[str, Any] | None:
        """The next call as the model spells it; None when it answers in words."""
        call = self.calls.pop(0) if self.calls else None
        if call is None:
            return None
        name, arguments = call
        return {
            "index": 0,
            "id": f"call_{len(self.asked)}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }

    def answer_models(self) -> dict[str, Any]:
        """List the model as LM Studio 0.4 does, loaded or not."""
        models = json.loads(json.dumps(_MODELS))
        if not self.loaded:
            models["models"][0]["loaded_instances"] = []
        return dict(models)


@contextlib.contextmanager
def lm_studio(port: int = 0) -> Iterator[FakeLMStudio]:
    """Serve on a port of this machine, a free one unless told, for the length of a `with` block."""
    fake = FakeLMStudio()
    fake.gate.set()

    class Handler(_Handler):
        server_state = fake

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.gate.set()
        server.shutdown()
        server.server_close()
        # A server that ends also ends the connections that clients keep.
        for connection in list(fake.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: FakeLMStudio

    def setup(self) -> None:
        super().setup()
        self.server_state.connections.add(self.connection)

    def finish(self) -> None:
        self.server_state.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        # LM Studio answers 200 to everything, which is why nothing may be judged by status alone.
        body = (
            self.server_state.answer_models()
            if self.path == "/api/v1/models"
            else {"error": "unexpected endpoint"}
        )
        self._send_json(body)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server_state.asked.append(asked)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # A model calls what it was offered.
            call = self.server_state.next_call() if asked.get("tools") else None
            if asked.get("stream"):
                self._stream(call)
            else:
                self.server_state.gate.wait(60)
                self._send_json(_completion(call, self.server_state.next_text(asked)))

    def _send_json(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, call: dict[str, Any] | None) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        if call is not None:
            self._event(_chunk({"tool_calls": [call]}))
        for number, word in enumerate(() if call is not None else WORDS):
            if number == len(WORDS) // 2:
                self.server_state.gate.wait(60)
            self._event(_chunk({"content": word}))
        self._event(_chunk({}, finish="stop" if call is None else "tool_calls"))
        self._event({**_chunk({}), "choices": [], "usage": _usage()})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 9, "completion_tokens": len(WORDS), "total_tokens": 9 + len(WORDS)}


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}


def _completion(call: dict[str, Any] | None, text: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text if call is None else None}
    if call is not None:
        message["tool_calls"] = [call]
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {"index": 0, "message": message, "finish_reason": "stop" if call is None else "tool_calls"}
        ],
        "usage": _usage(),
    }
