"""One suite per state directory: an advisory lock that the kernel releases however its holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from kala.errors import AlreadyExistsError
from kala.suite.layout import StateLayout


class SuiteRunningError(AlreadyExistsError):
    """Another supervisor holds this state directory."""

    default_reason = "SUITE_RUNNING"


@contextlib.contextmanager
def suite_lock(layout: StateLayout) -> Iterator[None]:
    """Hold the state directory; SuiteRunningError when somebody else does."""
    descriptor = os.open(layout.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SuiteRunningError(f"a suite is running in {layout.root}") from None
        yield
    finally:
        os.close(descriptor)


def is_locked(layout: StateLayout) -> bool:
    """Whether a supervisor holds this state directory now."""
    try:
        with suite_lock(layout):
            return False
    except SuiteRunningError:
        return True
    except FileNotFoundError:
        return False
