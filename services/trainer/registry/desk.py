"""The adapters' RPCs: promotion under a clearance, revocation on the record, and what people read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from kala.common.v1.clearance_pb2 import Principal
from kala.errors import InvalidArgumentError, KalaError
from kala.trainer.v1 import registry_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.deadlines import fresh_deadline
from services.common.service_records import Facts
from services.trainer.desks import Trained
from services.trainer.names import (
    ADAPTERS,
    EVALUATIONS,
    number_of,
    require_request_id,
    require_stem,
    require_version,
    split_version,
)
from services.trainer.pages import PageTokens
from services.trainer.records import ADAPTER_PROMOTING, Claim, Cleared, Records
from services.trainer.registry.registry import Registry

REVOKED: Final = "adapter.revoked"
ADAPTER_FOLDER: Final = "adapter"
MAX_REASON_CHARS: Final = 512
MAX_EVALUATIONS: Final = 100
DIGEST_BYTES: Final = 32


async def publish_nowhere(adapter: registry_pb2.Adapter) -> None:
    """Keeps an adapter where it is."""


@dataclass(slots=True)
class Adapters:
    """Answers for the registry."""

    registry: Registry
    records: Records
    tokens: PageTokens
    publish: Callable[[registry_pb2.Adapter], Awaitable[None]] = publish_nowhere
    """Copies a promoted adapter to where the operator wants it besides; may raise KalaError: then it is
    promoted and not there, and promoting it again copies it."""

    async def register(self, trained: Trained) -> registry_pb2.Adapter:
        """Describes, signs and stores what a job trained; for the same job again it gives what it made then."""
        made = await self.registry.made_by(trained.job)
        if made is not None:
            return made
        principal = trained.claim.claims.principal
        training = await self.registry.training_of(trained)
        return await self.registry.register(
            training, trained.folder / ADAPTER_FOLDER, subject=principal.subject
        )

    async def promote(self, action: pb.PromoteAdapterAction, cleared: Cleared) -> pb.PromoteAdapterResponse:
        """Signs an adapter's manifest with a passed gate; both ends of it are in the log."""
        require_request_id(action.request_id)
        require_version(ADAPTERS, action.adapter.name, field="adapter.name")
        number_of(EVALUATIONS, action.evaluation.name, field="evaluation.name")
        # Whoever asked may go away half-way: what has begun in the log ends there all the same.
        adapter = await asyncio.shield(asyncio.ensure_future(self._promote(action, cleared)))
        await self.publish(adapter)
        return pb.PromoteAdapterResponse(adapter=await self._whole(adapter, adapter.tenant))

    async def _promote(self, action: pb.PromoteAdapterAction, cleared: Cleared) -> registry_pb2.Adapter:
        claim = await self.records.claim(
            cleared,
            kind=ADAPTER_PROMOTING,
            attributes={"adapter": action.adapter.name, "evaluation": action.evaluation.name},
        )
        with fresh_deadline():
            return await self._promote_claimed(action, claim)

    async def _promote_claimed(self, action: pb.PromoteAdapterAction, claim: Claim) -> registry_pb2.Adapter:
        claims = claim.claims
        try:
            adapter = await self.registry.promote(
                action.adapter.name,
                action.adapter,
                action.evaluation,
                tenant=claims.principal.tenant,
                constitution_digest=claims.constitution_digest,
            )
        except KalaError as error:
            await self.records.ended(claim, Facts("refused", error.reason))
            raise
        facts = Facts(
            "ok",
            attributes={"adapter": adapter.name, "adapter_digest": adapter.adapter_digest.hex()},
            references=[adapter.reference],
        )
        await self.records.ended(claim, facts)
        return adapter

    async def revoke(
        self, request: pb.RevokeAdapterRequest, principal: Principal
    ) -> pb.RevokeAdapterResponse:
        """Ends an adapter and all that was built on it; without a record in the log nothing is ended."""
        require_version(ADAPTERS, request.name)
        if not 1 <= len(request.reason) <= MAX_REASON_CHARS:
            raise InvalidArgumentError("reason", f"must have 1 to {MAX_REASON_CHARS} characters")
        # As above: what the log says is revoked must not go on with half of its descendants.
        return await asyncio.shield(asyncio.ensure_future(self._revoke(request, principal)))

    async def _revoke(
        self, request: pb.RevokeAdapterRequest, principal: Principal
    ) -> pb.RevokeAdapterResponse:
        adapter = await self.registry.store.get_adapter(request.name, principal.tenant)
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
            tenant=principal.tenant,
            subject=principal.subject,
        )
        revoked, descendants, signed = await self.registry.revoke(
            request.name, request.reason, tenant=principal.tenant
        )
        return pb.RevokeAdapterResponse(
            adapter=await self._whole(revoked, principal.tenant), descendants=descendants, revocations=signed
        )

    async def get(self, request: pb.GetAdapterRequest, principal: Principal) -> pb.GetAdapterResponse:
        """The adapter with its manifest; without a version the newest promoted one."""
        split_version(ADAPTERS, request.name)
        adapter = await self.registry.store.get_adapter(request.name, principal.tenant)
        return pb.GetAdapterResponse(adapter=await self._whole(adapter, principal.tenant))

    async def list(self, request: pb.ListAdaptersRequest, principal: Principal) -> pb.ListAdaptersResponse:
        """A page of adapters, and on the first one everything that was revoked."""
        if request.name:
            require_stem(ADAPTERS, request.name)
        if len(request.base_digest) not in {0, DIGEST_BYTES}:
            raise InvalidArgumentError("base_digest", f"must have {DIGEST_BYTES} bytes")
        page = self.tokens.page(
            "ListAdapters",
            principal,
            request.page_size,
            request.page_token,
            request.state,
            request.base_digest,
            request.name,
        )
        part = await self.registry.store.list_adapters(
            principal.tenant,
            state=request.state,
            base_digest=request.base_digest,
            stem=request.name,
            limit=page.limit,
            after=page.after,
        )
        response = pb.ListAdaptersResponse(
            adapters=[_brief(adapter) for adapter in part.items],
            next_page_token=self.tokens.next_token(page, part.next_after),
        )
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
