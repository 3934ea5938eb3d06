"""KALA's services: one folder, one process, one image each; they meet only over their contracts."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

GRPC_EXPERIMENTS: Final = "-event_engine_client,-event_engine_listener"
"""Have gRPC poll its sockets in the thread that waits for its events, and not in a pool that wakes that thread.

An RPC then takes about half the time and CPU on both sides, with 13 context switches in place of 30 (docs/performance.md).
"""

# gRPC reads both when it is first imported, and this package is imported before.
os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
# uvloop forks to start a program, and beside gRPC's threads its handlers around a fork crash some of these children (3 in 100,
# measured) before they become the program. No service goes on as a fork of itself, so none needs them.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def _import_structlog() -> None:
    """Import structlog as where rich is not installed: it would load rich for tracebacks that no service prints, 6 MiB."""
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    # None means that there is no such module (docs.python.org, import system, the module cache).
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        with contextlib.suppress(ImportError):
            import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]


_import_structlog()
