"""A dataset hub of the Hugging Face kind, by its plain HTTP API: the files of one commit that belong to one split.

A build reads the same files as the check did: the digest over their names, sizes and contents is what was cleared. Nothing is
kept and no code of a dataset is ever run; formats that only such code or a library reads are refused.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast
from urllib.parse import quote

import httpx

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, NotFoundError, PermissionDeniedError, UnavailableError
from kala.trainer.v1.dataset_pb2 import HubSource
from services.common.file_set import file_set_digest
from services.trainer.datasets.files import Access, read_through
from services.trainer.datasets.formats import names_test_part

TIMEOUT: Final = httpx.Timeout(30.0)
MAX_LISTING_BYTES: Final = 32 * 1024 * 1024
MAX_FILES: Final = 4096
_READABLE: Final = (".jsonl", ".json", ".xml", ".py", ".tar", ".gz", ".tgz")
_CHUNK: Final = 256 * 1024
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*){0,7}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a split at one commit."""

    source: HubSource
    files: tuple[str, ...]
    url: str


def find(source: HubSource, access: Access) -> Snapshot:
    """Returns the split's files; raises where there are none that can be read, and for a hub that does not answer."""
    name = source.dataset.name
    listing = f"{access.hub_url}/api/datasets/{quote(name)}/revision/{source.revision}"
    answer = _answer(listing, source)
    if answer.get("sha") != source.revision:
        raise FailedPreconditionError(f"the hub has no commit {source.revision} of {name}")
    siblings = answer.get("siblings")
    names = [each.get("rfilename") for each in siblings] if isinstance(siblings, list) else []
    split = source.split.lower()
    found = sorted(
        each
        for each in names
        if isinstance(each, str)
        and _FILE.fullmatch(each)
        and split in each.lower()
        and each.endswith(_READABLE)
        and not names_test_part(each)
    )
    if not found:
        raise NotFoundError(
            f"{name} at {source.revision} has no file of the split {source.split!r} that can be read "
            f"({', '.join(_READABLE)}); convert it to JSON Lines and name it under files"
        )
    if len(found) > MAX_FILES:
        raise FailedPreconditionError(
            f"{name} has {len(found):,} files of {source.split!r}; at most {MAX_FILES:,}"
        )
    return Snapshot(source, tuple(found), access.hub_url)


@contextmanager
def opened(
    snapshot: Snapshot, file: str, advance: Callable[[int], None]
) -> Iterator[tuple[BinaryIO, Callable[[], ContentReference]]]:
    """Yields a file's bytes, unpacked, and a function that reads to the end and returns what it was."""
    source = snapshot.source
    url = f"{snapshot.url}/datasets/{quote(source.dataset.name)}/resolve/{source.revision}/{quote(file)}"
    with _in_words(source), httpx.stream("GET", url, timeout=TIMEOUT, follow_redirects=True) as response:
        _require_ok(response, source)
        # Sent as it is stored: another encoding in transit would change the digest.
        body = io.BufferedReader(_Body(response.iter_raw(_CHUNK)), _CHUNK)
        yield read_through(ContentReference(name=file), cast("BinaryIO", body), advance)


def reference_of(snapshot: Snapshot, files: list[ContentReference]) -> ContentReference:
    """Returns what names the snapshot: its name with the digest and size of the files read."""
    return ContentReference(
        name=snapshot.source.dataset.name,
        sha256=file_set_digest(files),
        bytes=sum(file.bytes for file in files),
    )


class _Body(io.RawIOBase):
    """The pieces of a response as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast("bytearray", buffer))  # BufferedReader passes a writable buffer
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = piece
        taken = self._left[: len(view)]
        self._left = self._left[len(taken) :]
        view[: len(taken)] = taken
        return len(taken)


def _answer(url: str, source: HubSource) -> dict[str, Any]:  # Any: JSON of a hub
    with _in_words(source), httpx.stream("GET", url, timeout=TIMEOUT, follow_redirects=True) as response:
        _require_ok(response, source)
        data = b""
        for piece in response.iter_bytes():
            data += piece
            if len(data) > MAX_LISTING_BYTES:
                raise FailedPreconditionError(f"the hub's list of {source.dataset.name} is too long")
    try:
        answer = httpx.Response(200, content=data).json()
    except ValueError as error:
        raise UnavailableError("the hub does not answer in JSON") from error
    return answer if isinstance(answer, dict) else {}


def _require_ok(response: httpx.Response, source: HubSource) -> None:
    name = source.dataset.name
    if response.status_code in {401, 403}:
        raise PermissionDeniedError(
            f"the hub lets nobody read {name} without its terms; name its files under files"
        )
    if response.status_code == httpx.codes.NOT_FOUND:
        raise NotFoundError(f"the hub has no {name} at {source.revision}")
    if response.status_code != httpx.codes.OK:
        raise UnavailableError(f"the hub answers {response.status_code} for {name}; try again later")


@contextmanager
def _in_words(source: HubSource) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise UnavailableError(f"the hub does not answer for {source.dataset.name}: {error}") from error
