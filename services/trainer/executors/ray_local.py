"""A local Ray on demand: started by its own process for the first job, ended with the last, never `ray stop`."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kala.errors import UnavailableError
from services.common.processes import gone
from services.trainer.cores import usable_cores

START_SECONDS: Final = 180.0
END_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a cluster is, and what opens it."""

    address: str
    token: str


@dataclass(slots=True)
class _Running:
    process: asyncio.subprocess.Process
    cluster: Cluster
    token_file: Path


class LocalRay:
    """Shares one Ray among the jobs that need it at the same time."""

    def __init__(self, environ: Mapping[str, str], *, cpus: int | None = None) -> None:
        self._environ = environ
        self._cpus = cpus or usable_cores()
        self._users = 0
        self._running: _Running | None = None
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Cluster]:
        """Give the cluster; it runs as long as anybody uses it."""
        async with self._lock:
            if self._running is None or self._running.process.returncode is not None:
                self._running = await self._start()
            cluster = self._running.cluster
            self._users += 1
        try:
            yield cluster
        finally:
            # Shielded: a cancelled job must not leave its Ray behind.
            await asyncio.shield(self._leave())

    async def _leave(self) -> None:
        async with self._lock:
            self._users -= 1
            if self._users == 0 and self._running is not None:
                running, self._running = self._running, None
                await _end(running)

    async def _start(self) -> _Running:
        token = secrets.token_hex(32)
        descriptor, name = tempfile.mkstemp(prefix="kala-ray-token-")
        with os.fdopen(descriptor, "w") as file:
            file.write(token)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.trainer.ray.local",
            str(self._cpus),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            env={**self._environ, **ray_environment(Path(name))},
        )
        running = _Running(process, Cluster("", token), Path(name))
        try:
            async with asyncio.timeout(START_SECONDS):
                said = await process.stdout.readline() if process.stdout else b""
            running.cluster = Cluster(str(json.loads(said)["address"]), token)
        except (TimeoutError, ValueError, KeyError, asyncio.CancelledError) as error:
            await asyncio.shield(_end(running))
            if isinstance(error, asyncio.CancelledError):
                raise
            raise UnavailableError(
                "a local Ray did not start; install kala-suite[trainer-ray], or set KALA_TRAINER_RAY_ADDRESS",
                reason="RAY_UNAVAILABLE",
            ) from error
        return running


def ray_environment(token_file: Path) -> dict[str, str]:
    """What Ray's processes are told: the token by a file, and to say nothing to its makers."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }


async def _end(running: _Running) -> None:
    process = running.process
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(END_SECONDS):
            await gone(process)
    except TimeoutError:
        pass
    # What it left of its own session; nobody else is in it.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await gone(process)
    running.token_file.unlink(missing_ok=True)
