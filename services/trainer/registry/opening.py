"""Puts the registry together from the trainer's settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp

from kala.audit.note import Verifier
from kala.common.v1.measurement_pb2 import MEASURER_ETHICS, MEASURER_TOOLS
from kala.errors import FailedPreconditionError, KalaError
from services.common.adapter_manifest import AdapterTrust
from services.common.gate_profile import Profile, read_profile
from services.common.gates import GateTrust
from services.common.keys import key_id, load_public_keys
from services.trainer.config import TrainerSettings
from services.trainer.places import Places
from services.trainer.registry.promotion import GateRules, Signing
from services.trainer.registry.registry import Registry
from services.trainer.registry.revocations import Revocations
from services.trainer.registry.shelf import Shelf
from services.trainer.store.store import Store

REVOCATIONS_FILE: Final = "revocations.binpb"


async def open_registry(
    settings: TrainerSettings,
    *,
    places: Places,
    store: Store,
    private_key: Ed25519PrivateKey,
    issuer: str,
    profile_dirs: Iterable[Path],
    now: Callable[[], Timestamp],
) -> Registry:
    """The registry of one process; raises FailedPreconditionError where a key, a profile or the revocations do not hold.

    `profile_dirs` are read in order; of two profiles of one digest it does not matter which is taken.
    """
    public = private_key.public_key()
    trusted = {**load_public_keys(settings.trainer_public_keys), key_id(public): public}
    shelf = Shelf(places.adapters)
    await asyncio.to_thread(shelf.open)
    revocations = await asyncio.to_thread(
        Revocations,
        settings.revocations_file or places.root / REVOCATIONS_FILE,
        private_key,
        trusted,
        now=now,
        stored=await store.revocations(),
    )
    measurers = {
        MEASURER_ETHICS: load_public_keys(settings.ethics_public_keys),
        MEASURER_TOOLS: load_public_keys(settings.tools_public_keys),
    }
    log = [] if settings.audit_vkey_file is None else _log_keys(settings.audit_vkey_file)
    registry = Registry(
        store=store,
        shelf=shelf,
        revocations=revocations,
        signing=Signing(private_key, issuer),
        rules=GateRules(
            AdapterTrust(trusted, GateTrust(log, measurers)),
            await asyncio.to_thread(read_profiles, profile_dirs),
            demo_allowed=settings.accept_demo_profiles,
        ),
        now=now,
    )
    # An earlier life may have ended between the file and the database.
    await registry.keep_list()
    return registry


def read_profiles(directories: Iterable[Path]) -> dict[bytes, Profile]:
    """The gate profiles of some directories, by digest; raises FailedPreconditionError naming one that does not hold."""
    found: dict[bytes, Profile] = {}
    for directory in directories:
        for path in sorted(directory.glob("*.json")):
            try:
                profile = read_profile(path.read_bytes())
            except (OSError, KalaError) as error:
                raise FailedPreconditionError(f"gate profile {path} does not hold: {error}") from error
            found[profile.digest] = profile
    return found


def _log_keys(path: Path) -> list[Verifier]:
    try:
        return [Verifier.parse(line) for line in path.read_text().split()]
    except (OSError, KalaError, ValueError) as error:
        raise FailedPreconditionError(f"{path} does not hold a log's public keys: {error}") from error
