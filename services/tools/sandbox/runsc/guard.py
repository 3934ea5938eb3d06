"""Waits in the box for the code, then lets runsc run it; standard library only, and the whole of its own process.

Two processes: the first is the one that the launcher limits, which tells the second, made before that and not limited, what
the limits are. The limits then hold inside gVisor, for the code alone, and not for gVisor's own threads and files.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

# What the plan tells this process is JSON.
Told = dict[str, Any]

LIMITS = ("CPU", "FSIZE", "NOFILE", "CORE", "AS", "NPROC")
# The launcher counts this file's two processes, and the sandbox's first one, to the code's.
OWN_PROCESSES = 2
CODE = 3
# Inside gVisor the code is a file and not a pipe, and the stub's sign of being ready went out already: by language, what in
# the stub is replaced by what. A stub in which one of these is missing is not run.
CHANGES = {
    "python": (
        ("    import posix\n", "    import posix\n    posix.open('/job/code', 0)\n"),
        ('    posix.write(1, b"+")\n', ""),
    ),
    "javascript": (
        ('  fs.writeSync(1, "+");\n', '  const code = fs.openSync("/job/code");\n'),
        ("fs.readSync(3,", "fs.readSync(code,"),
        ("fs.closeSync(3)", "fs.closeSync(code)"),
    ),
    "shell": (("printf +\n", "exec 3</job/code\n"),),
}


def read_all(descriptor: int) -> bytes:
    """Read a pipe to its end."""
    pieces: list[bytes] = []
    while piece := os.read(descriptor, 1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def write_all(path: str, data: bytes) -> None:
    """Write a file that is not there."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    while data:
        data = data[os.write(descriptor, data) :]
    os.close(descriptor)


def changed(told: Told) -> list[str]:
    """Give the stub's command line, changed to read a file."""
    words: str = "\0".join(told["stub"])
    for old, new in CHANGES[told["language"]]:
        if words.count(old) != 1:
            raise ValueError(f"the stub of {told['language']} has no single {old!r}")
        words = words.replace(old, new)
    return words.split("\0")


def become_runsc(told: Told, pipe: int) -> None:
    """Wait for limits and code, write the bundle, and become runsc."""
    received = read_all(pipe)
    if not received:
        os._exit(0)
    header, _, code = received.partition(b"\n")
    bundle = told["bundle"]
    bundle["process"]["args"] = changed(told)
    bundle["process"]["rlimits"] = [
        {"type": f"RLIMIT_{name}", "soft": value, "hard": value} for name, value in json.loads(header).items()
    ]
    write_all("/run/job/code", code)
    # bash reads one line of the code, and the script from the next on.
    write_all("/run/job/main.sh", code.partition(b"\n")[2])
    write_all("/run/bundle/config.json", json.dumps(bundle).encode())
    os.closerange(3, 4096)
    os.execve(told["runsc"][0], told["runsc"], {"PATH": "/usr/bin:/bin", "HOME": "/run"})  # noqa: S606 - no shell is wanted


def own_limits() -> dict[str, int]:
    """Give the limits that were put on this process."""
    found: dict[str, int] = {}
    for name in LIMITS:
        value = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
        if value != resource.RLIM_INFINITY:
            found[name] = max(1, value - OWN_PROCESSES) if name == "NPROC" else value
    return found


def main() -> None:
    """Fork, wait, hand over, and end as the code ends."""
    told = json.loads(sys.argv[1])
    for name in ("job", "bundle", "state"):
        os.mkdir(f"/run/{name}", 0o700)  # noqa: PTH102 - it starts without pathlib
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(writing)
            os.close(CODE)
            become_runsc(told, reading)
        finally:
            os._exit(125)
    os.close(reading)
    os.write(1, b"+")
    code = read_all(CODE)
    # The streams are the code's from here on.
    quiet = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    data = json.dumps(own_limits()).encode() + b"\n" + code if code else b""
    while data:
        data = data[os.write(writing, data) :]
    os.close(writing)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
