"""Ray's Jobs REST API, as far as the trainer uses it: submit, look, stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import httpx

from kala.errors import FailedPreconditionError, PermissionDeniedError, UnavailableError

TIMEOUT_SECONDS: Final = 30.0
MAX_MESSAGE_CHARS: Final = 600

ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
_UNAUTHORISED: Final = (401, 403)
_NOT_FOUND: Final = 404
_WRONG: Final = 400
_BROKEN: Final = 500


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A Ray job as it stands."""

    status: str
    """Ray's word: PENDING, RUNNING, or one of ENDED."""
    exit_code: int | None
    message: str


class RayApi:
    """One cluster's API. Raises UnavailableError where it does not answer."""

    def __init__(
        self, address: str, token: str, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        if not address.startswith(("http://", "https://")):
            raise FailedPreconditionError(
                f"ray_address is {address!r}; it must be the dashboard's URL, e.g. http://ray-head:8265",
                reason="RAY_ADDRESS_WRONG",
            )
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # No proxy of the environment stands between a service and its cluster.
        self._http = httpx.AsyncClient(
            base_url=address.rstrip("/"),
            headers=headers,
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def submit(
        self, job_id: str, entrypoint: str, *, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Start a job under this id."""
        body = {
            "submission_id": job_id,
            "entrypoint": entrypoint,
            # The driver only waits; the workers are what takes cores.
            "entrypoint_num_cpus": 0,
            "runtime_env": {"env_vars": dict(env)},
            "metadata": dict(metadata),
        }
        answer = await self._ask("POST", "/api/jobs/", json=body)
        if answer.status_code >= _WRONG:
            raise UnavailableError(f"Ray did not take the job: {_told(answer)}", reason="RAY_REFUSED")

    async def status(self, job_id: str) -> JobStatus | None:
        """How a job stands; None for one that the cluster does not know."""
        answer = await self._ask("GET", f"/api/jobs/{job_id}")
        if answer.status_code == _NOT_FOUND:
            return None
        try:
            found: dict[str, Any] = answer.raise_for_status().json()  # Any: JSON
            code = found.get("driver_exit_code")
            return JobStatus(
                str(found["status"]),
                int(code) if code is not None else None,
                str(found.get("message") or "")[:MAX_MESSAGE_CHARS],
            )
        except (httpx.HTTPStatusError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnavailableError(
                f"Ray's answer about {job_id} is none: {_told(answer)}", reason="RAY_UNAVAILABLE"
            ) from error

    async def stop(self, job_id: str) -> None:
        """Ask that a job be ended; one that has ended or is not known is no error."""
        answer = await self._ask("POST", f"/api/jobs/{job_id}/stop")
        if answer.status_code >= _BROKEN:
            raise UnavailableError(f"Ray did not stop the job: {_told(answer)}", reason="RAY_UNAVAILABLE")

    async def _ask(self, method: str, path: str, **body: Any) -> httpx.Response:  # Any: httpx's arguments
        try:
            answer = await self._http.request(method, path, **body)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"Ray at {self._http.base_url} does not answer: {type(error).__name__}",
                reason="RAY_UNAVAILABLE",
            ) from error
        if answer.status_code in _UNAUTHORISED:
            raise PermissionDeniedError(
                "Ray does not accept the token; set KALA_TRAINER_RAY_TOKEN_FILE to the cluster's token",
                reason="RAY_TOKEN_WRONG",
            )
        return answer


def _told(answer: httpx.Response) -> str:
    """The last line is what matters of a traceback."""
    lines = [line for line in answer.text.strip().splitlines() if line.strip()] or ["nothing"]
    return f"{answer.status_code} {lines[-1][:MAX_MESSAGE_CHARS]}"
