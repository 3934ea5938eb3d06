"""Runs cases of the escape suite on a tier, as the user without rights that the service runs as.

`escape_program.py TIER STATE_DIRECTORY < cases.json > results.json`. Lays out a host for the cases to break into, and looks
after each case whether anything of it was touched. Not a fake itself: it is a process of its own because root is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kala.errors import KalaError
from services.tools.files.model import Rights, WriteMode
from services.tools.files.volume import Account, Volume
from services.tools.sandbox.client import LauncherSettings
from services.tools.sandbox.model import Ended, Job, Language, Limits, Output, Sandbox, Tier

LANGUAGES = {"python": Language.PYTHON, "bash": Language.SHELL, "js": Language.JAVASCRIPT}
MIB = 1024 * 1024
# As the packaged policy's defaults, with less time and output.
LIMITS: dict[str, Any] = {
    "wall_seconds": 10.0,
    "cpu_seconds": 8.0,
    "memory_bytes": 512 * MIB,
    "processes": 64,
    "open_files": 256,
    "disk_bytes": 64 * MIB,
    "inodes": 4096,
    "file_bytes": 32 * MIB,
    "output_bytes": 256 * 1024,
    "artifacts": 8,
    "artifact_bytes": MIB,
}
CONCURRENCY = 2
IPC_RMID = 0


class AllRights(Rights):
    """Lets everything: what holds must be the files themselves."""

    def may_read(self, path: str) -> bool:
        return True

    may_write = may_delete = may_read


@dataclass
class Host:
    """What a case might reach."""

    folder: Path
    token: str = field(default_factory=lambda: f"KALA_SECRET_{secrets.token_hex(8)}")
    listeners: list[socket.socket] = field(default_factory=list)
    hits: int = 0

    def __post_init__(self) -> None:
        self.secret = self.folder / "secret.txt"
        self.secret.write_text(self.token, encoding="ascii")
        self.secret.chmod(0o644)
        self.out = self.folder / "out"
        self.out.mkdir(mode=0o777)
        self.canary = subprocess.Popen(["/usr/bin/sleep", "3600"], env={"KALA_CANARY": self.token})
        self.shm_key = secrets.randbelow(2**30) + 1
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.shm = self.libc.shmget(self.shm_key, 4096, 0o1600)
        abstract = f"kala-{secrets.token_hex(8)}"
        sock = self.folder / "listener"
        self.tokens = {
            "SECRET": str(self.secret),
            "CPID": str(self.canary.pid),
            "TCP": str(self.listen(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))),
            "UDP": str(self.listen(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))),
            "TCP6": str(self.listen(socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0))),
            "ABS": abstract,
            "SOCK": str(sock),
            "OUT": str(self.out),
            "SHM": str(self.shm_key),
            "HOST": socket.gethostname(),
            "KERNEL": os.uname().release,
        }
        self.listen(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + abstract)
        self.listen(socket.AF_UNIX, socket.SOCK_STREAM, str(sock))

    def listen(self, family: int, kind: int, address: Any) -> int:
        listener = socket.socket(family, kind)
        try:
            listener.bind(address)
        except OSError:
            # A machine without IPv6: nothing listens where the case looks.
            return 9
        listener.setblocking(False)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        self.listeners.append(listener)
        name = listener.getsockname()
        return name[1] if isinstance(name, tuple) else 0

    def fill(self, text: str) -> str:
        for name, value in self.tokens.items():
            text = text.replace(f"@@{name}@@", value)
        return text

    def touched(self) -> str:
        for listener in self.listeners:
            with contextlib.suppress(BlockingIOError):
                listener.recv(9) if listener.type is socket.SOCK_DGRAM else listener.accept()
                return f"a listener was hit: {listener.getsockname()}"
        if self.canary.poll() is not None:
            return "the canary process died"
        if self.secret.read_text(encoding="ascii") != self.token:
            return "the canary file was changed"
        if list(self.out.iterdir()):
            return "something was made on the host"
        return ""

    def close(self) -> None:
        self.canary.kill()
        self.canary.wait()
        self.libc.shmctl(self.shm, IPC_RMID, None)
        for listener in self.listeners:
            listener.close()


def mutated() -> dict[str, Any]:
    """Start the launcher without some of its controls, where the test says so."""
    taken = os.environ.pop("MUTATION", "")
    program = str(Path(__file__).with_name("mutated_launcher.py"))
    return {"python": (sys.executable, program, taken)} if taken else {}


async def opened(tier: Tier, state: Path) -> Sandbox:
    settings = LauncherSettings(state_directory=state, max_running=CONCURRENCY + 2, **mutated())
    if tier is Tier.BUBBLEWRAP:
        from services.tools.sandbox.bubblewrap.tier import open_bubblewrap

        return await open_bubblewrap(settings)
    if tier is Tier.RUNSC:
        from services.tools.sandbox.runsc.tier import open_runsc

        return await open_runsc(settings)
    from services.tools.sandbox.landlock.tier import open_landlock

    return await open_landlock(settings)


def laid_out(files: dict[str, str]):
    def prepare(workspace: int) -> None:
        for name, content in files.items():
            descriptor = os.open(name, os.O_CREAT | os.O_WRONLY, 0o755, dir_fd=workspace)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)

    return prepare


async def in_sandbox(sandbox: Sandbox, host: Host, case: dict[str, Any]) -> dict[str, Any]:
    if case["lang"] not in LANGUAGES:
        return {"refused": True}
    job = Job(
        LANGUAGES[case["lang"]],
        host.fill(case["code"]).encode(),
        Limits(**(LIMITS | case["limits"])),
        arguments=tuple(host.fill(argument) for argument in case["arguments"]),
    )
    began = time.monotonic()
    try:
        run = await sandbox.start(job, laid_out(case["files"]))
    except KalaError as error:
        return {"refused": True, "output": str(error)}
    output, ended = bytearray(), None
    try:
        async for event in run.events():
            if isinstance(event, Output):
                output += event.data
            elif isinstance(event, Ended):
                ended = event
    finally:
        seconds = time.monotonic() - began
        await run.aclose()
    return {
        "output": output.decode(errors="replace"),
        "output_bytes": len(output),
        "status": ended.status.value if ended else "lost",
        "reason": ended.reason if ended else "",
        "seconds": seconds,
    }


def in_zone(host: Host, case: dict[str, Any]) -> dict[str, Any]:
    """Give a path to the file tool, in a workspace full of traps."""
    root = host.folder / f"zone-{secrets.token_hex(4)}"
    (root / "files/dir").mkdir(parents=True)
    (root / "staging").mkdir()
    files = root / "files"
    # Relative, so that ".." from the workspace would find it too.
    (root / "secret.txt").write_text(host.token, encoding="ascii")
    (files / "plain").write_text("plain", encoding="ascii")
    (files / "ln_file").symlink_to(host.secret)
    (files / "ln_abs_loop").symlink_to(files / "ln_abs_loop")
    (files / "ln_proc").symlink_to(f"/proc/self/root{host.secret}")
    (files / "ln_dir").symlink_to(host.folder)
    (files / "ln_new").symlink_to(host.out / "new")
    (files / "ln_up").symlink_to("../secret.txt")
    os.link(host.secret, files / "hard")
    os.mkfifo(files / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(files / "sock"))
    with contextlib.suppress(PermissionError):
        os.mknod(files / "dev", 0o600 | 0o020000, os.makedev(1, 5))
    with contextlib.ExitStack() as stack:
        ends = [os.open(root / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("files", "staging")]
        for end in ends:
            stack.callback(os.close, end)
        volume = Volume(root=ends[0], staging=ends[1], account=Account(MIB, 100), rights=AllRights())
        path = host.fill(case["code"])
        try:
            if case["create"]:
                volume.write(path, b"planted", mode=WriteMode.CREATE)
            else:
                data = volume.read(path).data
                return {"refused": False, "output": data.decode(errors="replace")}
        except (KalaError, OSError) as error:
            return {"refused": True, "output": f"{type(error).__name__}: {error}"}
        finally:
            shutil.rmtree(root, ignore_errors=True)
    return {"refused": False, "output": "written"}


def marked(name: str) -> list[int]:
    """Find our processes by the name they gave themselves; the launcher adopts orphans, so all of them are below us."""
    found = []
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip() == name:
                found.append(pid)
    return found


async def run_case(sandbox: Sandbox, host: Host, case: dict[str, Any]) -> dict[str, Any]:
    try:
        if case["lang"] == "zone":
            result = await asyncio.to_thread(in_zone, host, case)
        else:
            async with asyncio.timeout(60):
                result = await in_sandbox(sandbox, host, case)
    except (TimeoutError, UnicodeError, OSError) as error:
        result = {"trouble": f"the case broke: {type(error).__name__} {error}"}
    result.setdefault("trouble", host.touched())
    if not result["trouble"] and case.get("survivor") and (left := marked(case["survivor"])):
        result["trouble"] = f"processes survived: {left}"
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if host.token in result.get("output", ""):
        result["trouble"] = "the secret came out"
    return {"id": case["id"], **result}


async def main(arguments: list[str]) -> None:
    cases = json.load(sys.stdin)
    state = Path(arguments[1])
    # What the service itself was started with must not reach a run.
    os.environ |= {
        "PYTHONPATH": "/workspace",
        "LD_PRELOAD_PROBE": "x",
        "NODE_OPTIONS": "--require /workspace/x.js",
    }
    folder = state / "host"
    folder.mkdir(mode=0o755)
    os.chmod(state, 0o755)  # noqa: PTH101
    host = Host(folder)
    sandbox = await opened(Tier(arguments[0]), state / "tier")
    turns = asyncio.Semaphore(CONCURRENCY)

    async def in_turn(case: dict[str, Any]) -> dict[str, Any]:
        async with turns:
            return await run_case(sandbox, host, case)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(in_turn(case)) for case in cases]
        left = descendants(os.getpid()) - {host.canary.pid}
    finally:
        await sandbox.aclose()
        host.close()
    json.dump({"results": [task.result() for task in tasks], "processes": len(left)}, sys.stdout)


def descendants(root: int) -> set[int]:
    from services.tools.sandbox.survivors import descendants as below

    return set(below(root))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
