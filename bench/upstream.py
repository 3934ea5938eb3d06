"""A static model server: nginx answers every request with the same bytes, so the upstream costs next to nothing."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MODEL: Final = "bench"
ANSWER: Final = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 4
USAGE: Final = {"prompt_tokens": 12, "completion_tokens": 64, "total_tokens": 76}
PIECES: Final = 20


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def completion() -> str:
    """The whole answer, as llama-server gives it."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [choice],
            "usage": USAGE,
        }
    )


def stream() -> str:
    """The same answer in PIECES deltas."""
    size = len(ANSWER) // PIECES
    deltas: list[dict[str, object]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": ANSWER[at : at + size]} for at in range(0, len(ANSWER), size)]
    chunks = [(delta, None) for delta in deltas] + [({}, "stop")]
    lines = [
        json.dumps(
            {
                "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            }
        )
        for delta, reason in chunks
    ]  # fmt: skip
    usage = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [],
        "usage": USAGE,
    }
    return "".join(f"data: {line}\n\n" for line in [*lines, json.dumps(usage), "[DONE]"])


def server_block(port: int, content_type: str, body_file: Path, models_file: Path) -> str:
    """One nginx server. A POST is answered from a file: the 405 of the static handler redirects to it as a GET."""
    return f"""
  server {{
    listen 127.0.0.1:{port};
    root {body_file.parent};
    location = /health {{ default_type application/json; return 200 '{{"status":"ok"}}'; }}
    location = /v1/models {{ default_type application/json; alias {models_file}; }}
    location = /v1/chat/completions {{ alias {body_file}; error_page 405 =200 /{body_file.name}; }}
    location = /{body_file.name} {{ types {{ }} default_type {content_type}; }}
  }}"""


@contextmanager
def static_model_servers(folder: Path) -> Iterator[tuple[str, str]]:
    """Runs nginx with two servers and gives their base URLs: one answers whole, one streams."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    whole_port, stream_port = free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    whole, streamed, models = folder / "whole.json", folder / "stream.sse", folder / "models.json"
    whole.write_text(completion())
    streamed.write_text(stream())
    models.write_text(
        json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "meta": {"n_ctx": 8192}}]})
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"user root; daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        f"events {{ worker_connections 512; }}\nhttp {{ access_log off; keepalive_requests 1000000;"
        f"{server_block(whole_port, 'application/json', whole, models)}"
        f"{server_block(stream_port, 'text/event-stream', streamed, models)}\n}}\n"
    )
    process = subprocess.Popen([nginx, "-p", str(folder), "-c", str(config), "-e", f"{folder}/error.log"])
    try:
        for port in (whole_port, stream_port):
            _wait_for(port)
        yield f"http://127.0.0.1:{whole_port}", f"http://127.0.0.1:{stream_port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    message = f"nothing listens on port {port}"
    raise RuntimeError(message)
