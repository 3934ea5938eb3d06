"""KALA's services: one folder, one process, one image each; they meet only over their contracts."""

from __future__ import annotations

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
# onnxruntime (since 1.29) sends its maker a device id and the model's digests unless this is set when it is first imported.
# Nothing leaves a machine of KALA's users unasked, so no environment may say otherwise.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


class _WithoutRich:
    """Tells libraries that load rich, some 6 MiB, only for pretty tracebacks and a command line that it is not installed.

    No service prints either. Whoever else imports rich gets it.
    """

    importers: Final = ("structlog.dev", "httpx._main")

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        """Find nothing; raise ModuleNotFoundError where one of the importers asks for rich."""
        if name == "rich" and any(map(_is_being_imported, self.importers)):
            raise ModuleNotFoundError("rich is left out here, for memory", name=name)


def _is_being_imported(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return getattr(spec, "_initializing", False)


sys.meta_path.insert(0, _WithoutRich())
