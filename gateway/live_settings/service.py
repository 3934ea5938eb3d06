"""SettingsService: what may change while the suite runs, for administrators; each change is logged before it happens."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog

from gateway.core import Core
from gateway.edge import Exchange
from gateway.feature import Feature
from gateway.identity import Caller
from gateway.ledger import Ledger
from gateway.live_settings.replicas import Replicas
from gateway.live_settings.store import SettingStore, Snapshot
from gateway.page_tokens import PageTokens, page_size
from kala.errors import InvalidArgumentError, UnavailableError
from kala.gateway.v1 import gateway_pb2 as pb
from kala.inference.v1 import inference_pb2

LIST: Final = "/kala.gateway.v1.SettingsService/ListSettings"
UPDATE: Final = "/kala.gateway.v1.SettingsService/UpdateSetting"
PREFIX: Final = "settings/inference."
"""Only inference has settings that change."""


class SettingsService:
    """Lists and changes settings."""

    def __init__(
        self,
        store: SettingStore,
        replicas: Replicas,
        ledger: Ledger,
        tokens: PageTokens,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._replicas = replicas
        self._ledger = ledger
        self._tokens = tokens
        self._now = now

    async def list(
        self, request: pb.ListSettingsRequest, _caller: Caller, _exchange: Exchange
    ) -> pb.ListSettingsResponse:
        """List them as inference has them, in the order of their names."""
        size = page_size(request.page_size)
        after = self._tokens.read(request.page_token, LIST, b"").decode() if request.page_token else ""
        snapshot = await asyncio.to_thread(self._store.read)
        effective = (await self._replicas.ask(snapshot.values)).settings
        settings = [_setting(one, snapshot) for one in effective if PREFIX + one.name > after]
        token = (
            self._tokens.write(LIST, b"", settings[size - 1].name.encode()) if len(settings) > size else ""
        )
        return pb.ListSettingsResponse(settings=settings[:size], next_page_token=token)

    async def update(
        self, request: pb.UpdateSettingRequest, caller: Caller, exchange: Exchange
    ) -> pb.UpdateSettingResponse:
        """Change one: checked by inference, then logged, then kept, then told to every replica.

        AlreadyExistsError where another change came between; the log then says that this one was about to be made.
        """
        if not request.name.startswith(PREFIX):
            raise InvalidArgumentError("name", f"must begin with {PREFIX}")
        name = request.name.removeprefix(PREFIX)
        before = await asyncio.to_thread(self._store.read)
        if not request.value_json:
            # Known names only: what returns to the value below is not looked at by inference. Asked without the changes that
            # stand, of which one that inference takes no longer could else never be returned.
            known = {one.name for one in (await self._replicas.ask({})).settings}
            if name not in known:
                raise InvalidArgumentError("name", f"{name[:64]!r} cannot change")
        would_be = await self._replicas.ask(before.with_value(name, request.value_json))
        value = request.value_json or "(returned)"
        facts = {
            "args.setting": request.name,
            "args.value": value,
            "args.value_sha256": hashlib.sha256(value.encode()).hexdigest(),
        }
        exchange.receipt = await self._ledger.administered(
            caller, rpc=UPDATE, facts=facts, request_id=exchange.request_id, trace_id=exchange.trace_id
        )
        after = await asyncio.to_thread(
            lambda: self._store.write(name, request.value_json, self._now(), after=before.revision)
        )
        try:
            await self._replicas.tell(after)
        except UnavailableError as error:
            # Kept, so that the next telling reaches them.
            structlog.get_logger().warning("settings are not everywhere yet", reason=error.message)
        setting = next(one for one in would_be.settings if one.name == name)
        return pb.UpdateSettingResponse(setting=_setting(setting, after))


async def open_settings(core: Core) -> Feature:
    """Bring mutable settings to a gateway, and keep telling them to inference."""
    store = SettingStore(core.engine)
    replicas = Replicas(core.settings.inference_address, core.settings.tls, core.inference)
    core.stack.callback(core.background.keep(replicas.keep_telling(store)).cancel)
    service = SettingsService(store, replicas, core.desk.ledger, PageTokens(core.pseudonyms, _now), now=_now)
    return Feature(handlers={LIST: service.list, UPDATE: service.update})


def _setting(one: inference_pb2.EffectiveSetting, snapshot: Snapshot) -> pb.Setting:
    setting = pb.Setting(name=PREFIX + one.name, value_json=one.value_json, source=one.source)
    changed = next((each for each in snapshot.changed if each.name == one.name), None)
    if changed is not None:
        setting.changed_at.FromDatetime(changed.changed_at)
    return setting


def _now() -> datetime:
    return datetime.now(UTC)
