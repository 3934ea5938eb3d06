"""Free TCP ports on this machine."""

from __future__ import annotations

import socket
from typing import Final

DEFAULT_GATEWAY_PORT: Final = 8800
LOOPBACK: Final = "127.0.0.1"


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(preferred: int, host: str = LOOPBACK, *, taken: frozenset[int] = frozenset()) -> int:
    """The preferred port, or any other free one when somebody has it or it is 0.

    The port is free when asked, not held: whoever binds it must still be ready to fail.
    """
    if preferred and preferred not in taken and is_free(preferred, host):
        return preferred
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port
