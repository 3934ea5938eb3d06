"""Ray's Jobs REST API in memory, for one token."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

TOKEN = "t" * 64


@dataclass
class FakeRayJobs:
    """Answers as Ray 2.60's dashboard does; `script` is what the next questions about a job find."""

    script: list[Any] = field(default_factory=list)
    """Statuses, (status, exit code) pairs, HTTP status codes as numbers, or errors to raise."""
    submitted: list[dict[str, Any]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    submit_status: int = 200

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        said = request.headers.get("authorization", "")
        if not said:
            return httpx.Response(401, text="Unauthorized: Missing authentication token")
        if said != f"Bearer {TOKEN}":
            return httpx.Response(403, text="Forbidden: Invalid authentication token")
        if request.method == "POST" and request.url.path == "/api/jobs/":
            self.submitted.append(json.loads(request.content))
            return httpx.Response(self.submit_status, json={"job_id": "x"})
        if request.url.path.endswith("/stop"):
            self.stopped.append(request.url.path.split("/")[3])
            self.script = ["STOPPED"]
            return httpx.Response(200, json={"stopped": True})
        return self._status()

    def _status(self) -> httpx.Response:
        found = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(found, Exception):
            raise found
        if isinstance(found, int):
            return httpx.Response(found, text="Job x does not exist")
        status, code = found if isinstance(found, tuple) else (found, None)
        return httpx.Response(
            200, json={"status": status, "driver_exit_code": code, "message": "told by Ray"}
        )
