"""One run's turn in a workspace: what it is given, and what comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence

from kala.errors import CancelledError
from services.tools.files.copying import CopiedIn, copy_in, require_references, take_back
from services.tools.files.model import Changes, Reference, Workspace
from services.tools.files.volume import Volume
from services.tools.files.workspace_files import WorkspaceFiles
from services.tools.sandbox.model import Prepare
from services.tools.threads import in_thread


class Turn:
    """Valid while the context that gave it is open; no other run of the workspace has one meanwhile."""

    def __init__(
        self, *, volume: Volume, changing: asyncio.Lock, files: WorkspaceFiles, host_directory: str | None
    ) -> None:
        self.files = files
        # Shown read-only to the run, looked at again just now; None almost always.
        self.host_directory = host_directory
        self._volume = volume
        self._changing = changing
        self._copied = CopiedIn()
        # A sandbox that is given up may still be preparing in its thread: the descriptors wait for it.
        self._copying = threading.Lock()
        self._over = False

    @property
    def workspace(self) -> Workspace:
        """The workspace as it is now."""
        return self.files.workspace

    @property
    def known(self) -> Mapping[str, bytes]:
        """What the run was given: path to SHA-256. Empty before it was prepared."""
        return self._copied.known

    def prepare(self, references: Sequence[Reference]) -> Prepare:
        """What `Sandbox.start` calls to copy these files in; it raises when one is not what was cleared."""
        require_references("files", references)

        def prepare(directory: int) -> None:
            with self._copying:
                if self._over:
                    raise CancelledError("the run was given up before it began")
                self._copied = copy_in(self._volume, references, directory)

        return prepare

    async def take_back(self, directory: int) -> Changes:
        """Bring the run's changes into the workspace; only after it has ended."""
        async with self._changing:
            return await in_thread(take_back, self._volume, self._copied, directory)

    def end(self) -> None:
        """Wait for what still copies and let nothing begin any more; blocking."""
        with self._copying:
            self._over = True
