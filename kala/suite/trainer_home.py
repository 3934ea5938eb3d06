"""Where the trainer of one machine keeps its things, and what inference must know before it can load an adapter.

The trainer's own packages may be missing: a suite chats without it, and says so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kala.errors import FailedPreconditionError
from kala.suite.keyring import Keyring, signing_key
from kala.suite.layout import StateLayout, make_private_directory, write_private_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TRAINER: Final = "trainer"

REQUIRED_PACKAGES: Final = ("fsspec", "httpx_aiohttp", "services.trainer.__main__", "sqlalchemy")
"""One of each that the service needs; what its processes need besides is said by the job that misses it."""

_PROFILES: Final = ("evaluation", "profiles")
_EMBEDDED: Final = ("embedded", "model")
_REVOCATIONS_DOMAIN: Final = b"kala-adapter-revocations-v1\0"
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class TrainerHome:
    """The trainer's folder, and the files that lead from it to inference."""

    state: Path
    profiles: tuple[Path, ...]
    """The gate profiles that this release ships."""
    embedded: Path | None
    """The embedded demo model, which is the base that every machine has."""

    @property
    def adapters(self) -> Path:
        """Where adapters lie, one folder each; inference loads from here and from nowhere else."""
        return self.state / "adapters"

    @property
    def database(self) -> Path:
        """The trainer's own memory, where it was given no other."""
        return self.state / "trainer.db"

    @property
    def data(self) -> Path:
        """Where files lie that datasets name."""
        return self.state / "data"

    @property
    def revocations(self) -> Path:
        """The signed list of adapters that may no longer serve."""
        return self.state / "revocations.binpb"


def trainer_home(layout: StateLayout, keyring: Keyring) -> TrainerHome:
    """Prepare the home; FailedPreconditionError says why the service cannot run on this machine."""
    missing = [name for name in REQUIRED_PACKAGES if not _is_installed(name)]
    if missing:
        raise FailedPreconditionError(
            f"its packages are not installed ({', '.join(missing)} is missing): "
            "run `pip install 'kala-suite[suite]'`, or `make run` in a clone"
        )
    home = TrainerHome(layout.data / TRAINER, _shipped_profiles(), _embedded_model())
    for folder in (home.state, home.adapters, home.data):
        make_private_directory(folder)
    # Where the trainer has worked before, a list that is gone is no new beginning: only the trainer knows what it held.
    if not home.revocations.exists() and not home.database.exists():
        write_private_file(home.revocations, first_revocations(signing_key(keyring.trainer_signing_key)))
    return home


def first_revocations(key: Ed25519PrivateKey, *, now: float | None = None) -> bytes:
    """Sign the list that revokes nothing, older than any that the trainer will make.

    Inference does not start without its list, for a list that is gone hides what was revoked.
    """
    from kala.common.v1 import adapter_pb2

    listed = adapter_pb2.RevocationList(schema=_SCHEMA)
    listed.signed_at.FromSeconds(int(time.time() if now is None else now))
    data = listed.SerializeToString(deterministic=True)
    signature = adapter_pb2.ManifestSignature(
        key_id=hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()[:16],
        signature=key.sign(_REVOCATIONS_DOMAIN + data),
    )
    signed = adapter_pb2.SignedRevocationList(list=data, signatures=[signature])
    return signed.SerializeToString(deterministic=True)


def bases_directory(ambient: Mapping[str, str]) -> str:
    """Say where pulled models lie: where inference keeps them."""
    return ambient.get("KALA_INFERENCE_MODELS_DIR") or str(Path("~/.cache/kala/models").expanduser())


def _shipped_profiles() -> tuple[Path, ...]:
    package = _folder_of("services.trainer")
    return () if package is None else tuple(sorted(package.joinpath(*_PROFILES).glob("*.json")))


def _embedded_model() -> Path | None:
    package = _folder_of("services.inference")
    folder = None if package is None else package.joinpath(*_EMBEDDED)
    return folder if folder is not None and folder.is_dir() else None


def _folder_of(package: str) -> Path | None:
    """Give the folder of a package without importing it: a service's code stays in its own process."""
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
