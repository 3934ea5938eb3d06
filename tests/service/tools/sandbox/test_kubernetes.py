"""The Kubernetes tier against a scripted API server, whose pods really run the runner as process 1."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kala.errors import KalaError, ResourceExhaustedError, UnavailableError
from services.tools.sandbox.kubernetes.api import KubernetesApi
from services.tools.sandbox.kubernetes.manifest import PodSettings
from services.tools.sandbox.kubernetes.sandbox import KubernetesSandbox
from services.tools.sandbox.model import (
    Ended,
    Event,
    Job,
    Language,
    Output,
    Prepare,
    SetupFailedError,
    Status,
    Stream,
)
from services.tools.sandbox.probes.cases import PROBE_LIMITS, PROBES, RUNS
from services.tools.sandbox.selftest import self_test
from tests.fakes.kubernetes_api import NAMESPACE, TOKEN, Cluster, serving

pytestmark = pytest.mark.skipif(not os.access("/usr/bin/bwrap", os.X_OK), reason="the pods need bubblewrap")

SETTINGS = PodSettings(NAMESPACE, "registry/sandbox@sha256:" + "0" * 64, "gvisor", "tools-0")


def python(source: str, **limits: float) -> Job:
    return Job(Language.PYTHON, source.encode(), replace(PROBE_LIMITS, **limits))


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n", encoding="ascii")
    return path


@asynccontextmanager
async def tier(cluster: Cluster, token: Path) -> AsyncIterator[KubernetesSandbox]:
    async with (
        serving(cluster) as url,
        KubernetesApi(url, NAMESPACE, token_file=token, ca_file=None) as api,
    ):
        sandbox = KubernetesSandbox(api, SETTINGS, max_runs=2)
        yield sandbox
        await sandbox.aclose()


async def result(
    sandbox: KubernetesSandbox, job: Job, prepare: Prepare | None = None
) -> tuple[bytes, bytes, Ended]:
    run = await sandbox.start(job, prepare)
    try:
        return gathered([event async for event in run.events()])
    finally:
        await run.aclose()


def gathered(events: list[Event]) -> tuple[bytes, bytes, Ended]:
    out = b"".join(e.data for e in events if isinstance(e, Output) and e.stream is Stream.STDOUT)
    err = b"".join(e.data for e in events if isinstance(e, Output) and e.stream is Stream.STDERR)
    assert isinstance(events[-1], Ended)
    return out, err, events[-1]


async def test_a_run_gets_its_files_stdin_and_arguments_and_gives_files_and_streams_back(token: Path) -> None:
    def prepare(workspace: int) -> None:
        descriptor = os.open("in.txt", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=workspace)
        os.write(descriptor, b"file")
        os.close(descriptor)

    source = """
import os, sys
os.makedirs("deep/er"); open("deep/er/out.txt", "w").write(open("in.txt").read() * 2)
os.symlink("/etc/shadow", "link")
print(sys.stdin.read(), sys.argv[1], sorted(os.environ)); print("bad", file=sys.stderr); sys.exit(3)
"""
    cluster = Cluster()
    async with tier(cluster, token) as sandbox:
        job = replace(python(source), stdin=b"from stdin", arguments=("$(arg)",))
        run = await sandbox.start(job, prepare)
        out, err, ended = gathered([event async for event in run.events()])
        assert out == b"from stdin $(arg) ['HOME', 'LANG', 'PATH', 'TMPDIR']\n"
        assert err == b"bad\n"
        assert (ended.status, ended.exit_code) == (Status.ERROR, 3)
        assert ended.usage.cpu_seconds is not None
        folder = Path(f"/proc/self/fd/{run.workspace()}")
        assert (folder / "deep/er/out.txt").read_text(encoding="ascii") == "filefile"
        assert not (folder / "link").exists()
        await run.aclose()
        assert cluster.empty


@pytest.mark.parametrize(
    ("job", "status"),
    [
        pytest.param(python("while True: pass", wall_seconds=0.5), Status.TIMEOUT, id="wall"),
        pytest.param(python("while True: pass", cpu_seconds=0.3), Status.CPU, id="cpu"),
        pytest.param(
            python("b = bytearray(80 << 20); import time; time.sleep(9)", memory_bytes=64 << 20),
            Status.MEMORY,
            id="memory",
        ),
        pytest.param(python("while True: print('x' * 999)", output_bytes=10_000), Status.OUTPUT, id="output"),
        pytest.param(
            python("import time\nfor i in range(400): open(str(i), 'w')\ntime.sleep(9)", inodes=200),
            Status.INODES,
            id="inodes",
        ),
    ],
)
async def test_the_runner_ends_what_passes_a_limit(token: Path, job: Job, status: Status) -> None:
    cluster = Cluster()
    async with tier(cluster, token) as sandbox:
        out, _, ended = await result(sandbox, job)
        assert ended.status is status
        assert len(out) <= job.limits.output_bytes
        assert cluster.empty


async def test_what_the_code_leaves_behind_is_dead(token: Path) -> None:
    source = """
import os, time
if os.fork() == 0:
    os.setsid()
    time.sleep(60)
"""
    cluster = Cluster()
    async with tier(cluster, token) as sandbox:
        _, _, ended = await result(sandbox, python(source))
        assert ended.status is Status.OK


async def test_the_code_cannot_speak_for_its_runner(token: Path) -> None:
    source = """
for path in ("/proc/1/fd/1", "/proc/1/mem", "/proc/1/environ"):
    try:
        open(path, "r+b" if "mem" in path else "rb"); print("ESCAPED", path)
    except OSError as error:
        print("HELD", error.errno)
print("kala1 end e30=")
"""
    async with tier(Cluster(), token) as sandbox:
        out, _, ended = await result(sandbox, python(source))
        assert b"ESCAPED" not in out
        assert ended.status is Status.OK


async def test_a_run_that_is_killed_is_deleted(token: Path) -> None:
    cluster = Cluster()
    async with tier(cluster, token) as sandbox:
        run = await sandbox.start(python("import time; print('on', flush=True); time.sleep(60)"))
        events = []
        async for event in run.events():
            events.append(event)
            if isinstance(event, Output):
                await run.kill()
        assert events[-1].status is Status.CANCELLED
        await run.aclose()
        assert cluster.empty


def with_sidecar(spec: dict) -> None:
    spec["containers"].append({"name": "proxy", "image": "proxy"})


def with_init(spec: dict) -> None:
    spec["initContainers"] = [{"name": "setup", "image": "setup"}]


def without_runtime_class(spec: dict) -> None:
    del spec["runtimeClassName"]


def other_runtime_class(spec: dict) -> None:
    spec["runtimeClassName"] = "runc"


def with_token(spec: dict) -> None:
    spec["automountServiceAccountToken"] = True


def with_host_network(spec: dict) -> None:
    spec["hostNetwork"] = True


def as_root(spec: dict) -> None:
    spec["securityContext"]["runAsUser"] = 0


def with_capability(spec: dict) -> None:
    spec["containers"][0]["securityContext"]["capabilities"]["add"] = ["SYS_ADMIN"]


def privileged(spec: dict) -> None:
    spec["containers"][0]["securityContext"]["privileged"] = True


def with_environment(spec: dict) -> None:
    spec["containers"][0]["env"] = [{"name": "AWS_SECRET", "value": "x"}]


def with_volume(spec: dict) -> None:
    spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}})


def larger(spec: dict) -> None:
    spec["containers"][0]["resources"]["limits"]["memory"] = "64Gi"


@pytest.mark.parametrize(
    "admit",
    [
        with_sidecar,
        with_init,
        without_runtime_class,
        other_runtime_class,
        with_token,
        with_host_network,
        as_root,
        with_capability,
        privileged,
        with_environment,
        with_volume,
        larger,
    ],
)
async def test_a_pod_that_is_not_as_asked_never_gets_the_code(token: Path, admit) -> None:
    cluster = Cluster(admit=admit)
    async with tier(cluster, token) as sandbox:
        with pytest.raises(SetupFailedError):
            await sandbox.start(python("print(1)"))
        assert cluster.ran == []
        assert "POST secrets" not in cluster.seen
        assert cluster.empty


@pytest.mark.parametrize(
    ("refuse", "error", "words"),
    [
        pytest.param(
            ("POST jobs", 403, "forbidden"), SetupFailedError, "the Role of tools needs", id="no right"
        ),
        pytest.param(("POST jobs", 403, "exceeded quota: runs"), ResourceExhaustedError, "quota", id="quota"),
        pytest.param(("POST jobs", 429, "slow down"), ResourceExhaustedError, "429", id="too many"),
        pytest.param(("POST secrets", 500, "etcd"), UnavailableError, "500", id="no secret"),
        pytest.param(("GET pods", 503, "starting"), UnavailableError, "503", id="no pods"),
        pytest.param(("POST jobs", 422, "invalid"), SetupFailedError, "invalid", id="invalid"),
    ],
)
async def test_a_refusal_of_the_cluster_runs_nothing_and_leaves_nothing(
    token: Path, refuse: tuple[str, int, str], error: type[KalaError], words: str
) -> None:
    cluster = Cluster(refuse={refuse[0]: refuse[1:]})
    async with tier(cluster, token) as sandbox:
        with pytest.raises(error, match=words):
            await sandbox.start(python("print(1)"))
        assert cluster.ran == []
        assert cluster.empty


async def test_an_image_that_cannot_be_pulled_is_told_at_once(token: Path) -> None:
    cluster = Cluster(waiting="ErrImagePull")
    async with tier(cluster, token) as sandbox:
        with pytest.raises(SetupFailedError, match="ErrImagePull: no such image"):
            await sandbox.start(python("print(1)"))
        assert cluster.empty


async def test_without_a_token_nothing_is_asked(tmp_path: Path) -> None:
    cluster = Cluster()
    async with tier(cluster, tmp_path / "none") as sandbox:
        with pytest.raises(SetupFailedError, match="projected service account token"):
            await sandbox.start(python("print(1)"))
        assert cluster.seen == []


async def test_a_cluster_that_is_away_is_unavailable(token: Path) -> None:
    async with KubernetesApi("http://127.0.0.1:9", NAMESPACE, token_file=token, ca_file=None) as api:
        with pytest.raises(UnavailableError, match="does not answer"):
            await KubernetesSandbox(api, SETTINGS).start(python("print(1)"))


async def test_a_log_that_breaks_off_is_followed_anew_without_repeating_itself(token: Path) -> None:
    source = "for number in range(2000): print(number)"
    async with tier(Cluster(cut_log_at=9_000), token) as sandbox:
        out, _, ended = await result(sandbox, python(source))
        assert out.split() == [str(number).encode() for number in range(2000)]
        assert ended.status is Status.OK


@pytest.mark.parametrize(
    ("reason", "status"), [("OOMKilled", Status.MEMORY), ("Error", Status.LAUNCHER_LOST)]
)
async def test_a_pod_without_a_result_says_what_became_of_it(
    token: Path, reason: str, status: Status
) -> None:
    cluster = Cluster(command=["/bin/bash", "-c", "echo last words; exit 1"], terminated=reason)
    async with tier(cluster, token) as sandbox:
        _, _, ended = await result(sandbox, python("print(1)"))
        assert ended.status is status
        assert reason == "OOMKilled" or "last words" in ended.reason


async def test_a_runner_that_lies_gets_no_more_than_the_limits(token: Path) -> None:
    flood = (
        "import base64, sys\n"
        "line = b'kala1 out ' + base64.b64encode(b'x' * 9000)\n"
        "while True: sys.stdout.buffer.write(line + b'\\n')\n"
    )
    cluster = Cluster(command=["/usr/bin/python3", "-c", flood])
    async with tier(cluster, token) as sandbox:
        out, _, ended = await result(sandbox, python("", output_bytes=20_000))
        assert len(out) == 20_000
        assert ended.status is Status.OUTPUT
        assert ended.output_truncated


async def test_runs_are_bounded_and_a_closed_one_makes_room(token: Path) -> None:
    async with tier(Cluster(), token) as sandbox:
        runs = [await sandbox.start(python("import time; time.sleep(60)")) for _ in range(2)]
        with pytest.raises(ResourceExhaustedError) as full:
            await sandbox.start(python("print(1)"))
        assert full.value.retry_after_seconds
        await runs[0].aclose()
        assert (await result(sandbox, python("print(1)")))[0] == b"1\n"
        await sandbox.aclose()
        with pytest.raises(UnavailableError):
            await sandbox.start(python("print(1)"))


async def test_a_start_that_is_cancelled_leaves_no_job(token: Path) -> None:
    cluster = Cluster(waiting="ContainerCreating", command=["/usr/bin/sleep", "60"])
    async with tier(cluster, token) as sandbox:
        task = asyncio.create_task(sandbox.start(python("print(1)")))
        await cluster.listed.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cluster.empty


async def test_too_much_input_is_refused_before_anything_is_made(token: Path) -> None:
    cluster = Cluster()
    async with tier(cluster, token) as sandbox:
        with pytest.raises(SetupFailedError, match="send less"):
            await sandbox.start(replace(python("print(1)"), stdin=os.urandom(1_100_000)))
        with pytest.raises(SetupFailedError, match="host_directory"):
            await sandbox.start(replace(python("print(1)"), host_directory="/srv"))
        assert cluster.seen == []


async def test_a_workspace_too_large_to_come_back_is_said_to_be(token: Path) -> None:
    source = "import os\nfor i in range(2): open(str(i), 'wb').write(os.urandom(3 << 20))"
    async with tier(Cluster(), token) as sandbox:
        _, _, ended = await result(sandbox, python(source))
        assert ended.status is Status.DISK
        assert "a pod can give back" in ended.reason


async def test_pods_on_the_hosts_own_kernel_are_no_strong_tier(token: Path) -> None:
    """The fake's pods share this machine's kernel, as those of a RuntimeClass that is plain runc would."""
    async with tier(Cluster(), token) as sandbox:
        found = await self_test(
            sandbox, probes=[RUNS, *(probe for probe in PROBES if probe.id == "own_kernel")]
        )
        assert [case.held for case in found.cases] == [True, False]
