"""Pulls a model without a suite, in a process of this machine: `python -m services.inference.pull`, of which nothing is imported here."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final

from kala import errors
from kala.errors import FailedPreconditionError, InternalError, InvalidArgumentError, KalaError

MODULE: Final = "services.inference.pull"

ENDING_SECONDS: Final = 10.0
"""It removes the half of a file and ends; a slow disk needs a moment for that."""

# Any: JSON of another process.
Json = dict[str, Any]


def command_of(source: str, *, revision: str = "") -> list[str]:
    """The process that pulls one source; flags of inference's settings may follow."""
    # Joined by `=`, so that no value is ever read as an option.
    return [sys.executable, "-m", MODULE, *([f"--revision={revision}"] if revision else []), "--", source]


def read_line(line: bytes) -> Json:
    """Read one line of the process; raises the KalaError that it reports."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise InternalError("the process that pulls said something that is no JSON object")
    if "error" in message:
        raise _error_of(message["error"])
    return message


def pull_offline(source: str, *, revision: str = "", to: Path | None = None) -> Generator[Json]:
    """Give the progress of a pull as the gateway writes it; closing it stops the process, which leaves no half of a file."""
    if importlib.util.find_spec("services") is None:
        raise FailedPreconditionError("pulling models needs pip install 'kala-suite[inference-pythia]'")
    command = command_of(source, revision=revision)
    if to is not None:
        command[-2:-2] = [f"--models-dir={to.expanduser().absolute()}"]
    with subprocess.Popen(  # noqa: S603 - this interpreter, our own module, arguments that are no options
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        try:
            for line in process.stdout or ():
                message = read_line(line)
                yield {**message, "files": [_as_gateway(file) for file in message.get("files") or ()]}
        finally:
            _end(process)
    if process.returncode not in {0, None} and process.returncode > 0:
        raise InternalError(f"the process that pulls ended with status {process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _as_gateway(file: Mapping[str, Any]) -> Json:
    """The JSON of a ContentReference: bytes are base64."""
    digest = bytes.fromhex(str(file.get("sha256") or ""))
    return {**file, "sha256": base64.b64encode(digest).decode()}


def _error_of(told: Mapping[str, Any]) -> KalaError:
    kind = getattr(errors, str(told.get("kind")), None)
    message, reason = str(told.get("message")), str(told.get("reason") or "") or None
    if not (isinstance(kind, type) and issubclass(kind, KalaError)):
        return InternalError(message)
    if issubclass(kind, InvalidArgumentError):
        field = str(told.get("field") or "")
        return InvalidArgumentError(field, message.removeprefix(f"{field}: "), reason=reason)
    return kind(message, reason=reason)
