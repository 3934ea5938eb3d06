"""On whose behalf an unguarded call is made: the gateway says it beside the request, the services authorise by it.

A guarded call brings its principal inside the clearance, signed by ethics. Any other call of a resource with an owner
brings it in metadata, which anybody on the service's allow-list can write: a service that admits others than the gateway
looks who says it, as tools does.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from kala.common.v1.clearance_pb2 import Principal
from kala.errors import UnauthenticatedError
from services.common.peers import Context

PRINCIPAL_METADATA_KEY: Final = "kala-principal-bin"
"""Holds a serialised kala.common.v1.Principal; "-bin" lets gRPC carry any bytes."""


def principal_metadata(principal: Principal) -> tuple[tuple[str, bytes], ...]:
    """Give what a caller adds to a call's metadata."""
    return ((PRINCIPAL_METADATA_KEY, principal.SerializeToString(deterministic=True)),)


def principal_of(context: Context) -> Principal:
    """Name on whose behalf an unguarded call is made; UnauthenticatedError when its caller does not say exactly one."""
    said = [value for key, value in context.invocation_metadata() or () if key == PRINCIPAL_METADATA_KEY]
    if len(said) != 1 or not isinstance(said[0], bytes):
        raise UnauthenticatedError(
            f"the call must name one principal in its metadata {PRINCIPAL_METADATA_KEY}"
        )
    try:
        principal = Principal.FromString(said[0])
    except DecodeError as error:
        raise UnauthenticatedError(f"metadata {PRINCIPAL_METADATA_KEY} holds no Principal") from error
    if not principal.id or not principal.tenant:
        raise UnauthenticatedError(f"metadata {PRINCIPAL_METADATA_KEY} names no id or no tenant")
    return principal
