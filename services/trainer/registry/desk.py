"""The adapters' RPCs: promotion under a clearance, revocation on the record, and what people read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from kala.common.v1.clearance_pb2 import Principal
from kala.errors import InvalidArgumentError, KalaError
from kala.trainer.v1 import registry_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.sealing import unpack_strictly
from services.trainer.names import (
    ADAPTERS,
    EVALUATIONS,
    number_of,
    require_request_id,
    require_stem,
    require_version,
    split_version,
)
from services.trainer.records import ADAPTER_PROMOTING, Cleared, Facts, Records
from services.trainer.registry.registry import Registry

REVOKED: Final = "adapter.revoked"
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1_000
MAX_REASON_CHARS: Final = 512
MAX_EVALUATIONS: Final = 100
DIGEST_BYTES: Final = 32


class Tokens(Protocol):
    """Makes and reads page tokens."""

    def make(self, question: str, after: bytes) -> str:
        """A token that continues `question` strictly after this position."""
        ...

    def after(self, question: str, token: str) -> bytes | None:
        """The position to continue after; None without a token; InvalidArgumentError for one that is not good."""
        ...


async def publish_nowhere(adapter: registry_pb2.Adapter) -> None:
    """Keeps an adapter where it is."""


@dataclass(slots=True)
class Adapters:
    """Answers for the registry."""

    registry: Registry
    records: Records
    tokens: Tokens
    publish: Callable[[registry_pb2.Adapter], Awaitable[None]] = publish_nowhere
    """Copies a promoted adapter to where the operator wants it besides; may raise KalaError, and changes nothing then."""

    async def promote(self, cleared: Cleared) -> pb.PromoteAdapterResponse:
        """Signs an adapter's manifest with a passed gate; both ends of it are in the log."""
        action = unpack_strictly(cleared.verified.action, pb.PromoteAdapterAction)
        require_request_id(action.request_id)
        require_version(ADAPTERS, action.adapter.name, field="adapter.name")
        number_of(EVALUATIONS, action.evaluation.name, field="evaluation.name")
        claims = cleared.verified.claims
        claim = await self.records.claim(
            cleared,
            kind=ADAPTER_PROMOTING,
            attributes={"adapter": action.adapter.name, "evaluation": action.evaluation.name},
        )
        try:
            adapter = await self.registry.promote(
                action.adapter.name,
                action.adapter,
                action.evaluation,
                tenant=claims.principal.tenant,
                constitution_digest=claims.constitution_digest,
            )
            await self.publish(adapter)
        except KalaError as error:
            await self.records.ended(claim, Facts("refused", error.reason))
            raise
        facts = Facts(
            "ok",
            attributes={"adapter": adapter.name, "adapter_digest": adapter.adapter_digest.hex()},
            references=[adapter.reference],
        )
        await self.records.ended(claim, facts)
        return pb.PromoteAdapterResponse(adapter=await self._whole(adapter, claims.principal.tenant))

    async def revoke(self, request: pb.RevokeAdapterRequest, caller: Principal) -> pb.RevokeAdapterResponse:
        """Ends an adapter and all that was built on it; without a record in the log nothing is ended."""
        require_version(ADAPTERS, request.name)
        if not 1 <= len(request.reason) <= MAX_REASON_CHARS:
            raise InvalidArgumentError("reason", f"must have 1 to {MAX_REASON_CHARS} characters")
        adapter = await self.registry.store.get_adapter(request.name, caller.tenant)
        await self.records.event(
            REVOKED,
            Facts(
                "ok",
                attributes={
                    "adapter": adapter.name,
                    "adapter_digest": adapter.adapter_digest.hex(),
                    "reason": request.reason,
                },
                references=[adapter.reference],
            ),
            tenant=caller.tenant,
            subject=caller.subject,
        )
        revoked, descendants, signed = await self.registry.revoke(
            request.name, request.reason, tenant=caller.tenant
        )
        return pb.RevokeAdapterResponse(
            adapter=await self._whole(revoked, caller.tenant), descendants=descendants, revocations=signed
        )

    async def get(self, request: pb.GetAdapterRequest, caller: Principal) -> pb.GetAdapterResponse:
        """The adapter with its manifest; without a version the newest promoted one."""
        split_version(ADAPTERS, request.name)
        adapter = await self.registry.store.get_adapter(request.name, caller.tenant)
        return pb.GetAdapterResponse(adapter=await self._whole(adapter, caller.tenant))

    async def list(self, request: pb.ListAdaptersRequest, caller: Principal) -> pb.ListAdaptersResponse:
        """A page of adapters, and on the first one everything that was revoked."""
        size = _page_size(request.page_size)
        if request.name:
            require_stem(ADAPTERS, request.name)
        if len(request.base_digest) not in {0, DIGEST_BYTES}:
            raise InvalidArgumentError("base_digest", f"must have {DIGEST_BYTES} bytes")
        question = (
            f"ListAdapters {caller.tenant!r} {request.state} {request.base_digest.hex()} {request.name}"
        )
        after = self.tokens.after(question, request.page_token)
        part = await self.registry.store.list_adapters(
            caller.tenant,
            state=request.state,
            base_digest=request.base_digest,
            stem=request.name,
            limit=size,
            after=after or b"",
        )
        response = pb.ListAdaptersResponse(adapters=[_brief(adapter) for adapter in part.items])
        if part.next_after:
            response.next_page_token = self.tokens.make(question, part.next_after)
        if not request.page_token:
            response.revocations.CopyFrom(self.registry.revocations.signed)
        return response

    async def _whole(self, adapter: registry_pb2.Adapter, tenant: str) -> registry_pb2.Adapter:
        """The adapter with the names of its evaluations, which are kept apart."""
        shown = registry_pb2.Adapter()
        shown.CopyFrom(adapter)
        evaluations = await self.registry.store.list_evaluations(
            tenant, adapter=adapter.name, limit=MAX_EVALUATIONS
        )
        del shown.evaluations[:]
        shown.evaluations.extend(item.name for item in evaluations)
        return shown


def _brief(adapter: registry_pb2.Adapter) -> registry_pb2.Adapter:
    brief = registry_pb2.Adapter()
    brief.CopyFrom(adapter)
    brief.ClearField("manifest")
    brief.ClearField("description")
    return brief


def _page_size(asked: int) -> int:
    if not 0 <= asked <= MAX_PAGE:
        raise InvalidArgumentError("page_size", f"must be 1 to {MAX_PAGE}; {DEFAULT_PAGE} when unset")
    return asked or DEFAULT_PAGE
