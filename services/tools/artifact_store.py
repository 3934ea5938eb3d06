"""Where the artifacts of ended runs lie: a directory per run, "0", "1" and so on in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.tools.files.artifacts import Caps, collect
from services.tools.files.beneath import closing, open_directory, open_regular
from services.tools.files.content import pieces
from services.tools.files.failures import explained
from services.tools.files.model import Collected
from services.tools.files.paths import Pattern
from services.tools.files.private_directory import PrivateDirectory
from services.tools.threads import in_thread


class ArtifactStore:
    """The files; whose they are is the book's to say. `number` is a run's 32 hexadecimal digits."""

    def __init__(self, directory: PrivateDirectory) -> None:
        self._directory = directory

    async def clear(self) -> None:
        """Delete everything."""
        for number in self._directory.numbers():
            self._directory.discard(number)
        await self.free()

    def close(self) -> None:
        """Give the directory up."""
        self._directory.close()

    async def collect(
        self,
        number: str,
        workspace: int,
        *,
        run: str,
        patterns: Sequence[Pattern],
        known: Mapping[str, bytes],
        caps: Caps,
    ) -> Collected:
        """Copy what a run left into a directory of its own."""
        with explained("the artifacts' store"):
            self._directory.make(number.encode())

        def work() -> Collected:
            with closing(open_directory(self._directory.descriptor, number.encode())) as store:
                return collect(workspace, store, run=run, patterns=patterns, known=known, caps=caps)

        return await in_thread(work)

    async def read(self, number: str, artifact: str, *, offset: int, most: int) -> bytes:
        """A part of one artifact."""

        def work() -> bytes:
            with explained(artifact):
                descriptor, _ = open_regular(self._directory.descriptor, f"{number}/{artifact}".encode())
            with closing(descriptor):
                return b"".join(pieces(descriptor, offset=offset, most=most))

        return await in_thread(work)

    def discard(self, number: str) -> None:
        """Take a run's artifacts away at once, where there are some; `free` frees their space."""
        if self._directory.has(number.encode()):
            self._directory.discard(number)

    async def free(self) -> None:
        """Delete what was discarded."""
        await in_thread(self._directory.empty_trash)
