"""Starts the tools service's programs as the user without rights that they run as: root is refused, and tests often are root."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from kala.suite.runtime_copy import Runtime, runtime_for

UNPRIVILEGED_UID = 65532


@cache
def runtime() -> Runtime:
    """The interpreter that the user without rights may run, with this checkout and its packages."""
    if os.geteuid() != 0:
        return Runtime(Path(sys.executable))
    return runtime_for(UNPRIVILEGED_UID, distribution="kala-suite", extra="tools", module="kala.errors, grpc")


def unprivileged_python() -> list[str]:
    """Command prefix that runs Python as uid 65532, or as this user where that is not root.

    In use: `subprocess.Popen([*unprivileged_python(), "-m", "services.tools", ...])`, without `user=`.
    """
    here = runtime()
    variables = [f"{name}={value}" for name, value in here.environment.items()]
    return [*_switch(), "/usr/bin/env", *variables, str(here.python)]


def unprivileged_subprocess() -> dict[str, Any]:
    """Keywords of `subprocess` that do the same for a program that is not Python."""
    if os.geteuid() != 0:
        return {}
    return {"user": UNPRIVILEGED_UID, "group": UNPRIVILEGED_UID, "extra_groups": []}


@contextmanager
def unprivileged_directory() -> Iterator[Path]:
    """A private directory of that user (pytest's own lie where only root may look)."""
    path = Path(tempfile.mkdtemp(prefix="kala-tools-", dir="/tmp"))
    if os.geteuid() == 0:
        os.chown(path, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _switch() -> list[str]:
    if os.geteuid() != 0:
        return []
    uid = str(UNPRIVILEGED_UID)
    return ["/usr/bin/setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--"]
