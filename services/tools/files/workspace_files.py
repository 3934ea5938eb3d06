"""The file operations of one open workspace, for the RPCs and for the `filesystem` tool."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from services.common.page_tokens import page_size_of
from services.tools.files.model import FileInfo, FilePart, Reference, Removed, Workspace, WriteMode, Written
from services.tools.files.paths import require_path
from services.tools.files.tree import Entry
from services.tools.files.volume import Volume
from services.tools.pages import PageTokens
from services.tools.threads import in_thread

DEFAULT_PAGE: Final = 1_000
MAX_PAGE: Final = 10_000


@dataclass(frozen=True, slots=True)
class FilePage:
    """A page of a listing, by path; the token is empty on the last."""

    files: tuple[FileInfo, ...]
    next_page_token: str


class WorkspaceFiles:
    """Valid while the context that gave it is open. Changes take turns, reading needs none."""

    def __init__(
        self,
        *,
        volume: Volume,
        changing: asyncio.Lock,
        tokens: PageTokens,
        describe: Callable[[], Workspace],
    ) -> None:
        self._volume = volume
        self._changing = changing
        self._tokens = tokens
        self._describe = describe

    @property
    def workspace(self) -> Workspace:
        """The workspace as it is now."""
        return self._describe()

    async def read(self, path: str, *, offset: int = 0, max_bytes: int = 0) -> FilePart:
        """A part of a regular file; `max_bytes` 0 means the most, 2 MiB."""
        return await in_thread(self._volume.read, path, offset=offset, max_bytes=max_bytes)

    async def write(
        self, path: str, data: bytes, *, mode: WriteMode, expected_sha256: bytes = b""
    ) -> Written:
        """Write a file whole and at once: a reader sees the old one or the new one."""
        async with self._changing:
            return await in_thread(self._volume.write, path, data, mode=mode, expected_sha256=expected_sha256)

    async def delete(self, path: str, *, recursive: bool = False) -> Removed:
        """Delete a file, or a directory; one that is not empty only when `recursive`."""
        async with self._changing:
            return await in_thread(self._volume.delete, path, recursive=recursive)

    async def list(
        self,
        path: str = "",
        *,
        recursive: bool = False,
        with_digests: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> FilePage:
        """A page of the names in a directory, by path; below it too when `recursive`, at most 64 deep."""
        size = page_size_of(page_size, default=DEFAULT_PAGE, most=MAX_PAGE)
        question = f"ListFiles\0{self.workspace.name}\0{path}\0{recursive}\0{with_digests}"
        after = self._tokens.after(question, page_token)
        entries = await in_thread(self._volume.entries, path, recursive=recursive)
        start = 0 if after is None else bisect_right(entries, after, key=lambda entry: entry.path)
        chosen = entries[start : start + size]
        files = await in_thread(self._infos, chosen, with_digests=with_digests)
        more = start + size < len(entries)
        return FilePage(files, self._tokens.make(question, chosen[-1].path) if more else "")

    async def references(self, paths: Sequence[str]) -> tuple[Reference, ...]:
        """What these files hold now, as a run would have to be cleared for them."""
        return await in_thread(self._references, paths)

    def _infos(self, entries: Sequence[Entry], *, with_digests: bool) -> tuple[FileInfo, ...]:
        return tuple(self._volume.info(entry, with_digest=with_digests) for entry in entries)

    def _references(self, paths: Sequence[str]) -> tuple[Reference, ...]:
        return tuple(self._volume.reference(require_path("path", path)) for path in paths)
