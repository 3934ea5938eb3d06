"""A scripted gateway behind httpx: answers as `gateway/` does, without a socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

RECEIPT_ID: Final = "rcpt_" + "0f" * 16


def completion(text: str = "An answer.", *, outcome: str = "ALLOW", law: int | None = None) -> httpx.Response:
    """One `chat.completion`, with the `kala` object that every answer of the gateway carries."""
    return httpx.Response(
        200,
        json={
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "tiny",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop" if outcome == "ALLOW" else "content_filter",
                }
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
            "kala": kala(outcome, law),
        },
    )


def kala(outcome: str = "ALLOW", law: int | None = None) -> dict[str, Any]:
    """The extension object."""
    return {
        "decision": {
            "outcome": outcome,
            "id": "d1",
            "law": law,
            "category": "cyber",
            "path": ["looked", "decided"],
        },
        "receipt": {"id": RECEIPT_ID, "status": "LOGGED", "index": 7, "openings": {"released": "ab" * 32}},
        "attempts": [{"backend": "backends/lmstudio", "model": "tiny", "outcome": "ok", "reason": ""}],
        "overhead_ms": 4.5,
    }


def stream(*pieces: str, done: bool = True) -> httpx.Response:
    """A server-sent event stream as the gateway sends it, its last chunk with `kala`."""
    chunks: list[Mapping[str, Any]] = [
        {"model": "tiny", "choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces
    ]
    chunks.append({"model": "tiny", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append(
        {
            "model": "tiny",
            "choices": [],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
            "kala": kala(),
        }
    )
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + (
        "data: [DONE]\n\n" if done else ""
    )
    return httpx.Response(200, content=text.encode(), headers={"content-type": "text/event-stream"})


def failure(status: int, code: str, message: str, **headers: str) -> httpx.Response:
    """An OpenAI-shaped error."""
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
    return httpx.Response(status, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


@dataclass
class FakeGateway:
    """Answers chats from a script, in order, and remembers what was asked; other paths have fixed answers."""

    script: list[httpx.Response | Callable[[], httpx.Response]] = field(default_factory=list)
    backends: Sequence[Mapping[str, Any]] = ()
    seen: list[httpx.Request] = field(default_factory=list)
    files: Sequence[Mapping[str, Any]] = ()
    """Of every workspace."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Be the handler of an `httpx.MockTransport`."""
        self.seen.append(request)
        match request.url.path:
            case "/kala/v1/inference/backends":
                return httpx.Response(200, json={"backends": list(self.backends)})
            case "/kala/v1/audit/checkpoint":
                return httpx.Response(200, json={"verifier_key": "kala.local/audit+00+x"})
            case path if path.startswith("/kala/v1/audit/receipts/"):
                return httpx.Response(200, json={"receipt": {"proof": "c2sp.org/tlog-proof@v1\n"}})
            case path if path.startswith("/kala/v1/tools/workspaces/") and path.endswith("/files"):
                return httpx.Response(200, json={"files": list(self.files)})
            case _ if request.method == "DELETE":
                return httpx.Response(200, json={})
            case _:
                answer = self.script.pop(0)
                return answer if isinstance(answer, httpx.Response) else answer()

    @property
    def transport(self) -> httpx.MockTransport:
        """What a client takes in place of the network."""
        return httpx.MockTransport(self)

    @property
    def chats(self) -> list[dict[str, Any]]:
        """The bodies of the chats asked for."""
        return [
            json.loads(request.content) for request in self.seen if request.url.path == "/v1/chat/completions"
        ]
