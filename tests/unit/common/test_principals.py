"""Who an unguarded call is for is said exactly once, and completely, or the call has nobody behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest

from kala.common.v1.clearance_pb2 import Principal
from kala.errors import UnauthenticatedError
from services.common.peers import Context
from services.common.principals import PRINCIPAL_METADATA_KEY, principal_metadata, principal_of

ANNA = Principal(id="keys/anna", tenant="acme", subject="f" * 64)


@dataclass
class _Call:
    metadata: tuple[tuple[str, Any], ...]

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        return self.metadata


def _told(*metadata: tuple[str, Any]) -> Principal:
    return principal_of(cast(Context, _Call(metadata)))


def test_a_principal_arrives_as_it_was_sent() -> None:
    assert _told(("kala-peer", "gateway"), *principal_metadata(ANNA)) == ANNA


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (*principal_metadata(ANNA), *principal_metadata(ANNA)),
        ((PRINCIPAL_METADATA_KEY, b"\xff\xff"),),
        ((PRINCIPAL_METADATA_KEY, "text"),),
        principal_metadata(Principal(id="keys/anna")),
        principal_metadata(Principal(tenant="acme")),
    ],
)
def test_a_call_without_one_whole_principal_is_for_nobody(metadata: tuple[tuple[str, Any], ...]) -> None:
    with pytest.raises(UnauthenticatedError):
        _told(*metadata)
