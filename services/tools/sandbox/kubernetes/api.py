"""The few calls of the Kubernetes API that a run needs, with the pod's own projected token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

from kala.errors import KalaError, ResourceExhaustedError, UnavailableError
from services.tools.sandbox.kubernetes.manifest import CONTAINER, Json
from services.tools.sandbox.model import SetupFailedError

_TIMEOUT: Final = httpx.Timeout(10.0, read=30.0)
_STREAM_TIMEOUT: Final = httpx.Timeout(10.0, read=None)
_RETRY_SECONDS: Final = 5.0
_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500


class KubernetesApi:
    """One namespace of one cluster. The token is read anew for each call, since it is rotated."""

    def __init__(
        self,
        url: str,
        namespace: str,
        *,
        token_file: Path = _SERVICE_ACCOUNT / "token",
        ca_file: Path | None = _SERVICE_ACCOUNT / "ca.crt",
    ) -> None:
        self._base = f"{url.rstrip('/')}"
        self._namespace, self._token_file, self._ca_file = namespace, token_file, ca_file
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        """Open the connections.

        Raises:
            SetupFailedError: the certificate authority's file cannot be read.
        """
        try:
            # trust_env is off: no proxy of the environment stands between the service and its cluster.
            verify = str(self._ca_file) if self._ca_file is not None else True
            self._client = httpx.AsyncClient(verify=verify, timeout=_TIMEOUT, trust_env=False)
        except OSError as error:
            raise SetupFailedError(f"the cluster's CA file: {error}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def create_job(self, job: Json) -> Json:
        """Make a Job; gives it as the cluster keeps it."""
        return await self._call("POST", self._path("jobs", group="/apis/batch/v1"), body=job)

    async def create_secret(self, secret: Json) -> Json:
        """Make a Secret."""
        return await self._call("POST", self._path("secrets"), body=secret)

    async def pods(self, job: str) -> list[Json]:
        """Give the pods of a Job; there is at most one."""
        reply = await self._call("GET", self._path("pods"), params={"labelSelector": f"kala.dev/run={job}"})
        items = reply.get("items", [])
        return [item for item in items if isinstance(item, dict)]

    async def delete(self, job: str, pod: str | None) -> None:
        """Delete the pod at once and the Job with its Secret; what is gone already is deleted."""
        now = {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
        if pod is not None:
            await self._call("DELETE", f"{self._path('pods')}/{pod}", body=now, missing_ok=True)
        await self._call(
            "DELETE", f"{self._path('jobs', group='/apis/batch/v1')}/{job}", body=now, missing_ok=True
        )

    @asynccontextmanager
    async def log(self, pod: str, limit_bytes: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """Follow a container's log from its beginning to the end of the container."""
        params = {"follow": "true", "container": CONTAINER, "limitBytes": str(limit_bytes)}
        request = self._opened.build_request(
            "GET",
            f"{self._path('pods')}/{pod}/log",
            params=params,
            headers=await self._headers(),
            timeout=_STREAM_TIMEOUT,
        )
        try:
            reply = await self._opened.send(request, stream=True)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        try:
            if reply.is_error:
                await reply.aread()
                raise _refused(reply)
            yield _pieces(reply)
        finally:
            await reply.aclose()

    def _path(self, kind: str, *, group: str = "/api/v1") -> str:
        return f"{self._base}{group}/namespaces/{self._namespace}/{kind}"

    @property
    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            raise SetupFailedError("the connection to the cluster is not open")
        return self._client

    async def _headers(self) -> dict[str, str]:
        try:
            token = await asyncio.to_thread(self._token_file.read_text, encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise SetupFailedError(
                f"the service account token: {error}; the pod of tools needs a projected service account token"
            ) from error
        return {"authorization": f"Bearer {token.strip()}", "accept": "application/json"}

    async def _call(
        self,
        method: str,
        url: str,
        *,
        body: Json | None = None,
        params: dict[str, str] | None = None,
        missing_ok: bool = False,
    ) -> Json:
        try:
            reply = await self._opened.request(
                method, url, json=body, params=params, headers=await self._headers()
            )
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        if missing_ok and reply.status_code == _NOT_FOUND:
            return {}
        if not reply.is_success:
            raise _refused(reply)
        try:
            value = reply.json()
        except ValueError as error:
            raise SetupFailedError("the Kubernetes API answered with something that is no JSON") from error
        return value if isinstance(value, dict) else {}


async def _pieces(reply: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in reply.aiter_bytes():
            yield piece
    except httpx.HTTPError as error:
        raise _unreachable(error) from error


def _unreachable(error: httpx.HTTPError) -> UnavailableError:
    return UnavailableError(f"the Kubernetes API does not answer: {str(error) or type(error).__name__}")


def _refused(reply: httpx.Response) -> KalaError:
    """Turn a refusal of the API server into words with their cure."""
    try:
        message = str(json.loads(reply.content)["message"])[:400]
    except (ValueError, KeyError, TypeError):
        message = reply.text[:200]
    what = f"the Kubernetes API refused ({reply.status_code}): {message}"
    if reply.status_code == _TOO_MANY or "exceeded quota" in message:
        return ResourceExhaustedError(what, retry_after_seconds=_RETRY_SECONDS)
    if reply.status_code >= _SERVER_ERROR:
        return UnavailableError(what)
    if reply.status_code == _FORBIDDEN:
        what += "; the Role of tools needs create and delete on jobs, create on secrets, get, list and delete on pods, get on pods/log"
    return SetupFailedError(what)
