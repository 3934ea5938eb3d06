"""A Kubernetes API server of one namespace, whose pods are real processes in bubblewrap, as process 1 of their own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

NAMESPACE = "kala-sandboxes"
TOKEN = "projected-token"
Json = dict[str, Any]

AS_NOBODY: Final = ("/usr/bin/setpriv", "--reuid", "65532", "--regid", "65532", "--clear-groups", "--")


def unchanged(_spec: Json) -> None:
    """Admit a pod as it was asked for."""


@dataclass
class Cluster:
    """What the test set up and what it saw."""

    # Called with the pod's spec before it is kept, as an admission webhook is.
    admit: Callable[[Json], None] = unchanged
    # "METHOD kind" -> status and message.
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    # A container's waiting reason; the pod never starts.
    waiting: str = ""
    # Bytes after which the first log that is followed breaks off.
    cut_log_at: int | None = None
    # How the container is said to have ended when it ended without a result.
    terminated: str = "Completed"
    # Run instead of what the pod says.
    command: list[str] | None = None
    jobs: dict[str, Json] = field(default_factory=dict)
    secrets: dict[str, Json] = field(default_factory=dict)
    pods: dict[str, Json] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    # Pod specs that got a secret, hence code.
    ran: list[Json] = field(default_factory=list)
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    logs: dict[str, Path] = field(default_factory=dict)
    # Set once the pods were listed.
    listed: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    folder: Path = Path("/nonexistent")

    @property
    def empty(self) -> bool:
        return not self.jobs and not self.pods and not self.secrets


def refusal(code: int, message: str) -> Response:
    return JSONResponse({"kind": "Status", "message": message, "code": code}, status_code=code)


class Server:
    """The routes."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        core, batch = f"/api/v1/namespaces/{NAMESPACE}", f"/apis/batch/v1/namespaces/{NAMESPACE}"
        self.app = Starlette(
            routes=[
                Route(f"{batch}/jobs", self.guarded(self.create_job), methods=["POST"]),
                Route(f"{batch}/jobs/{{name}}", self.guarded(self.delete_job), methods=["DELETE"]),
                Route(f"{core}/secrets", self.guarded(self.create_secret), methods=["POST"]),
                Route(f"{core}/pods", self.guarded(self.list_pods), methods=["GET"]),
                Route(f"{core}/pods/{{name}}", self.guarded(self.delete_pod), methods=["DELETE"]),
                Route(f"{core}/pods/{{name}}/log", self.guarded(self.log), methods=["GET"]),
            ]
        )

    def guarded(self, route):
        async def call(request: Request) -> Response:
            kind = request.url.path.removeprefix("/apis/batch/v1").removeprefix("/api/v1").split("/")[3]
            what = f"{request.method} {kind}"
            self.cluster.seen.append(what)
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                return refusal(401, "Unauthorized")
            if what in self.cluster.refuse:
                return refusal(*self.cluster.refuse[what])
            return await route(request)

        return call

    async def create_job(self, request: Request) -> Response:
        job = await request.json()
        name = job["metadata"]["name"]
        job["metadata"]["uid"] = f"uid-of-{name}"
        self.cluster.jobs[name] = job
        spec = json.loads(json.dumps(job["spec"]["template"]["spec"]))
        # As the API server does: false flags are left out, defaults filled in.
        for flag in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
            spec.pop(flag)
        spec |= {"schedulerName": "default-scheduler", "tolerations": [{"operator": "Exists"}]}
        self.cluster.admit(spec)
        pod = f"{name}-abcde"
        status: Json = {"phase": "Pending"}
        if self.cluster.waiting:
            status["containerStatuses"] = [
                {
                    "name": "run",
                    "state": {"waiting": {"reason": self.cluster.waiting, "message": "no such image"}},
                }
            ]
        self.cluster.pods[pod] = {
            "metadata": {"name": pod, "labels": {"kala.dev/run": name}},
            "spec": spec,
            "status": status,
        }
        return JSONResponse(job, status_code=201)

    async def create_secret(self, request: Request) -> Response:
        secret = await request.json()
        name = secret["metadata"]["name"]
        self.cluster.secrets[name] = secret
        await self.run(f"{name}-abcde", secret)
        return JSONResponse(secret, status_code=201)

    async def run(self, name: str, secret: Json) -> None:
        pod = self.cluster.pods[name]
        folder = self.cluster.folder / name
        (folder / "in").mkdir(parents=True, mode=0o755)
        for key, value in secret["data"].items():
            (folder / "in" / key).write_bytes(base64.b64decode(value))
            (folder / "in" / key).chmod(0o644)
        container = pod["spec"]["containers"][0]
        log = self.cluster.logs[name] = folder / "log"
        size = pod["spec"]["volumes"][1]["emptyDir"]["sizeLimit"]
        options = f"""--unshare-all --as-pid-1 --die-with-parent --cap-drop ALL --clearenv
            --ro-bind /usr/bin /usr/bin --ro-bind /usr/lib /usr/lib --ro-bind /usr/lib64 /usr/lib64
            --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc --dev /dev
            --ro-bind {folder}/in /kala/in --size {size} --tmpfs /workspace --chdir /workspace""".split()
        self.cluster.ran.append(pod["spec"])
        with log.open("wb") as output:
            # Not `user=`: that makes Python fork, which a process that has used gRPC must not.
            process = await asyncio.create_subprocess_exec(
                *(AS_NOBODY if os.geteuid() == 0 else ()),
                "/usr/bin/bwrap",
                *options,
                *(self.cluster.command or container["command"]),
                stdout=output,
                stderr=output,
            )
        self.cluster.processes[name] = process
        if self.cluster.waiting:
            return
        pod["status"] = {"phase": "Running", "containerStatuses": [{"name": "run", "state": {"running": {}}}]}

    async def list_pods(self, request: Request) -> Response:
        wanted = request.query_params["labelSelector"].removeprefix("kala.dev/run=")
        items = [
            pod for pod in self.cluster.pods.values() if pod["metadata"]["labels"]["kala.dev/run"] == wanted
        ]
        self.cluster.listed.set()
        return JSONResponse({"items": items})

    async def log(self, request: Request) -> Response:
        name = request.path_params["name"]
        cut, self.cluster.cut_log_at = self.cluster.cut_log_at, None
        return StreamingResponse(self.follow(name, cut), media_type="text/plain")

    async def follow(self, name: str, cut: int | None) -> AsyncIterator[bytes]:
        process, sent = self.cluster.processes[name], 0
        with self.cluster.logs[name].open("rb") as log:
            while True:
                over = process.returncode is not None
                while data := log.read(4096):
                    if cut is not None and sent + len(data) > cut:
                        yield data[: cut - sent]
                        raise ConnectionResetError("the kubelet went away")
                    sent += len(data)
                    yield data
                if over:
                    break
                await asyncio.sleep(0.01)
        if name in self.cluster.pods:
            ended = {"state": {"terminated": {"reason": self.cluster.terminated}}}
            self.cluster.pods[name]["status"] = {"phase": "Succeeded", "containerStatuses": [ended]}

    async def delete_pod(self, request: Request) -> Response:
        name = request.path_params["name"]
        if self.cluster.pods.pop(name, None) is None:
            return refusal(404, "not found")
        await self.end(name)
        return JSONResponse({})

    async def delete_job(self, request: Request) -> Response:
        name = request.path_params["name"]
        if self.cluster.jobs.pop(name, None) is None:
            return refusal(404, "not found")
        # The garbage collector: what the Job owns goes with it.
        self.cluster.secrets.pop(name, None)
        self.cluster.pods.pop(f"{name}-abcde", None)
        await self.end(f"{name}-abcde")
        return JSONResponse({})

    async def end(self, name: str) -> None:
        process = self.cluster.processes.get(name)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@asynccontextmanager
async def serving(cluster: Cluster) -> AsyncIterator[str]:
    """Serve the cluster on loopback; gives its address."""
    folder = Path(tempfile.mkdtemp(prefix="kala-cluster-"))
    os.chmod(folder, 0o755)  # noqa: PTH101
    cluster.folder = folder
    server = Server(cluster)
    config = uvicorn.Config(server.app, log_level="critical", lifespan="off")
    http = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    cluster.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    task = asyncio.create_task(http.serve(sockets=[listener]))
    try:
        yield cluster.url
    finally:
        for name in list(cluster.processes):
            await server.end(name)
        http.should_exit = True
        await task
        shutil.rmtree(folder, ignore_errors=True)
