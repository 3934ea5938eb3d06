"""Copies promoted adapters to object storage or another directory, through fsspec."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from kala.errors import InvalidArgumentError, UnavailableError
from kala.trainer.v1 import registry_pb2
from services.common.adapter_manifest import MANIFEST_FILE
from services.trainer.registry.shelf import Shelf, location_of

CHUNK_BYTES: Final = 8 << 20

log: Final = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Publisher:
    """A place besides the shelf, named by a URL that fsspec knows."""

    url: str
    shelf: Shelf

    async def publish(self, adapter: registry_pb2.Adapter) -> None:
        """Copies an adapter's folder to `<url>/<name>@<version>/`, its manifest last: what has one is whole.

        What is there already is only compared. Raises UnavailableError where the place does not take it.
        """
        await asyncio.to_thread(self._publish, adapter)
        log.info("adapter_published", adapter=adapter.name, url=shown(self.url))

    def _publish(self, adapter: registry_pb2.Adapter) -> None:
        folder = self.shelf.folder(adapter.name)
        try:
            system, root = _open(self.url)
            target = f"{root.rstrip('/')}/{location_of(adapter.name)}"
            system.makedirs(target, exist_ok=True)
            damaged = [
                file.name
                for file in adapter.description.files
                if not _arrived(system, folder.path / file.name, f"{target}/{file.name}", file.sha256)
            ]
            if not damaged:
                with system.open(f"{target}/{MANIFEST_FILE}", "wb") as writing:
                    writing.write(adapter.manifest.SerializeToString(deterministic=True))
        except Exception as error:
            # fsspec's systems raise what their own libraries raise; whatever it is, the adapter did not arrive.
            raise UnavailableError(
                f"{shown(self.url)} does not take {adapter.name} ({type(error).__name__}); check publish_url and its "
                "credentials, then promote again",
                reason="PUBLISHING_FAILED",
            ) from error
        if damaged:
            raise UnavailableError(
                f"{shown(self.url)}: {', '.join(damaged)} of {adapter.name} arrived damaged; promote again",
                reason="PUBLISHING_FAILED",
            )


def require_known(url: str) -> None:
    """Raises InvalidArgumentError for a URL whose file system is not installed; connects to nothing yet."""
    from fsspec import get_filesystem_class
    from fsspec.utils import get_protocol

    try:
        get_filesystem_class(get_protocol(url))
    except (ImportError, ValueError) as error:
        raise InvalidArgumentError(
            "KALA_TRAINER_PUBLISH_URL", f"names a place that cannot be reached from here: {error}"
        ) from error


def shown(url: str) -> str:
    """A place's URL without user, password and query: these may be the operator's credentials."""
    scheme, sign, rest = url.partition("://")
    return scheme + sign + rest.partition("?")[0].rpartition("@")[2]


def _open(url: str) -> tuple[Any, str]:  # fsspec has no types
    import fsspec

    system, root = fsspec.core.url_to_fs(url)
    return system, str(root)


def _arrived(system: Any, source: Path, there: str, digest: bytes) -> bool:  # as above
    """Copies a file unless it is there already; whether what is there is what was sent."""
    if not system.exists(there) or _digest(system, there) != digest:
        system.put_file(str(source), there)
    return _digest(system, there) == digest


def _digest(system: Any, path: str) -> bytes:  # as above
    digest = hashlib.sha256()
    with system.open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.digest()
