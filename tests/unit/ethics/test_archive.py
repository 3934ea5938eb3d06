from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.errors import FailedPreconditionError
from kala.ethics.constitution import Trust, VerifiedConstitution
from kala.ethics.manifest import build_manifest, parse_manifest
from kala.ethics.signatures import sign_manifest
from services.ethics.archive import Archive
from tests.unit.ethics.conftest import write_public_key


class Seats:
    """Counts which versions were given judges."""

    def __init__(self) -> None:
        self.versions: list[str] = []

    def __call__(self, verified: VerifiedConstitution) -> Any:  # Any: stands for a bench
        self.versions.append(verified.version)
        return SimpleNamespace(constitution=SimpleNamespace(digest=verified.digest, version=verified.version))


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def trust(tmp_path: Path, key: Ed25519PrivateKey) -> Trust:
    return Trust.pinned(write_public_key(tmp_path / "trusted.pub", key))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "archive"
    (path / "no constitution").mkdir(parents=True)
    (path / "a file").write_text("x")
    return path


def store(directory: Path, version: str, key: Ed25519PrivateKey) -> bytes:
    folder = directory / f"v{version}"
    folder.mkdir()
    manifest = build_manifest({"laws.yaml": version.encode()}, version)
    (folder / "laws.yaml").write_text(version)
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "manifest.sig").write_bytes(sign_manifest(manifest, key))
    return parse_manifest(manifest).digest


async def test_a_version_is_found_by_its_digest_and_loaded_once(
    directory: Path, trust: Trust, key: Ed25519PrivateKey
) -> None:
    store(directory, "1", key)
    digest, seats = store(directory, "2", key), Seats()
    archive = Archive(directory, trust, seats)
    benches = await asyncio.gather(archive.bench(digest), archive.bench(digest))
    assert benches[0].constitution.version == "2"
    assert seats.versions == ["2"]


async def test_only_so_many_versions_are_kept_and_the_longest_unused_goes(
    directory: Path, trust: Trust, key: Ed25519PrivateKey
) -> None:
    digests = [store(directory, str(number), key) for number in (1, 2, 3)]
    seats = Seats()
    archive = Archive(directory, trust, seats, kept=2)
    for number in (0, 1, 0, 2, 0, 1):
        await archive.bench(digests[number])
    assert seats.versions == ["1", "2", "3", "2"]


async def test_a_missing_version_is_named(directory: Path, trust: Trust) -> None:
    with pytest.raises(FailedPreconditionError, match=r"constitution abababababababab .* not in the archive"):
        await Archive(directory, trust, Seats()).bench(b"\xab" * 32)


async def test_asking_for_what_is_not_there_costs_no_loaded_version(
    directory: Path, trust: Trust, key: Ed25519PrivateKey
) -> None:
    digest, seats = store(directory, "1", key), Seats()
    archive = Archive(directory, trust, seats)
    await archive.bench(digest)
    with pytest.raises(FailedPreconditionError):
        await archive.bench(b"\xab" * 32)
    await archive.bench(digest)
    assert seats.versions == ["1"]


@pytest.mark.parametrize("exists", [True, False], ids=["unset", "gone"])
async def test_without_an_archive_the_version_is_named(tmp_path: Path, trust: Trust, exists: bool) -> None:
    archive = Archive(None if exists else tmp_path / "nowhere", trust, Seats())
    with pytest.raises(FailedPreconditionError, match="constitution abababababababab is not at hand"):
        await archive.bench(b"\xab" * 32)


async def test_a_version_that_is_not_what_was_signed_is_refused_and_named(
    directory: Path, trust: Trust, key: Ed25519PrivateKey
) -> None:
    digest, seats = store(directory, "1", key), Seats()
    (directory / "v1" / "laws.yaml").write_text("2")
    with pytest.raises(FailedPreconditionError, match=r"folder v1, laws\.yaml: its bytes are not the ones"):
        await Archive(directory, trust, seats).bench(digest)
    assert seats.versions == []


async def test_a_version_signed_by_strangers_is_refused(directory: Path, trust: Trust) -> None:
    digest = store(directory, "1", Ed25519PrivateKey.generate())
    with pytest.raises(FailedPreconditionError, match=r"folder v1, manifest\.sig: signed by"):
        await Archive(directory, trust, Seats()).bench(digest)


async def test_a_folder_that_changes_while_it_is_read_is_refused(
    directory: Path, trust: Trust, key: Ed25519PrivateKey
) -> None:
    digest = store(directory, "1", key)
    other = SimpleNamespace(constitution=SimpleNamespace(digest=b"other"))
    archive = Archive(directory, trust, lambda _: other)  # type: ignore[arg-type,return-value] # stands for a bench
    with pytest.raises(FailedPreconditionError, match="changed in the archive"):
        await archive.bench(digest)
