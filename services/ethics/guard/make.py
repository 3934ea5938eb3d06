"""Put the guard together as the settings name it: its channel, its client, its format."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2_grpc
from services.common.channel import open_channel
from services.common.clearance import ClearanceSigner
from services.common.peers import ETHICS, LOCAL_PREFIX
from services.ethics.config import EthicsSettings
from services.ethics.guard.client import InferenceGuardClient
from services.ethics.guard.formats import GuardFormat
from services.ethics.guard.judge import GuardJudge, Limits
from services.ethics.seating import SeatGuard

if TYPE_CHECKING:
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub


async def open_guard(
    settings: EthicsSettings, signer: ClearanceSigner, stack: AsyncExitStack
) -> SeatGuard | None:
    """Open the way to the guard, which the stack closes; None when the settings name no guard. It connects when first asked."""
    if settings.guard_model is None or settings.inference_address is None:
        return None
    channel = await stack.enter_async_context(
        open_channel(settings.inference_address, peer_name=ETHICS, tls=settings.tls)
    )
    return partial(seat_guard, settings, signer, inference_pb2_grpc.InferenceServiceStub(channel))


def seat_guard(
    settings: EthicsSettings,
    signer: ClearanceSigner,
    stub: InferenceServiceAsyncStub,
    formats: Mapping[str, GuardFormat],
    constitution_digest: bytes,
) -> GuardJudge:
    """The guard in the format that the settings name; InvalidArgumentError when the constitution has no such format."""
    guard = formats.get(settings.guard_format or "")
    if guard is None:
        known = ", ".join(sorted(formats)) or "none"
        raise InvalidArgumentError("KALA_ETHICS_GUARD_FORMAT", f"must be one of: {known}")
    if settings.guard_prompt is not None and settings.guard_prompt not in guard.prompts:
        known = ", ".join(kind.value for kind in guard.prompts)
        raise InvalidArgumentError("KALA_ETHICS_GUARD_PROMPT", f"for {guard.name} must be one of: {known}")
    client = InferenceGuardClient(
        stub,
        model=settings.guard_model or "",
        signer=signer,
        # The name by which inference will see this part.
        presenter=f"{LOCAL_PREFIX}{ETHICS}" if settings.tls is None else settings.tls.own_name(),
        constitution_digest=constitution_digest,
        timeout_seconds=settings.guard_deadline_seconds,
    )
    limits = Limits(settings.guard_deadline_seconds, settings.guard_concurrency)
    return GuardJudge(guard, client, prompt=settings.guard_prompt, limits=limits)
