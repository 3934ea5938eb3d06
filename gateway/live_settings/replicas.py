"""Tells every replica of inference what was changed, and asks what is in force there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import grpc
import structlog

from gateway.live_settings.store import SettingStore, Snapshot
from gateway.part_erasers import channel_to, replicas_of
from kala.errors import KalaError, UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from kala.inference.v1.inference_pb2_grpc import InferenceServiceStub
from services.common.status import from_error, translated

if TYPE_CHECKING:
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub
    from services.common.tls import TlsFiles

TELL_SECONDS: Final = 2.0
"""One replica's time to take a change, which looks at nothing outside of it."""

EVERY_SECONDS: Final = 2.0
"""How often the database is read and every replica told: with the telling itself, a change is everywhere within 5 s."""


class Replicas:
    """The replicas of inference behind one address."""

    def __init__(self, target: str, tls: TlsFiles | None, inference: InferenceServiceAsyncStub) -> None:
        self._target = target
        self._tls = tls
        self._inference = inference

    async def ask(self, values: Mapping[str, str]) -> pb.ApplySettingsResponse:
        """Ask one replica what would be in force; raises its error for a value that it does not take."""
        with translated():
            return await self._inference.ApplySettings(
                _request(values, validate_only=True), timeout=TELL_SECONDS
            )

    async def tell(self, snapshot: Snapshot) -> None:
        """Tell every replica; UnavailableError names those that did not take it."""
        failed = []
        for server in await replicas_of(self._target):
            try:
                async with asyncio.timeout(TELL_SECONDS), channel_to(server, self._tls) as channel:
                    await InferenceServiceStub(channel).ApplySettings(
                        _request(snapshot.values, revision=snapshot.revision), timeout=TELL_SECONDS
                    )
            except (grpc.RpcError, KalaError, TimeoutError) as error:
                known = from_error(error) if isinstance(error, grpc.RpcError) else error
                failed.append(f"{server.address}: {known}")
        if failed:
            raise UnavailableError(f"not every replica has the settings: {'; '.join(failed)}")

    async def keep_telling(self, store: SettingStore) -> None:
        """Tell all replicas again and again, for they start anew without; until cancelled."""
        while True:
            try:
                snapshot = await asyncio.to_thread(store.read)
                if snapshot.revision:
                    await self.tell(snapshot)
            except KalaError as error:
                structlog.get_logger().warning("settings are not everywhere", reason=error.message)
            await asyncio.sleep(EVERY_SECONDS)


def _request(
    values: Mapping[str, str], *, revision: int = 0, validate_only: bool = False
) -> pb.ApplySettingsRequest:
    return pb.ApplySettingsRequest(
        revision=revision,
        values=[pb.SettingValue(name=name, value_json=value) for name, value in sorted(values.items())],
        validate_only=validate_only,
    )
