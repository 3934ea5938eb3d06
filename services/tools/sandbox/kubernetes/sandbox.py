"""The Kubernetes tier: each run is a Job of its own, verified before it is given the code, deleted whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from kala.errors import KalaError, ResourceExhaustedError, UnavailableError
from services.tools.sandbox.kubernetes import files, manifest
from services.tools.sandbox.kubernetes.api import KubernetesApi
from services.tools.sandbox.kubernetes.manifest import Json, PodSettings
from services.tools.sandbox.kubernetes.run import RESULT_BYTES, KubernetesRun
from services.tools.sandbox.model import Isolation, Job, Prepare, Run, SetupFailedError, Strength, Tier

_RUNNER: Final = Path(__file__).with_name("runner.py")
_POLL_SECONDS: Final = 0.1
_RETRY_SECONDS: Final = 5.0
# Reasons for which a container waits and will not stop waiting.
_HOPELESS: Final = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
_CONTROLS: Final = (
    "capabilities.none",
    "cgroup.cpu",
    "cgroup.memory",
    "net.policy",
    "no_new_privs",
    "own_kernel",
    "rlimits",
    "rootfs.read_only",
    "seccomp",
    "token.none",
)


def reachable_address() -> str:
    """Give the address that other pods would reach this one at: the self-test listens there."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


class KubernetesSandbox:
    """Runs jobs as Jobs of a cluster."""

    def __init__(self, api: KubernetesApi, settings: PodSettings, *, max_runs: int = 8) -> None:
        self._api, self._settings = api, settings
        self._free = max_runs
        self._runs: set[KubernetesRun] = set()
        self._closed = False

    @property
    def isolation(self) -> Isolation:
        """What a pod under this RuntimeClass promises."""
        version = f"RuntimeClass {self._settings.runtime_class}"
        return Isolation(Tier.KUBERNETES, Strength.STRONG, version, _CONTROLS)

    async def start(self, job: Job, prepare: Prepare | None = None) -> Run:
        """Make the Job, verify its pod, and only then hand over the code."""
        if self._closed:
            raise UnavailableError("the Kubernetes tier is closing")
        if job.host_directory is not None:
            raise SetupFailedError(
                "a directory of this machine cannot be shown in a pod; leave host_directory out"
            )
        if self._free <= 0:
            raise ResourceExhaustedError(
                "all runs of the Kubernetes tier are taken", retry_after_seconds=_RETRY_SECONDS
            )
        self._free -= 1
        async with AsyncExitStack() as stack:
            stack.callback(self._give_back)
            run = await stack.enter_async_context(_opened(self, job, prepare))
            # From here on the run frees what it holds when it is closed.
            stack.callback(self._runs.discard, run)
            run.keep(stack.pop_all())
        self._runs.add(run)
        return run

    async def aclose(self) -> None:
        """End every run; the connection belongs to whoever opened it."""
        self._closed = True
        for run in list(self._runs):
            await run.aclose()

    def _give_back(self) -> None:
        self._free += 1

    @property
    def api(self) -> KubernetesApi:
        """The cluster."""
        return self._api

    @property
    def settings(self) -> PodSettings:
        """What all pods have in common."""
        return self._settings


@contextlib.asynccontextmanager
async def _opened(
    sandbox: KubernetesSandbox, job: Job, prepare: Prepare | None
) -> AsyncIterator[KubernetesRun]:
    """Bring a run to the point where its pod runs; deletes the Job when any step fails, and after use."""
    api, settings = sandbox.api, sandbox.settings
    name = f"kala-run-{secrets.token_hex(10)}"
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="kala-pod-"))
    pod, begun = None, False
    try:
        # Too large an input is refused before anything is made.
        inputs = await asyncio.to_thread(_inputs, job, prepare, folder)
        manifest.secret(name, settings, "", inputs)
        uid = settings.first_uid + secrets.randbelow(settings.uids)
        asked = manifest.job(name, settings, job.limits, uid=uid)
        begun = True
        made = await api.create_job(asked)
        async with asyncio.timeout(manifest.STARTUP_SECONDS):
            first = await _pod(api, name, lambda _: True)
            pod = str(first["metadata"]["name"])
            manifest.verify(first, asked["spec"]["template"]["spec"])
            await api.create_secret(manifest.secret(name, settings, str(made["metadata"]["uid"]), inputs))
            await _pod(api, name, _begun)
        yield KubernetesRun(api, sandbox.isolation, job, name=name, pod=pod, folder=folder)
    except TimeoutError as error:
        raise SetupFailedError(
            f"the cluster did not start the pod within {manifest.STARTUP_SECONDS:.0f} s; see `kubectl describe job {name}`"
        ) from error
    finally:
        if begun:
            with contextlib.suppress(KalaError):
                # Shielded: a cancelled caller leaves no Job behind. One that stays all the same deletes itself.
                await asyncio.shield(api.delete(name, pod))
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _inputs(job: Job, prepare: Prepare | None, folder: Path) -> dict[str, bytes]:
    laid = folder / "in"
    laid.mkdir(mode=0o700)
    (folder / "out").mkdir(mode=0o700)
    if prepare is not None:
        descriptor = os.open(laid, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            prepare(descriptor)
        finally:
            os.close(descriptor)
    limits = job.limits
    described = {
        "language": job.language.value,
        "arguments": job.arguments,
        "environment": job.environment,
        "result_bytes": RESULT_BYTES,
        "limits": {name: getattr(limits, name) for name in limits.__dataclass_fields__},
    }
    return {
        "job.json": json.dumps(described).encode(),
        "source": job.source,
        "stdin": job.stdin,
        "files": files.pack(laid),
        "runner.py": _RUNNER.read_bytes(),
    }


async def _pod(api: KubernetesApi, job: str, ready: Callable[[Json], bool]) -> Json:
    """Wait for the Job's pod to be as wanted."""
    while True:
        for pod in await api.pods(job):
            _give_up_if_hopeless(pod)
            if ready(pod):
                return pod
        await asyncio.sleep(_POLL_SECONDS)


def _begun(pod: Json) -> bool:
    return pod.get("status", {}).get("phase") in {"Running", "Succeeded", "Failed"}


def _give_up_if_hopeless(pod: Json) -> None:
    for status in pod.get("status", {}).get("containerStatuses") or ():
        waiting = status.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in _HOPELESS:
            raise SetupFailedError(
                f"the pod cannot start: {waiting['reason']}: {waiting.get('message', '')}"[:400]
            )
