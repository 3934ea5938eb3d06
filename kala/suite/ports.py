"""Free TCP ports on this machine, claimed so that two suites that start together never choose the same one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError
from kala.suite.layout import make_private_directory

DEFAULT_GATEWAY_PORT: Final = 8800
LOOPBACK: Final = "127.0.0.1"
MAX_TRIES: Final = 100
"""The kernel hands out free ports at random; a hundred that are all claimed means that something else is wrong."""


@dataclass(slots=True)
class PortClaims:
    """Claims ports until it is closed; the kernel ends the claims of a process that is killed.

    A claim binds only KALA's own suites of this user: another program may still take the port before it is used.
    """

    folder: Path
    _held: ExitStack = field(default_factory=ExitStack)

    def claim(self, preferred: int, host: str = LOOPBACK) -> int:
        """The preferred port, or any other free one when somebody has it or it is 0."""
        if preferred and self._is_claimed_here(preferred, host):
            return preferred
        for _ in range(MAX_TRIES):
            port = _any_free_port(host)
            if self._is_claimed_here(port, host):
                return port
        raise FailedPreconditionError(f"no free port was found on {host}")

    def close(self) -> None:
        """End every claim."""
        self._held.close()

    def _is_claimed_here(self, port: int, host: str) -> bool:
        make_private_directory(self.folder)
        descriptor = os.open(self.folder / f"{port}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        # The claim first, then the look: who looked first could be overtaken in between.
        if not is_free(port, host):
            os.close(descriptor)
            return False
        self._held.callback(os.close, descriptor)
        return True


@contextlib.contextmanager
def port_claims() -> Iterator[PortClaims]:
    """Claims for the length of a `with` block, shared by all suites of this user."""
    claims = PortClaims(Path(f"/tmp/kala-{os.getuid()}-ports"))  # noqa: S108 - made 0700 and its owner is checked
    try:
        yield claims
    finally:
        claims.close()


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _any_free_port(host: str) -> int:
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
