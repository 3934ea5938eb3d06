"""Which adapters a job's base was made of, held against the registry: a merge never passes for a published base."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection

from kala.common.v1.adapter_pb2 import AdapterDescription, Ancestor
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError
from kala.trainer.v1 import registry_pb2
from kala.trainer.v1.registry_pb2 import (
    ADAPTER_STATE_PROMOTED,
    ADAPTER_STATE_REVOKED,
    EXPORT_FORMAT_MERGED,
)
from services.common.adapter_manifest import MAX_ANCESTORS
from services.trainer.registry.describe import lineage
from services.trainer.store import rows
from services.trainer.store.schema import EXPORT
from services.trainer.store.store import Store

BROKEN: Final = "LINEAGE_BROKEN"
_PAGE: Final = 200


async def ancestors_of(
    store: Store,
    parents: Sequence[ContentReference],
    base_digest: bytes,
    *,
    tenant: str,
    revoked: frozenset[bytes] = frozenset(),
) -> list[Ancestor]:
    """The lineage of a job on this base, the oldest first; FailedPreconditionError where `parents` do not lead to it."""
    if len(parents) > MAX_ANCESTORS:
        raise FailedPreconditionError(f"parents: there are {len(parents)}, at most {MAX_ANCESTORS}")
    if not parents:
        await _require_published(store, base_digest)
        return []
    found: list[tuple[AdapterDescription, bytes]] = []
    merges: dict[bytes, list[bytes]] = {}
    for parent in parents:
        adapter = await store.get_adapter(parent.name, tenant)
        require_promoted(adapter, revoked)
        require_reference(adapter, parent)
        found.append((adapter.description, adapter.adapter_digest))
        exports = await store.list_exports(tenant, adapter=adapter.name)
        merges[adapter.adapter_digest] = [export.model_digest for export in exports if export.model_digest]
    return lineage(found, base_digest, merges=merges)


def require_promoted(adapter: registry_pb2.Adapter, revoked: frozenset[bytes]) -> None:
    """Raises FailedPreconditionError unless the adapter may serve as far as this trainer knows."""
    require_not_revoked(adapter, revoked)
    if adapter.state != ADAPTER_STATE_PROMOTED:
        raise FailedPreconditionError(
            f"{adapter.name} has passed no gate; evaluate and promote it first", reason="ADAPTER_NOT_PROMOTED"
        )


def require_not_revoked(adapter: registry_pb2.Adapter, revoked: frozenset[bytes]) -> None:
    """Raises FailedPreconditionError for an adapter that was revoked, or whose ancestor was."""
    digests = {adapter.adapter_digest, *(item.adapter_digest for item in adapter.description.ancestors)}
    if adapter.state == ADAPTER_STATE_REVOKED or digests & revoked:
        why = f": {adapter.revoked_reason}" if adapter.revoked_reason else ""
        raise FailedPreconditionError(f"{adapter.name} is revoked{why}", reason="ADAPTER_REVOKED")


def require_reference(adapter: registry_pb2.Adapter, reference: ContentReference) -> None:
    """Raises FailedPreconditionError unless the adapter's manifest is the very one that was named."""
    if adapter.reference != reference:
        raise FailedPreconditionError(
            f"{adapter.name} has another manifest than was named, {adapter.reference.sha256.hex()[:16]}; read it again "
            "with GetAdapter",
            reason="ADAPTER_CHANGED",
        )


async def _require_published(store: Store, base_digest: bytes) -> None:
    """A merge without its parents would hide what it was made of, and outlive their revocation."""
    after = b""
    while True:
        part = await store.run(partial(_merges, after=after))
        for export in part.items:
            if export.model_digest == base_digest:
                raise FailedPreconditionError(
                    f"parents: the base is the merge of {export.adapter}; name it, and those before it",
                    reason=BROKEN,
                )
        after = part.next_after
        if not after:
            return


def _merges(sql: Connection, *, after: bytes) -> rows.Part[registry_pb2.Export]:
    is_merge = EXPORT.c.format == int(EXPORT_FORMAT_MERGED)
    return rows.list_(sql, EXPORT, registry_pb2.Export, None, is_merge, limit=_PAGE, after=after)
