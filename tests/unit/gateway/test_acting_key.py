"""Work that this process does for a key: the key must be as good as a caller's, and no header can name one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.bootstrap import create_key
from gateway.edge import Exchange
from gateway.gate import Gate
from gateway.identity import Pseudonyms
from gateway.key_ring import KeyRing
from gateway.key_store import KeyStore
from gateway.lasting_keys import require_lasting
from gateway.oidc.trust import KEY_PREFIX
from kala.common.v1 import options_pb2
from kala.errors import FailedPreconditionError, PermissionDeniedError, UnauthenticatedError

CHAT, TRAIN = options_pb2.SCOPE_CHAT, options_pb2.SCOPE_TRAIN


async def _nothing(*_: object, **__: object) -> None:
    return None


async def _unlimited(*_: object) -> SimpleNamespace:
    return SimpleNamespace(headers={})


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "g.db")


def gate(store: KeyStore, *, now: datetime | None = None) -> Gate:
    ring = KeyRing(store, cache_seconds=4, clock=lambda: 0.0, now=lambda: now or datetime.now(UTC))
    ledger: Any = SimpleNamespace(denied=_nothing)  # only told of denials, which tests of the log read
    return Gate(
        ring=ring,
        pseudonyms=Pseudonyms(bytes(32)),
        ledger=ledger,
        limiter=cast(Any, SimpleNamespace(reserve=_unlimited, close=_nothing)),
        max_concurrent=1,
        clock=lambda: 0.0,
    )


def exchange(acting_key: str = "", **headers: str) -> Exchange:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    made = Exchange({"headers": lines}, cast(Any, _nothing), cast(Any, _nothing))
    made.acting_key = acting_key
    return made


async def test_work_for_a_key_is_admitted_as_that_key(store: KeyStore, tmp_path: Path) -> None:
    key = create_key(tmp_path / "g.db", display_name="a", scopes=("chat",))
    admitted = await gate(store).admit(exchange(key.id), rpc="HTTP POST /v1/x", scope=CHAT)
    assert admitted.name == key.key.name


async def test_work_for_a_key_needs_the_keys_scope(store: KeyStore, tmp_path: Path) -> None:
    key = create_key(tmp_path / "g.db", display_name="a", scopes=("chat",))
    with pytest.raises(PermissionDeniedError, match="train"):
        await gate(store).admit(exchange(key.id), rpc="HTTP POST /v1/x", scope=TRAIN)


async def test_work_stops_when_its_key_is_revoked(store: KeyStore, tmp_path: Path) -> None:
    key = create_key(tmp_path / "g.db", display_name="a", scopes=("chat",))
    door = gate(store)
    await door.admit(exchange(key.id), rpc="HTTP POST /v1/x", scope=CHAT)
    # By another process: nothing here was told.
    KeyStore(tmp_path / "g.db").revoke(key.id, datetime.now(UTC))
    with pytest.raises(UnauthenticatedError, match="revoked"):
        await door.admit(exchange(key.id), rpc="HTTP POST /v1/x", scope=CHAT)


async def test_work_stops_when_its_key_expires_or_is_unknown(store: KeyStore, tmp_path: Path) -> None:
    key = create_key(tmp_path / "g.db", display_name="a", scopes=("chat",), ttl_seconds=3600)
    late = gate(store, now=datetime.now(UTC) + timedelta(hours=2))
    for key_id, problem in ((key.id, "expired"), ("0" * 16, "not known")):
        with pytest.raises(UnauthenticatedError, match=problem):
            await late.admit(exchange(key_id), rpc="HTTP POST /v1/x", scope=CHAT)


def test_a_token_cannot_be_acted_for_later(store: KeyStore, tmp_path: Path) -> None:
    key = create_key(tmp_path / "g.db", display_name="a").key
    require_lasting(key)
    with pytest.raises(FailedPreconditionError, match="API key"):
        require_lasting(replace(key, id=KEY_PREFIX + "ab"))


async def test_no_header_names_a_key_to_act_for(store: KeyStore, tmp_path: Path) -> None:
    key = create_key(tmp_path / "g.db", display_name="a", scopes=("chat",))
    asked = exchange(x_acting_key=key.id, x_kala_acting_key=key.id)
    asked.headers["acting_key"] = key.id
    with pytest.raises(UnauthenticatedError, match="no API key"):
        await gate(store).admit(asked, rpc="HTTP POST /v1/x", scope=CHAT)
