"""What can be told about a sink: where entries go, in which format, from where on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_BATCH_ENTRIES: Final = 5_000
# Half a megabyte of usual entries: one request, one write to disk.
DEFAULT_BATCH_ENTRIES: Final = 500
_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")


class SinkSettings(BaseModel):
    """One sink; its name is the key under which it stands, and names its cursor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # file:///path, http://… or https://…; for otlp the collector's whole path, usually …/v1/logs.
    url: str
    format: Literal["jsonl", "ocsf", "cef", "otlp"] = "jsonl"
    # Where a sink that is new begins; one that is known goes on where it was.
    start: Literal["beginning", "now"] = "beginning"
    # Lines `Name: value` that every request carries, read anew for each: a secret that may be replaced while it runs.
    header_file: Path | None = None
    batch_entries: int = Field(default=DEFAULT_BATCH_ENTRIES, ge=1, le=MAX_BATCH_ENTRIES)

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        # No message repeats the URL: it may hold a password.
        try:
            parts = urlsplit(self.url)
            port_is_right = parts.port is None or parts.port > 0
        except ValueError:
            raise ValueError("url is not a URL") from None
        if parts.scheme == "file":
            if parts.netloc or not parts.path.startswith("/") or parts.path.endswith("/"):
                raise ValueError("url must be file:///absolute/path of a file")
            if self.header_file is not None:
                raise ValueError("header_file belongs to http and https")
        elif parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_right:
            raise ValueError("url must begin with file:///, http:// or https:// and name a host")
        return self

    @property
    def path(self) -> Path | None:
        """The file, or None for HTTP."""
        parts = urlsplit(self.url)
        return Path(parts.path) if parts.scheme == "file" else None


def require_sink_names(names: object) -> None:
    """Raises `ValueError` for a name that no label or cursor should hold."""
    for name in names if isinstance(names, dict) else ():
        if not _NAME.fullmatch(str(name)):
            raise ValueError(f"a sink's name must match {_NAME.pattern}")
