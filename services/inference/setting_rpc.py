"""ApplySettings: messages in, settings through, messages out; only the gateway may call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb
from services.common.peers import GATEWAY, Peer
from services.inference.live_settings import Effective, LiveSettings

APPLY_SETTINGS: Final = "/kala.inference.v1.InferenceService/ApplySettings"
MAX_VALUES: Final = 100


def may_call(method: str, peer: Peer) -> bool:
    """Whether this part may use this RPC: only the gateway changes settings."""
    return method != APPLY_SETTINGS or peer.part == GATEWAY


def apply_settings(live: LiveSettings, request: pb.ApplySettingsRequest) -> pb.ApplySettingsResponse:
    """Take changed settings, or say only what would be in force."""
    if len(request.values) > MAX_VALUES:
        raise InvalidArgumentError("values", f"must have at most {MAX_VALUES} entries")
    values = {value.name: value.value_json for value in request.values}
    if request.validate_only:
        return _response(live.revision, live.would_be(values))
    live.apply(request.revision, values)
    return _response(live.revision, live.effective())


def _response(revision: int, settings: Sequence[Effective]) -> pb.ApplySettingsResponse:
    return pb.ApplySettingsResponse(
        revision=revision,
        settings=[
            pb.EffectiveSetting(name=each.name, value_json=each.value_json, source=each.source)
            for each in settings
        ],
    )
