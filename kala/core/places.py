"""Whether two base URLs mean one place."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from kala.errors import InvalidArgumentError

LOOPBACK: Final = "127.0.0.1"


def place(url: str) -> tuple[str, int | None]:
    """Host and port of a base URL; `localhost` and 127.0.0.1 are one place. InvalidArgumentError for what is no URL."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidArgumentError("url", f"must look like http://127.0.0.1:1234/v1, not {url!r}") from error
    return (LOOPBACK if host in {"localhost", "::1"} else host, port)
