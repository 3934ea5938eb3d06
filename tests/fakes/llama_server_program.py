"""A program that stands in for llama-server: the real one's arguments, two of its answers, and orders from a file.

Run as `python llama_server_program.py <orders> --model … --port …`; the file `<orders>` holds one word: `serve`,
`fail` (end before listening), `deaf` (never listen) or `stubborn` (ignore SIGTERM).  It leaves its pid, arguments and
environment beside it in `<orders>.<pid>`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main(argv: list[str]) -> int:
    """Do as the orders say."""
    orders = Path(argv[1])
    given = dict(zip(argv[2::2], argv[3::2], strict=True))
    order = orders.read_text().strip()
    state = {"argv": argv[2:], "environ": dict(os.environ), "order": order}
    orders.with_name(f"{orders.name}.{os.getpid()}").write_text(json.dumps(state))
    if order == "fail":
        sys.stderr.write("error: failed to load model\n")
        return 3
    if order == "deaf":
        time.sleep(600)
    if order == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    alias = given["--alias"]

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "llama.cpp", ""
        protocol_version = "HTTP/1.1"

        def version_string(self) -> str:
            return "llama.cpp"

        def do_GET(self) -> None:
            model = {"id": alias, "object": "model", "owned_by": "llamacpp", "meta": {"n_ctx": 256}}
            self._answer({"status": "ok"} if self.path == "/health" else {"object": "list", "data": [model]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            message = {"role": "assistant", "content": f"I am {os.getpid()}"}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            is_known = self.headers["authorization"] == f"Bearer {os.environ['LLAMA_API_KEY']}"
            answer = {"id": "1", "object": "chat.completion", "model": alias, "choices": [choice]}
            self._answer(answer if is_known else {"error": {"message": "Invalid API Key"}}, is_known)

        def log_message(self, *_given: object) -> None:
            pass

        def _answer(self, value: object, is_known: bool = True) -> None:
            body = json.dumps(value).encode()
            self.send_response(200 if is_known else 401)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer((given["--host"], int(given["--port"])), Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
