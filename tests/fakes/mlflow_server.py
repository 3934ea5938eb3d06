"""An MLflow server that keeps what it is sent: the five calls of its REST interface that a run needs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class MlflowServer:
    """Runs, parameters and metrics as they arrived."""

    url: str = ""
    fails_metrics: bool = False
    metrics: list[tuple[str, int, float]] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        call = path.rpartition("/mlflow/")[2]
        replies: dict[str, tuple[int, dict[str, Any]]] = {
            "experiments/get-by-name": (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}),
            "experiments/create": (200, {"experiment_id": "7"}),
            "runs/create": (200, {"run": {"info": _INFO, "data": {}}}),
            "runs/get": (200, {"run": {"info": _INFO, "data": {}}}),
            "runs/log-batch": (200, {}),
            "runs/update": (200, {"run_info": _INFO}),
        }
        if body.get("metrics") and self.fails_metrics:
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}
        self.metrics += [(item["key"], int(item["step"]), item["value"]) for item in body.get("metrics", [])]
        self.parameters |= {item["key"]: item["value"] for item in body.get("params", [])}
        self.ended += [body["status"]] if call == "runs/update" else []
        return replies.get(call, (404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path}))


_INFO = {"run_id": "r" * 32, "run_uuid": "r" * 32, "experiment_id": "7", "status": "RUNNING", "start_time": 1}


@contextmanager
def mlflow_server() -> Iterator[MlflowServer]:
    """Serve on a loopback port until the block ends."""
    server = MlflowServer()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            status, reply = server.answer(urlsplit(self.path).path, body)
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _answer  # noqa: N815 - http.server's names

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
