"""The trainer's RPCs in the name of a job's key: over the bridge, so that each is judged, logged and confined as a client's is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from gateway.edge import Handler
from gateway.errands import Reply, run_errand
from gateway.errors import INVALID_API_KEY
from gateway.fine_tuning.model import Job
from kala.common.v1 import clearance_pb2, options_pb2
from kala.errors import FailedPreconditionError, UnavailableError
from kala.trainer.v1 import trainer_pb2
from services.common.principals import principal_metadata
from services.common.status import translated

if TYPE_CHECKING:
    from kala.trainer.v1.trainer_pb2_grpc import TrainerServiceAsyncStub

PATH: Final = "/kala/v1/trainer"
AWAY: Final = frozenset({429, 502, 503, 504})
KEY_ENDED: Final = INVALID_API_KEY.lower()
END_SECONDS: Final = 10.0

Json = dict[str, Any]  # Any: JSON


class TrainerRefusedError(FailedPreconditionError):
    """The trainer, the laws or the key's scopes said no: asking again would not help."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, reason=code)


@dataclass(frozen=True, slots=True)
class TrainerCalls:
    """Calls of the trainer for jobs."""

    bridge: Handler
    trainer: TrainerServiceAsyncStub
    """Asked without the bridge only to end what was begun for a key that is not good any more."""

    async def get(self, job: Job, path: str, **query: str) -> Json:
        """Read something."""
        return await self._call(job, "GET", path, b"", urlencode(query))

    async def post(self, job: Job, path: str, body: Json) -> Json:
        """Have something done; raises TrainerRefusedError, or UnavailableError when it may be asked again."""
        return await self._call(job, "POST", path, json.dumps(body).encode())

    async def end(self, job: Job, name: str) -> None:
        """End a training or an operation; a training also where the job's key has ended, for it must not go on."""
        try:
            await self.post(job, f"{name}:cancel", {})
        except TrainerRefusedError as error:
            if error.reason != KEY_ENDED or not name.startswith("trainingJobs/"):
                raise
            principal = clearance_pb2.Principal(
                id=f"keys/{job.owner}",
                tenant=job.tenant,
                scopes=[options_pb2.SCOPE_TRAIN],
                subject=job.subject,
            )
            request = trainer_pb2.CancelTrainingJobRequest(name=name)
            with translated():
                await self.trainer.CancelTrainingJob(
                    request, timeout=END_SECONDS, metadata=principal_metadata(principal)
                )

    async def _call(self, job: Job, method: str, path: str, body: bytes, query: str = "") -> Json:
        reply = await run_errand(
            self.bridge,
            method=method,
            path=f"{PATH}/{path}",
            query=query,
            body=body,
            acting_key=job.owner,
            request_id=job.id,
        )
        if reply.status == 200:  # noqa: PLR2004 - HTTP's OK
            return reply.body
        code, message = _said(reply)
        if reply.status in AWAY:
            raise UnavailableError(message, reason=code.upper())
        raise TrainerRefusedError(code, message)


def _said(reply: Reply) -> tuple[str, str]:
    """Read an error in OpenAI's shape or in google's."""
    error = reply.body.get("error")
    if not isinstance(error, dict):
        return "internal_error", "the trainer answered without words"
    code = error.get("code")
    if not isinstance(code, str):
        reasons = [each.get("reason") for each in error.get("details", ()) if isinstance(each, dict)]
        code = next((str(reason) for reason in reasons if reason), str(error.get("status", "internal_error")))
    return code.lower(), str(error.get("message", ""))
