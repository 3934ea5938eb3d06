"""Base URLs of model servers: one normal form, and the addresses that no model server may have.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from kala.errors import InvalidArgumentError

_API_SUFFIXES: Final = ("/v1/chat/completions", "/v1/embeddings", "/api/v1", "/api/v0", "/v1", "/api")
"""What users paste behind the server's own address; each request path brings its own."""

_FORBIDDEN_NETWORKS: Final = tuple(
    ip_network(text)
    for text in (
        "169.254.0.0/16",  # IPv4 link-local (RFC 3927) with the metadata services of most clouds
        "fe80::/10",  # IPv6 link-local (RFC 4291 section 2.5.6)
        "fd00:ec2::/32",  # AWS: instance metadata over IPv6
        "100.100.100.200/32",  # Alibaba Cloud: metadata
        "192.0.0.192/32",  # Oracle Cloud: metadata
        "168.63.129.16/32",  # Azure: host agent
        "224.0.0.0/4",
        "ff00::/8",
        "255.255.255.255/32",
    )
)
"""A request to one of these reaches a machine's credentials or nobody, never a model server."""


@dataclass(frozen=True, slots=True)
class BaseUrl:
    """Scheme, host, port and path prefix of a server, without credentials and without a trailing slash."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @property
    def is_tls(self) -> bool:
        return self.scheme == "https"

    @property
    def endpoint(self) -> tuple[str, int]:
        """Who answers there; the spellings of this machine count as one."""
        return ("127.0.0.1" if self.host in {"localhost", "::1"} else self.host, self.port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"


def parse_base_url(text: str, *, field: str = "url", default_port: int | None = None) -> BaseUrl:
    """Read `http://host:1234/v1`, `host:1234` or `host`; raises InvalidArgumentError that names `field`.

    Refuses other schemes, credentials in the URL, link-local and metadata addresses.  Names are not resolved here:
    `is_forbidden` is asked again about every address that one resolves to.
    """
    text = text.strip()
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        raise InvalidArgumentError(field, "is not a URL such as http://127.0.0.1:1234") from None
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme not in {"http", "https"} or not host:
        raise InvalidArgumentError(field, "must be an http or https URL such as http://127.0.0.1:1234")
    if parts.username is not None or parts.password is not None:
        raise InvalidArgumentError(field, "must hold no credentials; use the api_key setting")
    if parts.query or parts.fragment:
        raise InvalidArgumentError(field, "must have no query and no fragment")
    host = _checked_host(host, field)
    return BaseUrl(
        parts.scheme, host, port or default_port or _default_port(parts.scheme), _prefix(parts.path)
    )


def is_forbidden(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether an address is link-local, a metadata service, multicast or broadcast; mapped IPv4 is unwrapped."""
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address.sixtofour or address
    return any(address in network for network in _FORBIDDEN_NETWORKS if network.version == address.version)


def is_forbidden_text(host: str) -> bool:
    """Tell the same of a textual address; a name that is no address is not forbidden yet."""
    try:
        return is_forbidden(ip_address(host.partition("%")[0]))
    except ValueError:
        return False


def _checked_host(host: str, field: str) -> str:
    if is_forbidden_text(host):
        raise InvalidArgumentError(
            field, f"{host} is a link-local, metadata or multicast address; no model server may be there"
        )
    if host.replace(".", "").isdigit() and not _is_address(host):
        # 2852039166 and 169.254.43518 are 169.254.169.254 to the system, and no name that would be looked at when it resolves.
        raise InvalidArgumentError(field, f"{host} is no address; write one as in 127.0.0.1, or a name")
    # A server told to listen everywhere is reached at this machine's own address (OLLAMA_HOST=0.0.0.0 is common).
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - recognised, not bound


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _prefix(path: str) -> str:
    path = path.rstrip("/")
    for suffix in _API_SUFFIXES:
        if path.endswith(suffix):
            return path.removesuffix(suffix)
    return path


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
