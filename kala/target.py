"""Which suite a client talks to: named by its caller, by the environment, or the one that runs on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from kala.suite.layout import StateLayout
from kala.suite.record import running_suite

URL_VARIABLE: Final = "KALA_URL"
KEY_VARIABLE: Final = "KALA_API_KEY"
STATE_VARIABLE: Final = "KALA_STATE"


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway and the key to it."""

    url: str
    """Without a path, e.g. `http://127.0.0.1:8800`."""
    key: str = field(repr=False)


def find_target(
    *,
    url: str | None = None,
    key: str | None = None,
    state: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Target:
    """Find the gateway: `url`, else KALA_URL, else the suite that runs in `state`.

    A `state` that is given wins over KALA_URL. Raises UnavailableError when nothing runs, naming the cure.
    """
    environ = os.environ if environ is None else environ
    key = key or environ.get(KEY_VARIABLE)
    url = url or (None if state is not None else environ.get(URL_VARIABLE))
    if url is not None:
        if not key:
            raise FailedPreconditionError(f"an API key is needed for {url}: pass --key or set {KEY_VARIABLE}")
        return Target(checked_url(url), key)
    layout = StateLayout.at(state or state_from(environ))
    record = running_suite(layout)
    if record is None:
        raise UnavailableError(
            f"no suite runs in {layout.root}: start one with `kala up`, or name one with --url and --key",
            reason="SUITE_NOT_RUNNING",
        )
    return Target(record.gateway_url, key or read_cli_key(layout))


def state_from(environ: Mapping[str, str]) -> Path | None:
    """The state directory that the environment names, if it does."""
    named = environ.get(STATE_VARIABLE)
    return Path(named) if named else None


def read_cli_key(layout: StateLayout) -> str:
    """The key that `kala up` made for this machine's command line; never printed but by `kala up` itself."""
    try:
        return layout.cli_key_file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise FailedPreconditionError(
            f"{layout.cli_key_file} cannot be read ({error.strerror}): pass --key or set {KEY_VARIABLE}"
        ) from error


def checked_url(url: str) -> str:
    """The base of the gateway's URL, without `/v1` and final slashes; InvalidArgumentError for what is no HTTP URL."""
    base = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    scheme, separator, rest = base.partition("://")
    if not separator or scheme not in {"http", "https"} or not rest or " " in base:
        raise InvalidArgumentError("url", f"must look like http://127.0.0.1:8800, not {url!r}")
    return base
