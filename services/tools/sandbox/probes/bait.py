"""What the probes try to reach: listeners, a secret file and a process on the host, that tell when they were reached."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_SLEEP: Final = "/usr/bin/sleep"
# Longer than any self-test; the canary ends with the bait.
_CANARY_SECONDS: Final = "3600"
_PENDING: Final = ("SigPnd:", "ShdPnd:")
# PF_EXITING of the kernel's sched.h.
_EXITING: Final = 0x4


@dataclass(slots=True)
class Bait:
    """Things of the host that no run may touch; `words` is what the programs are told of them."""

    words: dict[str, str]
    # Stands in the secret file and in the canary's environment: output that holds it is a leak.
    token: str
    directory: Path
    canary: asyncio.subprocess.Process
    listeners: dict[str, socket.socket]
    hits: set[str] = field(default_factory=set)

    def touched(self) -> str:
        """Say what was reached, in words; empty when nothing was. A hit stays known."""
        self.hits |= {name for name, listener in self.listeners.items() if _was_hit(listener)}
        if self.hits:
            return f"reached from inside: {', '.join(sorted(self.hits))}"
        if how := _end_of(self.canary):
            return f"a process of the host was ended: {how}"
        if (self.directory / "secret").read_text(encoding="ascii") != self.token:
            return "a file of the host was changed"
        names = {path.name for path in self.directory.iterdir()} - {"secret", "listener"}
        return f"a file was made on the host: {min(names)}" if names else ""


def _was_hit(listener: socket.socket) -> bool:
    """Look at the kernel's own queue, so that no hit waits for its turn in an event loop."""
    try:
        if listener.type is socket.SOCK_DGRAM:
            listener.recv(64)
        else:
            listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def _end_of(child: asyncio.subprocess.Process) -> str:
    """Say how a child is dead or dying, empty when it lives: a signal may still wait for its turn on a busy machine."""
    pid = child.pid
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        flags = int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[6])
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError as error:
        # Reaped already: a negative status is the signal that ended it.
        return f"with status {child.returncode} ({error.strerror})"
    if ended is not None:
        return f"by {'signal' if ended.si_code != os.CLD_EXITED else 'status'} {ended.si_status}"
    pending = [line.split() for line in status.splitlines() if line.startswith(_PENDING)]
    if found := [f"{name} {mask}" for name, mask in pending if int(mask, 16)]:
        return f"a signal waits for it, {', '.join(found)}"
    return "it is exiting" if flags & _EXITING else ""


@asynccontextmanager
async def bait(*, host: str = "127.0.0.1") -> AsyncIterator[Bait]:
    """Lay out the bait; `host` is an address of this machine that a run could reach if it had a network."""
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kala-bait-")))
        token = f"kala-bait-{secrets.token_hex(12)}"
        listeners, where = _listeners(stack, host=host, directory=directory)
        canary = await asyncio.create_subprocess_exec(
            _SLEEP, _CANARY_SECONDS, env={"KALA_CANARY": token}, stdin=asyncio.subprocess.DEVNULL
        )
        stack.push_async_callback(_end, canary)
        words = {
            **where,
            "secret_path": _secret(directory, token),
            "directory": str(directory),
            "host": host,
            "canary_pid": str(canary.pid),
            "kernel_release": os.uname().release,
            # A process may give itself a name of at most fifteen bytes.
            "survivor_name": f"k{secrets.token_hex(7)}",
        }
        yield Bait(words, token, directory, canary, listeners)


def _secret(directory: Path, token: str) -> str:
    # Nothing but the sandbox may be what keeps a run from it: its mode lets everybody read.
    directory.chmod(0o755)
    secret = directory / "secret"
    secret.write_text(token, encoding="ascii")
    secret.chmod(0o644)
    return str(secret)


def _listeners(
    stack: contextlib.AsyncExitStack, *, host: str, directory: Path
) -> tuple[dict[str, socket.socket], dict[str, str]]:
    def listen(family: int, kind: int, address: object) -> socket.socket:
        listener = stack.enter_context(socket.socket(family, kind))
        listener.setblocking(False)
        listener.bind(address)  # type: ignore[arg-type]  # an address is whatever its family says
        if kind == socket.SOCK_STREAM:
            listener.listen()
        return listener

    abstract_name, path = f"kala-{secrets.token_hex(8)}", directory / "listener"
    tcp = listen(socket.AF_INET, socket.SOCK_STREAM, (host, 0))
    udp = listen(socket.AF_INET, socket.SOCK_DGRAM, (host, 0))
    listeners = {
        "a TCP port": tcp,
        "a UDP port": udp,
        "an abstract socket": listen(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + abstract_name),
        "a socket file": listen(socket.AF_UNIX, socket.SOCK_STREAM, str(path)),
    }
    path.chmod(0o777)
    where = {
        "tcp_port": str(tcp.getsockname()[1]),
        "udp_port": str(udp.getsockname()[1]),
        "abstract_name": abstract_name,
        "socket_path": str(path),
    }
    return listeners, where


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def survivors(name: str) -> list[int]:
    """Give the processes of this machine that call themselves `name`."""
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208 - no Path is needed
        if not entry.isdigit():
            continue
        # A process may end between the two looks.
        with contextlib.suppress(OSError):
            if Path(f"/proc/{entry}/comm").read_text(encoding="utf-8", errors="replace").strip() == name:
                found.append(int(entry))
    return found
