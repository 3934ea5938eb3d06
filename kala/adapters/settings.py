"""Where LM Studio is and how long to wait for it, by the names that RFC-080 and the seeds give; the one place that reads them.

Environment variables win over `.env` in the working directory. Two names of one setting with different values are an
error, as in every part of KALA.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kala.errors import InvalidArgumentError

DEFAULT_BASE_URL: Final = "http://localhost:1234/v1"
DEFAULT_TIMEOUT_SECONDS: Final = 30
"""RFC-080 section 1."""

ENV_FILE: Final = ".env"

URL_NAMES: Final = ("LM_STUDIO_BASE_URL", "LMSTUDIO_API_URL", "LMSTUDIO_HOST", "KALA_INFERENCE_LMSTUDIO_URL")
MODEL_NAMES: Final = ("LM_STUDIO_MODEL", "LMSTUDIO_MODEL", "KALA_INFERENCE_LMSTUDIO_MODEL")
TIMEOUT_NAMES: Final = ("LM_STUDIO_TIMEOUT_SECONDS", "KALA_INFERENCE_LMSTUDIO_TIMEOUT_SECONDS")
SWITCH_NAMES: Final = ("USE_LM_STUDIO", "LMSTUDIO_ENABLED", "KALA_INFERENCE_LMSTUDIO_ENABLED")
KEY_NAME: Final = "KALA_INFERENCE_LMSTUDIO_API_KEY"

_SWITCHES: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


@dataclass(frozen=True, slots=True)
class LMStudioSettings:
    """What the environment says about LM Studio."""

    base_url: str = DEFAULT_BASE_URL
    is_url_named: bool = False
    """Whether somebody named the URL; the usual one is a guess."""
    model: str | None = None
    timeout_seconds: int = DEFAULT_TIMEOUT_SECONDS
    is_enabled: bool = True


def lm_studio_settings(
    environ: Mapping[str, str] | None = None, *, cwd: Path | None = None
) -> LMStudioSettings:
    """Read them all; InvalidArgumentError names the variable at fault."""
    named = Named(environ, cwd=cwd)
    url = named.value(URL_NAMES)
    return LMStudioSettings(
        base_url=url or DEFAULT_BASE_URL,
        is_url_named=url is not None,
        model=named.value(MODEL_NAMES),
        timeout_seconds=_seconds(named.value(TIMEOUT_NAMES)),
        is_enabled=_switch(named.value(SWITCH_NAMES)),
    )


def get_lm_studio_base_url() -> str | None:
    """Give the base URL, RFC-080's default where none is set."""
    return lm_studio_settings().base_url


def get_lm_studio_model() -> str | None:
    """Give the configured model; None means that LM Studio is not eligible by RFC-080's rules."""
    return lm_studio_settings().model


def get_lm_studio_timeout() -> int:
    """Give the longest wait for an answer, in whole seconds."""
    return lm_studio_settings().timeout_seconds


class Named:
    """The variables of the environment over those of `.env`, looked up by any of their names."""

    def __init__(self, environ: Mapping[str, str] | None = None, *, cwd: Path | None = None) -> None:
        self._layers = (
            os.environ if environ is None else environ,
            read_env_file((cwd or Path.cwd()) / ENV_FILE),
        )

    def value(self, names: tuple[str, ...]) -> str | None:
        """Give the value from the first layer that has one; InvalidArgumentError where its names disagree."""
        for layer in self._layers:
            found = {name: layer[name].strip() for name in names if layer.get(name, "").strip()}
            if len(set(found.values())) > 1:
                raise InvalidArgumentError(
                    " and ".join(found), "name one setting with different values; set one of them"
                )
            if found:
                return next(iter(found.values()))
        return None


def read_env_file(path: Path) -> dict[str, str]:
    """Give the assignments of a `.env` file, without interpolation; a file that cannot be read holds none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    values: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.strip().removeprefix("export ").partition("=")
        if separator and not name.lstrip().startswith("#"):
            values[name.strip()] = _unquoted(value.strip())
    return values


def _unquoted(value: str) -> str:
    if value[:1] in {'"', "'"} and value[-1:] == value[:1] and len(value) > 1:
        return value[1:-1]
    return value.partition(" #")[0].rstrip()


def _seconds(text: str | None) -> int:
    if text is None:
        return DEFAULT_TIMEOUT_SECONDS
    try:
        seconds = int(float(text))
    except (ValueError, OverflowError):
        seconds = 0
    if seconds < 1:
        raise InvalidArgumentError(TIMEOUT_NAMES[0], f"must be at least 1 second, not {text!r}")
    return seconds


def _switch(text: str | None) -> bool:
    if text is None:
        return True
    if text.lower() not in _SWITCHES:
        raise InvalidArgumentError(SWITCH_NAMES[0], f"must be 0 or 1, not {text!r}")
    return _SWITCHES[text.lower()]
