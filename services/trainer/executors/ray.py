"""Work on a Ray cluster, through its Jobs API; this process imports nothing of Ray."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

import structlog

from kala.errors import FailedPreconditionError, KalaError, UnavailableError
from services.trainer.executors.local import PASSED
from services.trainer.executors.model import LET_GO, Attached, Task
from services.trainer.executors.ray_api import ENDED, JobStatus, RayApi
from services.trainer.executors.ray_local import Cluster, LocalRay
from services.trainer.work.ended import Ended
from services.trainer.work.log_lines import LAST_LINES, LogReader
from services.trainer.work.results import EXIT_DONE, EXIT_REFUSED

POLL_SECONDS: Final = 1.0
STOP_SECONDS: Final = 60.0
"""From asking for a job's end until it is taken to be lost."""

SILENT_SECONDS: Final = 120.0
"""After this long without an answer the head is taken to be dead: the work is begun again from its last checkpoint."""

EXIT_CRASHED: Final = 1

JOB_ENVIRONMENT: Final = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    # Alike lines of two workers are two lines, and one line is told once.
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Nothing is fetched behind the operator's back: what is used was named by digest and is on the disk.
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}

log: Final = structlog.get_logger()

MakeApi = Callable[[Cluster], RayApi]


class RayExecutor:
    """Runs `python -m services.trainer.ray` as a job of the configured cluster, else of a local Ray on demand."""

    def __init__(
        self,
        *,
        address: str | None,
        token_file: Path | None,
        python: str = "python",
        environ: Mapping[str, str] | None = None,
        api: MakeApi | None = None,
        poll_seconds: float = POLL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        given = os.environ if environ is None else environ
        self._address = address
        self._token_file = token_file
        self._python = python if address else sys.executable
        self._local = LocalRay({name: given[name] for name in PASSED if name in given})
        self._api = api or (lambda cluster: RayApi(cluster.address, cluster.token))
        self._poll_seconds = poll_seconds
        self._clock = clock

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Self]:
        """Keep one local Ray for several jobs after one another."""
        async with self._cluster():
            yield self

    async def run(self, task: Task, attached: Attached) -> Ended:
        """Run the folder's work to its end; cancelled, stop the job and wait until it has ended."""
        async with self._cluster() as cluster, self._api(cluster) as api:
            # A local Ray died with the service that had started it, and its jobs with it.
            known = task.elsewhere_id if self._address else ""
            job_id = known or f"kala-{task.folder.name}-{secrets.token_hex(4)}"
            is_known = bool(known)
            try:
                if not is_known:
                    await self._submit(api, job_id, task)
                await attached(job_id)
                is_known = True
                return await self._until_end(api, job_id, task.folder)
            except asyncio.CancelledError as error:
                # What the next service does not know of must not be left; a local Ray ends with this one.
                if error.args != (LET_GO,) or not self._address or not is_known:
                    await asyncio.shield(self._stop(api, job_id))
                raise

    @asynccontextmanager
    async def _cluster(self) -> AsyncIterator[Cluster]:
        if self._address:
            yield Cluster(self._address, self._token())
            return
        async with self._local.use() as cluster:
            yield cluster

    def _token(self) -> str:
        if self._token_file is None:
            raise FailedPreconditionError(
                "a Ray cluster is configured without its token; set KALA_TRAINER_RAY_TOKEN_FILE",
                reason="RAY_TOKEN_MISSING",
            )
        try:
            return self._token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise FailedPreconditionError(
                "the file of Ray's token cannot be read; check KALA_TRAINER_RAY_TOKEN_FILE",
                reason="RAY_TOKEN_MISSING",
            ) from error

    async def _submit(self, api: RayApi, job_id: str, task: Task) -> None:
        command = [self._python, "-m", "services.trainer.ray", str(task.folder)]
        env = dict(JOB_ENVIRONMENT)
        # Workers set their own threads; this is what libraries begin with.
        env["OMP_NUM_THREADS"] = str(max(1, int(task.placement.cpus_per_worker or 1)))
        try:
            await api.submit(job_id, shlex.join(command), env=env, metadata={"work": task.folder.name})
        except UnavailableError:
            # It may have been taken although the answer was lost.
            await self._stop(api, job_id)
            raise

    async def _until_end(self, api: RayApi, job_id: str, folder: Path) -> Ended:
        answered = self._clock()
        while True:
            try:
                status = await api.status(job_id)
            except UnavailableError as error:
                if self._clock() - answered > SILENT_SECONDS:
                    return Ended(EXIT_CRASHED, f"{error.message} for {SILENT_SECONDS:.0f} s")
            else:
                answered = self._clock()
                if status is None:
                    return Ended(EXIT_CRASHED, "the Ray cluster was started anew and does not know the job")
                if status.status in ENDED:
                    return await asyncio.to_thread(_ended, status, folder)
            await asyncio.sleep(self._poll_seconds)

    async def _stop(self, api: RayApi, job_id: str) -> None:
        until = self._clock() + STOP_SECONDS
        while self._clock() < until:
            try:
                await api.stop(job_id)
                status = await api.status(job_id)
                if status is None or status.status in ENDED:
                    return
            except KalaError as error:
                log.warning("ray_job_not_stopped", job=job_id, problem=error.message)
            await asyncio.sleep(self._poll_seconds)
        log.error("ray_job_left", job=job_id)


def _ended(status: JobStatus, folder: Path) -> Ended:
    lines = LogReader(folder).read(limit=1 << 30)
    said = " | ".join(line.text for line in lines[-LAST_LINES:])[-600:] or status.message
    if status.status == "SUCCEEDED":
        return Ended(EXIT_DONE, said)
    return Ended(EXIT_REFUSED if status.exit_code == EXIT_REFUSED else EXIT_CRASHED, said)
