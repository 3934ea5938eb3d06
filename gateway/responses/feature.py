"""Opens `/v1/responses` on the gateway's core."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gateway.conversations.store import ResponseStore
from gateway.core import chat_limits
from gateway.feature import Feature
from gateway.responses.endpoint import Counter, Responses
from gateway.responses.intake import ResponseIntake
from gateway.responses.keeping import Keeper
from gateway.responses.openapi import PATHS, SCHEMAS
from gateway.routing import ApiRoute
from kala.audit.v1 import audit_pb2

if TYPE_CHECKING:
    from gateway.core import Core
    from gateway.erasure import Eraser
    from gateway.payloads import Payloads

DAY_SECONDS: Final = 86_400


async def open_responses(core: Core) -> Feature:
    """Open the endpoints, the background worker, and what looks after stored responses."""
    store = ResponseStore(core.engine, core.payloads)
    keeper = Keeper(
        store, background=core.background, ttl_seconds=core.settings.conversation_days * DAY_SECONDS
    )
    limits = chat_limits(core.settings)
    responses = Responses(
        Counter(
            gate=core.desk.gate,
            ledger=core.desk.ledger,
            runs=core.chat_runs,
            limits=limits,
            keeper=keeper,
            intake=ResponseIntake(core.chat_runs, keeper, max_conversation_bytes=limits.max_image_body_bytes),
        ),
        background_places=core.settings.background_responses,
    )
    core.stack.callback(core.background.keep(keeper.keep_renewing()).cancel)
    core.stack.callback(core.background.keep(keeper.keep_sweeping()).cancel)
    core.stack.push_async_callback(responses.worker.aclose)
    return Feature(
        routes=(
            ApiRoute("POST", "/v1/responses", responses.create),
            ApiRoute("GET", "/v1/responses/{id}", responses.get),
            ApiRoute("DELETE", "/v1/responses/{id}", responses.delete),
            ApiRoute("POST", "/v1/responses/{id}/cancel", responses.cancel),
            ApiRoute("GET", "/v1/responses/{id}/input_items", responses.input_items),
        ),
        erasers={"gateway.responses": responses_eraser(store, core.payloads)},
        paths=PATHS,
        schemas=SCHEMAS,
    )


def responses_eraser(store: ResponseStore, payloads: Payloads) -> Eraser:
    """Erases a person's responses, and the key under which all that the gateway stores of them is sealed."""

    async def erase(subject: str, tenant: str) -> Sequence[audit_pb2.ErasedStore]:
        responses = await asyncio.to_thread(store.erase, tenant, subject)
        keys = await asyncio.to_thread(payloads.erase, tenant, subject)
        return [
            audit_pb2.ErasedStore(store="gateway.responses", items=responses),
            audit_pb2.ErasedStore(store="gateway.payload_keys", items=keys),
        ]

    return erase
