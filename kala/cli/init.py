"""`kala init`: asks where LM Studio is and writes the answer into `.env`, which every part of a suite reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from kala.adapters.settings import DEFAULT_BASE_URL, ENV_FILE, MODEL_NAMES, SWITCH_NAMES, URL_NAMES
from kala.cli.output import note, show
from kala.core.places import place
from kala.env_file import with_setting
from kala.errors import FailedPreconditionError, InvalidArgumentError

NONE: Final = "none"
PRIVATE_MODE: Final = 0o600
"""The file may hold API keys."""


def init(
    *,
    lm_studio_url: Annotated[
        str | None,
        typer.Option(
            help=f"LM Studio's server, or {NONE} to do without. Default: asked for.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model to ask for. Default: the one that is loaded.", show_default=False),
    ] = None,
) -> None:
    """Write where LM Studio is into .env in this directory, and keep what else is there."""
    url = lm_studio_url or _ask()
    path = Path.cwd() / ENV_FILE
    text = _read(path)
    if url == NONE:
        text = with_setting(text, SWITCH_NAMES, "0")
    else:
        text = with_setting(text, URL_NAMES, _checked(url))
        text = with_setting(text, SWITCH_NAMES, "1")
    if model is not None:
        text = with_setting(text, MODEL_NAMES, model)
    _write(path, text)
    show(f"wrote {path}")
    note(
        "start the suite here with `kala up`"
        + ("" if url == NONE else "; `kala health lm` then says whether LM Studio works")
    )


def _ask() -> str:
    question = f"LM Studio's server URL ({NONE} to do without)"
    return str(typer.prompt(question, default=DEFAULT_BASE_URL, err=True))


def _checked(url: str) -> str:
    url = url if "://" in url else f"http://{url}"
    host, _port = place(url)
    if urlsplit(url).scheme not in {"http", "https"} or not host:
        raise InvalidArgumentError("--lm-studio-url", f"must look like {DEFAULT_BASE_URL}, not {url!r}")
    return url


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPreconditionError(f"{path} cannot be read as text; mend it or move it away") from error


def _write(path: Path, text: str) -> None:
    """Replace the file in one step; a new one is private, one that was there keeps its mode."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else PRIVATE_MODE
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FailedPreconditionError(
            f"{path} cannot be written ({error.strerror}); choose another directory"
        ) from error
