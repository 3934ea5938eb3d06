"""Lets adapters into service and out of it, and says of each request whether its adapters may serve it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from kala.common.v1.adapter_pb2 import ADAPTER_TASK_CAUSAL_LM
from kala.common.v1.clearance_pb2 import ClearanceClaims
from kala.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from kala.inference.v1 import inference_pb2 as pb
from services.common.adapter_manifest import VerifiedAdapter, verify_adapter
from services.inference.adapters.folder import Folder
from services.inference.adapters.trust import Trust
from services.inference.backend import AdapterHost, BackendFailure
from services.inference.registry.registry import Entry, Registry

log: Final = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Served:
    """An adapter in service, and what it was let in under."""

    digest: bytes
    tenant: str
    constitution_digest: bytes
    lineage: frozenset[bytes]
    """Its digest and its ancestors'; one of them revoked is all of it revoked."""


@dataclass(slots=True)
class AdapterDesk:
    """The adapters of this process."""

    registry: Registry
    trust: Trust
    directory: Path
    """The only place that adapters are read from."""
    clock: Callable[[], float] = time.monotonic
    _served: dict[tuple[str, str], _Served] = field(default_factory=dict)
    """By backend and adapter."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def load(
        self, entry: Entry, action: pb.LoadAdapterAction, claims: ClearanceClaims, begin: Callable[[], None]
    ) -> float:
        """Verify an adapter and let it serve; give the seconds that it took.

        Raises VerificationError naming the first thing that does not hold, and other KalaErrors for what the caller can
        mend.  `begin` as of Backend.chat.
        """
        host, name = _host(entry), entry.backend.identity.name
        folder = Folder.at(action.location, below=self.directory)
        async with self._turn:
            started = self.clock()
            verified = await self._verified(host, folder, action, claims)
            description = verified.description
            if description.name != action.adapter:
                raise InvalidArgumentError("adapter", f"the manifest is that of {description.name}")
            if description.tenant != claims.principal.tenant:
                raise NotFoundError(f"there is no {action.adapter}")
            if description.task != ADAPTER_TASK_CAUSAL_LM:
                raise FailedPreconditionError(
                    f"{action.adapter} gives labels and serves no chat", reason="ADAPTER_NOT_FOR_CHAT"
                )
            self._require_name_free(verified)
            begin()
            try:
                await host.load_adapter(verified)
            except BackendFailure as failure:
                raise UnavailableError(f"{name} {failure.detail}", reason=failure.reason) from failure
            self._served[name, action.adapter] = _Served(
                verified.digest,
                description.tenant,
                claims.constitution_digest,
                frozenset({verified.digest, *(item.adapter_digest for item in description.ancestors)}),
            )
            await self.registry.look(entry)
            log.info("adapter_loaded", backend=name, adapter=action.adapter, digest=verified.digest.hex())
            return self.clock() - started

    async def unload(self, entries: Iterable[Entry], adapter: str) -> None:
        """Take an adapter out of these backends; answers under way keep it to their end.  Raises NotFoundError."""
        was_there = False
        async with self._turn:
            for entry in entries:
                was_there |= await self._take_out(entry, adapter)
        if not was_there:
            raise NotFoundError(f"{adapter} is not loaded; {self._listed()}", reason="ADAPTER_NOT_LOADED")

    async def require(self, adapters: Iterable[str], claims: ClearanceClaims) -> None:
        """Raise unless each adapter is in service for this tenant, not revoked and gated under the laws in force."""
        for adapter in adapters:
            found = {
                backend: served
                for (backend, name), served in self._served.items()
                if name == adapter and served.tenant == claims.principal.tenant
            }
            if not found:
                raise NotFoundError(
                    f"{adapter} is not loaded; load it with LoadAdapter", reason="ADAPTER_NOT_LOADED"
                )
            revoked = self.trust.revoked()
            for backend, served in found.items():
                if served.lineage & revoked:
                    await self._put_out(backend, adapter)
                    raise FailedPreconditionError(f"{adapter} is revoked", reason="ADAPTER_REVOKED")
                if served.constitution_digest != claims.constitution_digest:
                    raise FailedPreconditionError(
                        f"{adapter} was gated under laws that are no longer in force; evaluate it again and reload it",
                        reason="ADAPTER_OUTDATED",
                    )

    async def _verified(
        self, host: AdapterHost, folder: Folder, action: pb.LoadAdapterAction, claims: ClearanceClaims
    ) -> VerifiedAdapter:
        keys = self.trust.keys()
        policy = self.trust.policy(
            base_digest=await host.base_digest(), constitution_digest=claims.constitution_digest
        )
        # Gigabytes to hash and signatures to check: not in the event loop.
        return await asyncio.to_thread(
            lambda: verify_adapter(action.manifest, folder.names(), folder.read, trust=keys, policy=policy)
        )

    def _require_name_free(self, verified: VerifiedAdapter) -> None:
        name = verified.description.name
        # On every backend: a request names no more than this, and must not get another tenant's of the same name.
        present = {
            adapter.digest
            for entry in self.registry.entries()
            for model in entry.status.models
            for adapter in model.adapters
            if adapter.name == name
        }
        if present - {verified.digest}:
            raise AlreadyExistsError(
                f"another adapter is in service as {name}; unload that first", reason="ADAPTER_NAME_TAKEN"
            )

    async def _put_out(self, backend: str, adapter: str) -> None:
        entry = self.registry.get(backend)
        async with self._turn:
            if entry is not None:
                await self._take_out(entry, adapter)

    async def _take_out(self, entry: Entry, adapter: str) -> bool:
        host = entry.backend
        if not isinstance(host, AdapterHost):
            return False
        self._served.pop((host.identity.name, adapter), None)
        was_there = await host.unload_adapter(adapter)
        await self.registry.look(entry)
        return was_there

    def _listed(self) -> str:
        names = sorted({name for _, name in self._served})
        return f"there are: {', '.join(names)}" if names else "none is"


def _host(entry: Entry) -> AdapterHost:
    if isinstance(entry.backend, AdapterHost):
        return entry.backend
    raise FailedPreconditionError(
        f"{entry.backend.identity.name} takes no signed adapters; load it into the Pythia model in process",
        reason="ADAPTERS_NOT_SERVED",
    )
