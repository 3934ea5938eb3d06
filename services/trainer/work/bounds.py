"""What keeps a work process within bounds: its folder is its own, it ends with the service, it takes no more than it may."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError
from services.trainer.work.order import Order

LOCK: Final = "lock"
LIFELINE: Final = "KALA_TRAINER_LIFELINE"
"""Names the descriptor whose end says that the service is gone; set by the local executor alone."""

HOLD_SECONDS: Final = 30.0
"""How long a new process waits for one that is just ending."""

FAREWELL_SECONDS: Final = 20.0
"""From SIGTERM to the end, when the service is gone: time for a last checkpoint."""


@contextmanager
def hold_folder(folder: Path, *, wait_seconds: float = HOLD_SECONDS) -> Iterator[None]:
    """Be the only process that works in this folder; raises FailedPreconditionError when another one is."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, folder, time.monotonic() + wait_seconds)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder_of(folder: Path) -> int | None:
    """The process that works in this folder now; None when none does."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 20, 0).decode("ascii", "replace")
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)
    return None


def watch_lifeline() -> None:
    """End this process when the service that started it has gone: it will begin again from the last checkpoint."""
    number = os.environ.pop(LIFELINE, "")
    if number.isdigit():
        threading.Thread(target=_end_after, args=(int(number),), name="lifeline", daemon=True).start()


def apply_bounds(order: Order) -> None:
    """Take no more than the order allows; called before anything heavy is imported."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if order.memory_bytes:
        # Of data, not of addresses: torch and CUDA reserve far more addresses than they use.
        resource.setrlimit(resource.RLIMIT_DATA, (order.memory_bytes, order.memory_bytes))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(order.threads)


def _end_after(descriptor: int) -> None:
    with suppress(OSError):
        while os.read(descriptor, 1):
            pass
    # Nobody reads the outputs any more: a word of farewell would only fail.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(FAREWELL_SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _lock(descriptor: int, folder: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise FailedPreconditionError(
                    f"{folder}: another process still works here; end it, or wait", reason="FOLDER_IN_USE"
                ) from None
            time.sleep(0.05)
        else:
            return
