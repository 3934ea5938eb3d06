"""A registry does not open over keys, profiles or lists that do not hold."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from kala.errors import FailedPreconditionError
from services.common.keys import key_id, write_public_key
from services.trainer.config import TrainerSettings
from services.trainer.places import Places
from services.trainer.registry.opening import REVOCATIONS_FILE, open_registry
from services.trainer.store.store import Store
from tests.fakes.adapters import ETHICS, LOG, TRAINER, profile_file


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = await Store.open(tmp_path / "trainer.db")
    yield store
    store.close()


async def opened(store: Store, folder: Path, **settings: Any):
    places = Places(folder / "state")
    places.make()
    return await open_registry(
        TrainerSettings(state_dir=places.root, **settings),
        places=places,
        store=store,
        private_key=TRAINER,
        issuer="local:trainer",
        profile_dirs=[folder / "profiles"],
        now=lambda: Timestamp(seconds=1_700_000_000),
    )


async def test_what_the_operator_pinned_is_what_counts(store: Store, tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "test.json").write_bytes(profile_file())
    (tmp_path / "log.vkey").write_text(f"{LOG.verifier}\n")
    write_public_key(tmp_path / "old.pub", ETHICS.public_key())
    registry = await opened(
        store, tmp_path, audit_vkey_file=tmp_path / "log.vkey", trainer_public_keys=(tmp_path / "old.pub",)
    )
    assert [profile.content.name for profile in registry.rules.profiles.values()] == ["test"]
    # An earlier key of this trainer still counts, beside the one it signs with.
    assert set(registry.rules.trust.trainer) == {key_id(TRAINER.public_key()), key_id(ETHICS.public_key())}
    assert [verifier.name for verifier in registry.rules.trust.gates.log] == [LOG.verifier.name]
    assert not registry.rules.demo_allowed


async def test_what_does_not_hold_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "broken.json").write_text("{")
    with pytest.raises(FailedPreconditionError, match=r"broken\.json does not hold"):
        await opened(store, tmp_path)
    (tmp_path / "profiles" / "broken.json").unlink()
    (tmp_path / "log.vkey").write_text("no key\n")
    with pytest.raises(FailedPreconditionError, match="a log's public keys"):
        await opened(store, tmp_path, audit_vkey_file=tmp_path / "log.vkey")


async def test_revocations_that_the_file_lost_come_back_from_the_database(
    store: Store, tmp_path: Path
) -> None:
    registry = await opened(store, tmp_path)
    registry.revocations.add({bytes(32): "it lies"})
    await store.put_revocations(registry.revocations.serial, registry.revocations.signed)
    (tmp_path / "state" / REVOCATIONS_FILE).unlink()
    again = await opened(store, tmp_path)
    assert again.revocations.revoked == {bytes(32)}


async def test_a_revocation_that_reached_the_file_alone_outlives_the_file(
    store: Store, tmp_path: Path
) -> None:
    older = (await opened(store, tmp_path)).revocations
    file = tmp_path / "state" / REVOCATIONS_FILE
    before = file.read_bytes()
    older.add({bytes(32): "it lies"})  # and the service ends before the database has it
    assert (await opened(store, tmp_path)).revocations.revoked == {bytes(32)}
    file.write_bytes(before)  # somebody puts back the list of before, whose signature is genuine
    assert (await opened(store, tmp_path)).revocations.revoked == {bytes(32)}
