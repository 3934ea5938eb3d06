"""Opens stored sessions on the gateway's core; chats go on in them by `kala_session`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from gateway.conversations.service import SessionsService
from gateway.conversations.session_store import SessionStore
from gateway.feature import Feature
from gateway.files.feature import now, sweeping
from gateway.key_table import to_micros
from gateway.page_tokens import PageTokens
from kala.audit.v1 import audit_pb2

if TYPE_CHECKING:
    from gateway.core import Core
    from gateway.erasure import Eraser


async def open_sessions(core: Core) -> Feature:
    """Open the RPCs and the sweeper."""
    store = SessionStore(core.engine, core.payloads)
    service = SessionsService(
        store,
        PageTokens(core.pseudonyms, now),
        default_ttl=timedelta(days=core.settings.conversation_days),
    )
    sweep = sweeping(lambda: store.sweep(to_micros(now())))
    core.stack.callback(core.background.keep(sweep).cancel)
    return Feature(handlers=service.handlers, erasers={"gateway.sessions": sessions_eraser(store)})


def sessions_eraser(store: SessionStore) -> Eraser:
    """Erases a person's sessions, and their turns in anybody's."""

    async def erase(subject: str, tenant: str) -> Sequence[audit_pb2.ErasedStore]:
        sessions, turns = await asyncio.to_thread(store.erase, tenant, subject)
        return [
            audit_pb2.ErasedStore(store="gateway.sessions", items=sessions),
            audit_pb2.ErasedStore(store="gateway.session_turns", items=turns),
        ]

    return erase
