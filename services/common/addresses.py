"""Where a service listens or is found: a unix socket or a TCP host and port.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from kala.errors import InvalidArgumentError

UNIX_PREFIX: Final = "unix:"

MAX_UNIX_PATH_BYTES: Final = 107
"""sockaddr_un.sun_path holds 108 bytes with its closing NUL (unix(7)); a longer path cannot be bound."""

MAX_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system; only processes that may enter its directory reach it."""

    path: str

    is_local: Final = True

    def __str__(self) -> str:
        return f"{UNIX_PREFIX}{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host name or IP address without brackets, and a port; port 0 means any free one."""

    host: str
    port: int

    @property
    def is_local(self) -> bool:
        """Tell whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_address(text: str, *, field: str = "address") -> Address:
    """Read `unix:/path`, `host:port` or `[ipv6]:port`; raises InvalidArgumentError that names `field`."""
    if text.startswith(UNIX_PREFIX):
        return _unix_address(text.removeprefix(UNIX_PREFIX), field)
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise InvalidArgumentError(
            field, f"write an IPv6 address in brackets, as in [::1]:50051, not {text!r}"
        )
    if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > MAX_PORT:
        raise InvalidArgumentError(
            field, f"must be unix:/path or host:port with a port up to {MAX_PORT}, not {text!r}"
        )
    return TcpAddress(host, int(port))


def _unix_address(path: str, field: str) -> UnixAddress:
    # gRPC also reads unix:///path; one spelling in our own values keeps comparisons honest.
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path.startswith("/"):
        raise InvalidArgumentError(field, f"the socket's path must be absolute, not {path!r}")
    if len(path.encode()) > MAX_UNIX_PATH_BYTES:
        raise InvalidArgumentError(
            field, f"the socket's path is longer than {MAX_UNIX_PATH_BYTES} bytes: {path}"
        )
    return UnixAddress(path)
