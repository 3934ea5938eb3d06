"""The first process of a run's pod: starts the code, holds it to its limits, and writes frames to the log.

It travels with the run and uses the standard library only. It must be process 1 of a pid namespace of its own: then one
kill reaches every process of the code and none else.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import io
import json
import os
import resource
import selectors
import signal
import stat
import sys
import tarfile
import time
import zlib
from typing import Any, NoReturn

# ruff: noqa: PTH101, PTH103, PTH120, PTH123, PTH208 - it travels alone, and start-up is part of every run: no pathlib

TICK_SECONDS = 0.025
SAMPLE_SECONDS = 1.0
PIECE_BYTES = 9 * 1024
COMMANDS = {
    "python": ["/usr/bin/python3", "-I", "-S"],
    "javascript": ["/usr/bin/node"],
    "shell": ["/bin/bash", "--norc", "--noprofile"],
}
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def frame(kind: str, data: bytes) -> None:
    """Write one line, whole."""
    line = b"kala1 " + kind.encode() + b" " + base64.b64encode(data) + b"\n"
    while line:
        line = line[os.write(1, line) :]


class Watch:
    """What the code's processes use, together."""

    def __init__(self, workspace: str) -> None:
        self.workspace = workspace
        self.began = time.monotonic()
        self.dead_cpu = 0.0
        self.peak_memory = 0
        self.peak_processes = 0
        self.output = 0
        self.cpu = 0.0
        self.memory = 0
        self.processes = 0
        self.disk = 0
        self.inodes = 0
        self.empty_inodes = self._files()[1]

    def look(self) -> None:
        """Read /proc once."""
        self.processes, self.memory, cpu = 0, 0, 0.0
        for name in os.listdir("/proc"):
            if name.isdigit() and name != "1":
                try:
                    threads, ticks = self._process(name)
                    memory = self._memory(name)
                except OSError:
                    continue
                self.processes += threads
                self.memory += memory
                cpu += ticks
        self.disk, inodes = self._files()
        self.inodes = max(0, inodes - self.empty_inodes)
        self.memory += self.disk
        self.cpu = max(self.cpu, self.dead_cpu + cpu)
        self.peak_memory = max(self.peak_memory, self.memory)
        self.peak_processes = max(self.peak_processes, self.processes)

    def usage(self) -> bytes:
        """Give it as JSON."""
        return json.dumps(
            {
                "wall_seconds": time.monotonic() - self.began,
                "cpu_seconds": self.cpu,
                "peak_memory_bytes": self.peak_memory,
                "peak_processes": self.peak_processes,
                "disk_bytes": self.disk,
                "inodes": self.inodes,
                "output_bytes": self.output,
            }
        ).encode()

    def _process(self, name: str) -> tuple[int, float]:
        with open(f"/proc/{name}/stat", "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
        return max(1, int(fields[17])), (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def _memory(self, name: str) -> int:
        kib = {}
        with open(f"/proc/{name}/status", "rb") as file:
            for line in file:
                key, _, value = line.partition(b":")
                if key in {b"RssAnon", b"RssShmem", b"VmRSS"}:
                    kib[key] = int(value.split()[0])
        if b"RssAnon" in kib:
            return 1024 * (kib[b"RssAnon"] + kib.get(b"RssShmem", 0))
        # gVisor does not tell them apart.
        return 1024 * kib.get(b"VmRSS", 0)

    def _files(self) -> tuple[int, int]:
        seen = os.statvfs(self.workspace)
        return (seen.f_blocks - seen.f_bfree) * seen.f_frsize, seen.f_files - seen.f_ffree


def over(watch: Watch, limits: dict[str, Any]) -> tuple[str, str]:
    """Say which limit is passed; empty strings when none is."""
    wall = time.monotonic() - watch.began
    for status, used, name in (
        ("timeout", wall, "wall_seconds"),
        ("cpu", watch.cpu, "cpu_seconds"),
        ("memory", watch.memory, "memory_bytes"),
        ("processes", watch.processes, "processes"),
        ("disk", watch.disk, "disk_bytes"),
        ("inodes", watch.inodes, "inodes"),
    ):
        # A full disk refuses the next byte: it never shows more than the limit.
        if used > limits[name]:
            return status, f"{name}: it used {used:g}, {limits[name]:g} are allowed"
    return "", ""


def start(inputs: str, workspace: str, job: dict[str, Any]) -> tuple[int, int, int]:
    """Start the code; gives its process and the reading ends of its streams."""
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    source = os.open(f"{inputs}/stdin", os.O_RDONLY)
    pid = os.fork()
    if pid == 0:
        try:
            become(workspace, job, inputs, (source, out_write, err_write))
        except BaseException as error:  # noqa: BLE001 - a child that cannot become the code must end
            os.write(err_write, f"set-up failed: {error}\n".encode())
        os._exit(126)
    for descriptor in (source, out_write, err_write):
        os.close(descriptor)
    return pid, out_read, err_read


def become(workspace: str, job: dict[str, Any], inputs: str, streams: tuple[int, int, int]) -> NoReturn:
    """Turn this process into the code; every step must succeed."""
    limits = job["limits"]
    os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(3, 4096)
    cpu = int(limits["cpu_seconds"]) + 1
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        # The runner has the same uid.
        (resource.RLIMIT_NPROC, limits["processes"] + 1),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
    ):
        resource.setrlimit(kind, (value, value))
    os.chdir(workspace)
    environment = {"PATH": "/usr/bin:/bin", "HOME": workspace, "LANG": "C.UTF-8", "TMPDIR": workspace}
    command = [*COMMANDS[job["language"]], f"{inputs}/source", *job["arguments"]]
    os.execve(command[0], command, environment | dict(job["environment"]))  # noqa: S606 - this is what it is for


def unpack(packed: bytes, workspace: str) -> None:
    """Lay the service's files into the empty workspace."""
    with tarfile.open(fileobj=io.BytesIO(zlib.decompress(packed))) as archive:
        for member in archive:
            path = f"{workspace}/{member.name}"
            if member.isdir():
                os.makedirs(path, exist_ok=True)
            elif member.isreg():
                os.makedirs(os.path.dirname(path), exist_ok=True)
                content = archive.extractfile(member)
                with open(path, "xb") as file:
                    file.write(content.read() if content is not None else b"")
                os.chmod(path, member.mode & 0o777)


def pack(workspace: str, limit: int) -> bytes | None:
    """Pack the workspace's plain files and directories; None when they are more than `limit` bytes."""
    buffer, total, open_ends = io.BytesIO(), 0, [""]
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        while open_ends:
            folder = open_ends.pop()
            for name in sorted(os.listdir(f"{workspace}/{folder}")):
                path = f"{folder}/{name}".lstrip("/")
                seen = os.lstat(f"{workspace}/{path}")
                member = tarfile.TarInfo(path)
                member.mode, member.mtime = stat.S_IMODE(seen.st_mode) & 0o777, int(seen.st_mtime)
                if stat.S_ISDIR(seen.st_mode):
                    member.type = tarfile.DIRTYPE
                    archive.addfile(member)
                    open_ends.append(path)
                elif stat.S_ISREG(seen.st_mode) and seen.st_nlink == 1:
                    total += seen.st_size
                    if total > limit:
                        return None
                    member.size = seen.st_size
                    with open(f"{workspace}/{path}", "rb") as file:
                        archive.addfile(member, file)
    packed = zlib.compress(buffer.getvalue(), 6)
    return packed if len(packed) <= limit else None


def reap(main: int, watch: Watch) -> int | None:
    """Collect the dead; gives the code's own wait status once it is among them."""
    status = None
    while True:
        try:
            pid, code, _ = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            break
        if pid == main:
            status = code
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    watch.dead_cpu = used.ru_utime + used.ru_stime
    watch.cpu = max(watch.cpu, watch.dead_cpu)
    return status


def end_all(watch: Watch) -> None:
    """Kill everything but this process, until nothing is left."""
    while True:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            break
        reap(0, watch)
        time.sleep(0.001)
    reap(0, watch)


class Streams:
    """Passes the two streams on, as far as they are allowed."""

    def __init__(self, out: int, err: int, watch: Watch, limit: int) -> None:
        self.selector = selectors.DefaultSelector()
        for descriptor, kind in ((out, "out"), (err, "err")):
            os.set_blocking(descriptor, False)
            self.selector.register(descriptor, selectors.EVENT_READ, kind)
        self.watch, self.left, self.truncated = watch, limit, False

    def pump(self, seconds: float) -> bool:
        """Pass on what is there, waiting for it at most so long; says whether anything was."""
        ready = self.selector.select(seconds) if self.selector.get_map() else []
        for key, _ in ready:
            try:
                data = os.read(key.fd, PIECE_BYTES)
            except BlockingIOError:
                continue
            if not data:
                self.selector.unregister(key.fd)
                continue
            self.watch.output += len(data)
            self.truncated = self.truncated or len(data) > self.left
            if self.left:
                frame(key.data, data[: self.left])
                self.left -= len(data[: self.left])
        return bool(ready)


def hold(pid: int, streams: Streams, watch: Watch, limits: dict[str, Any]) -> tuple[str, str, int | None]:
    """Watch the code until it ends or passes a limit; gives status, reason and its wait status."""
    next_look, next_sample = 0.0, watch.began + SAMPLE_SECONDS
    while True:
        streams.pump(TICK_SECONDS)
        if streams.truncated:
            return "output", f"it wrote more than {limits['output_bytes']} bytes", None
        now = time.monotonic()
        if now >= next_look:
            next_look = now + TICK_SECONDS
            watch.look()
            status, reason = over(watch, limits)
            if status:
                return status, reason, None
        if now >= next_sample:
            next_sample = now + SAMPLE_SECONDS
            frame("use", watch.usage())
        code = reap(pid, watch)
        if code is not None:
            return "", "", code


def judged(status: str, reason: str, code: int | None) -> dict[str, Any]:
    """Say how it ended."""
    if code is None:
        return {"status": status, "reason": reason, "exit_code": None, "signal": None}
    if os.WIFEXITED(code):
        left = os.WEXITSTATUS(code)
        words = f"exit code {left}" if left else ""
        return {"status": "error" if left else "ok", "reason": words, "exit_code": left, "signal": None}
    number = os.WTERMSIG(code)
    status = "cpu" if number == signal.SIGXCPU else "error"
    return {"status": status, "reason": f"ended by signal {number}", "exit_code": None, "signal": number}


def run(inputs: str, workspace: str) -> None:
    """Run the job from its first to its last frame."""
    with open(f"{inputs}/job.json", "rb") as file:
        job = json.load(file)
    with open(f"{inputs}/files", "rb") as file:
        packed = file.read()
    watch = Watch(workspace)
    if packed:
        unpack(packed, workspace)
    pid, out, err = start(inputs, workspace, job)
    streams = Streams(out, err, watch, job["limits"]["output_bytes"])
    status, reason, code = hold(pid, streams, watch, job["limits"])
    watch.look()
    end_all(watch)
    while streams.pump(0):
        pass
    try:
        result = pack(workspace, job["result_bytes"])
    except OSError:
        # A tree too deep to name, for one.
        result = None
    for offset in range(0, len(result or b""), PIECE_BYTES):
        frame("tar", (result or b"")[offset : offset + PIECE_BYTES])
    last = judged(status, reason, code)
    last |= {
        "truncated": streams.truncated,
        "files_complete": result is not None,
        "usage": json.loads(watch.usage()),
    }
    frame("end", json.dumps(last).encode())


def main() -> int:
    """Refuse to run anywhere but as process 1: the last kill would reach processes of others."""
    if os.getpid() != 1:
        os.write(2, b"the runner must be process 1 of its own pid namespace\n")
        return 78
    # Neither the code nor a core dump reads this process.
    if ctypes.CDLL(None, use_errno=True).prctl(4, 0, 0, 0, 0) != 0:
        os.write(2, f"prctl: {errno.errorcode.get(ctypes.get_errno(), '?')}\n".encode())
        return 78
    run(sys.argv[1], sys.argv[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
