"""A model server that streams at a pace: `python -m bench.paced_upstream PORT`.

It answers `/health` and `/v1/models` as a model server does; every POST is a stream, at the pace that
`GET /pace/<name>` chose last.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import uvloop

from bench.upstream import ANSWER, MODEL, USAGE, free_port


@dataclass(frozen=True, slots=True)
class Pace:
    """So many pieces with so long between them; `pieces` cut ANSWER, again and again."""

    pieces: int
    gap_seconds: float
    piece_chars: int = 5


PACES: Final = {"paced": Pace(64, 0.005), "typed": Pace(64, 0.025), "slow": Pace(6, 5.0, 30)}
"""As fast as a small model on a good machine; as fast as most read; and hardly at all."""

_MODELS: Final = {"object": "list", "data": [{"id": MODEL, "object": "model", "meta": {"n_ctx": 8192}}]}


def pieces_of(pace: Pace) -> list[str]:
    """The words of a stream, piece by piece."""
    size = pace.piece_chars
    text = ANSWER * (1 + pace.pieces * size // len(ANSWER))
    return [text[at : at + size] for at in range(0, pace.pieces * size, size)]


class _Server:
    """Serves every connection at the pace in force when its request comes."""

    def __init__(self) -> None:
        self._pace = PACES["paced"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests until the client hangs up."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or b"0")
                await reader.readexactly(length)
                if head.startswith(b"POST"):
                    await _stream(writer, self._pace)
                else:
                    self._answer_get(writer, head.split()[1].decode())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _answer_get(self, writer: asyncio.StreamWriter, path: str) -> None:
        if path.startswith("/pace/"):
            self._pace = PACES[path.removeprefix("/pace/")]
        _answer(writer, _MODELS if path == "/v1/models" else {"status": "ok"})


async def _stream(writer: asyncio.StreamWriter, pace: Pace) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    _event(writer, _chunk({"role": "assistant", "content": ""}))
    due = time.monotonic()
    for piece in pieces_of(pace):
        _event(writer, _chunk({"content": piece}))
        await writer.drain()
        # By the clock, so that a late piece makes no other late.
        due += pace.gap_seconds
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    _event(writer, _chunk({}, "stop"))
    _event(writer, {**_chunk({}), "choices": [], "usage": USAGE})
    writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def _chunk(delta: dict[str, str], reason: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]
    }  # fmt: skip


def _event(writer: asyncio.StreamWriter, document: dict[str, object]) -> None:
    data = f"data: {json.dumps(document)}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _answer(writer: asyncio.StreamWriter, document: object) -> None:
    data = json.dumps(document).encode()
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (len(data), data)
    )


async def _run(port: int) -> None:
    server = await asyncio.start_server(_Server().serve, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


def set_pace(url: str, name: str) -> None:
    """Stream at this pace from now on."""
    with urllib.request.urlopen(f"{url}/pace/{name}", timeout=5):
        pass


@contextmanager
def paced_model_server() -> Iterator[str]:
    """Runs it in a process of its own and gives its base URL."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.paced_upstream", str(port)])
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


if __name__ == "__main__":
    uvloop.run(_run(int(sys.argv[1])))
