"""k of n maintainers: fewer than k never load, whoever else signed and however often."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.errors import ConstitutionError
from kala.ethics.constitution import (
    DEVELOPMENT_PUBLIC_KEY,
    Trust,
    load_public_key,
    majority,
    verify_constitution,
)
from kala.ethics.manifest import build_manifest, key_id
from kala.ethics.signatures import TrustPolicy, parse_signatures, sign_manifest, verify_signatures
from tests.unit.ethics.conftest import CONSTITUTION, write_public_key

FILES = {"laws.yaml": b"laws: []\n"}
MANIFEST = build_manifest(FILES, "1.0")


@pytest.fixture(scope="module")
def keys() -> list[Ed25519PrivateKey]:
    return [Ed25519PrivateKey.generate() for _ in range(4)]


def signed_by(*keys: Ed25519PrivateKey) -> bytes:
    return b"".join(sign_manifest(MANIFEST, key) for key in keys)


def policy_of(*keys: Ed25519PrivateKey, threshold: int) -> TrustPolicy:
    return TrustPolicy({key_id(key.public_key()): key.public_key() for key in keys}, threshold)


def ids(*keys: Ed25519PrivateKey) -> tuple[str, ...]:
    return tuple(key_id(key.public_key()) for key in keys)


@pytest.mark.parametrize("signers", [0, 1], ids=["none", "one"])
def test_fewer_signatures_than_the_threshold_are_refused_with_how_many_of_how_many(
    keys: list[Ed25519PrivateKey], signers: int
) -> None:
    with pytest.raises(ConstitutionError, match=rf"{signers} of the 2 signatures .* from 3 trusted keys"):
        verify_signatures(MANIFEST, signed_by(*keys[:signers]), policy_of(*keys[:3], threshold=2))


def test_enough_signatures_hold_and_are_named(keys: list[Ed25519PrivateKey]) -> None:
    policy = policy_of(*keys[:3], threshold=2)
    assert verify_signatures(MANIFEST, signed_by(keys[0], keys[2]), policy) == ids(keys[0], keys[2])


def test_one_key_that_signs_twice_counts_once(keys: list[Ed25519PrivateKey]) -> None:
    with pytest.raises(ConstitutionError, match="1 of the 2"):
        verify_signatures(MANIFEST, signed_by(keys[0], keys[0]), policy_of(*keys[:2], threshold=2))


def test_strangers_do_not_count_towards_the_threshold(keys: list[Ed25519PrivateKey]) -> None:
    policy = policy_of(*keys[:2], threshold=2)
    with pytest.raises(ConstitutionError, match="1 of the 2"):
        verify_signatures(MANIFEST, signed_by(keys[0], keys[2], keys[3]), policy)
    assert verify_signatures(MANIFEST, signed_by(keys[3], *keys[:2]), policy) == ids(*keys[:2])


def test_a_second_line_of_a_trusted_key_that_does_not_hold_spoils_the_first(
    keys: list[Ed25519PrivateKey],
) -> None:
    other = sign_manifest(build_manifest(FILES, "2.0"), keys[0])
    for lines in (signed_by(keys[0]) + other, other + signed_by(keys[0])):
        with pytest.raises(ConstitutionError, match="does not hold"):
            verify_signatures(MANIFEST, lines, policy_of(keys[0], threshold=1))


def test_every_change_of_a_signature_file_is_noticed(keys: list[Ed25519PrivateKey]) -> None:
    # Base64 has spare bits and text has several ends of line: both once let a changed byte pass.
    policy, lines = policy_of(keys[0], threshold=1), signed_by(keys[0])
    spelled = {position: range(1, 256) for position in (len(lines) - 4, len(lines) - 3, len(lines) - 1)}
    for position in range(len(lines)):
        for change in spelled.get(position, (1, 2, 4, 8, 16, 32, 64, 128)):
            changed = bytearray(lines)
            changed[position] ^= change
            with pytest.raises(ConstitutionError):
                verify_signatures(MANIFEST, bytes(changed), policy)


@pytest.mark.parametrize("tail", [b"\n", b" ", b"\r\n", b"x"], ids=repr)
def test_nothing_may_follow_the_last_line(keys: list[Ed25519PrivateKey], tail: bytes) -> None:
    with pytest.raises(ConstitutionError, match="not a signature file"):
        parse_signatures(signed_by(keys[0]) + tail)


@pytest.mark.parametrize(("keys", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_unless_told_a_majority_of_the_keys_must_sign(keys: int, needed: int) -> None:
    assert majority(keys) == needed


class TestDirectory:
    @pytest.fixture
    def directory(self, tmp_path: Path, keys: list[Ed25519PrivateKey]) -> Path:
        path = tmp_path / "constitution"
        path.mkdir()
        (path / "laws.yaml").write_bytes(FILES["laws.yaml"])
        (path / "manifest.json").write_bytes(MANIFEST)
        (path / "manifest.sig").write_bytes(signed_by(*keys[:2]))
        return path

    @pytest.fixture
    def files(self, tmp_path: Path, keys: list[Ed25519PrivateKey]) -> list[Path]:
        return [write_public_key(tmp_path / f"{number}.pub", key) for number, key in enumerate(keys)]

    def test_two_of_three_load_by_default(
        self, directory: Path, files: list[Path], keys: list[Ed25519PrivateKey]
    ) -> None:
        verified = verify_constitution(directory, Trust.pinned(*files[:3]))
        assert verified.key_ids == ids(*keys[:2])
        assert (verified.threshold, verified.trusted_keys) == (2, 3)

    def test_three_of_three_do_not(self, directory: Path, files: list[Path]) -> None:
        with pytest.raises(ConstitutionError, match=r"manifest\.sig: signed by .* 2 of the 3 signatures"):
            verify_constitution(directory, Trust.pinned(*files[:3], threshold=3))

    def test_one_key_in_two_files_is_one_key(self, directory: Path, files: list[Path]) -> None:
        copy = files[0].with_name("copy.pub")
        copy.write_bytes(files[0].read_bytes())
        verified = verify_constitution(directory, Trust.pinned(files[0], copy))
        assert (verified.threshold, verified.trusted_keys) == (1, 1)
        with pytest.raises(ConstitutionError, match="must be 1 to 1, as many as there are different"):
            verify_constitution(directory, Trust.pinned(files[0], copy, threshold=2))

    @pytest.mark.parametrize("threshold", [0, -1, 3])
    def test_a_threshold_that_makes_no_sense_is_refused(
        self, directory: Path, files: list[Path], threshold: int
    ) -> None:
        with pytest.raises(
            ConstitutionError, match=f"trusted_key_threshold: must be 1 to 2.*not {threshold}"
        ):
            verify_constitution(directory, Trust.pinned(*files[:2], threshold=threshold))


def test_development_trust_takes_its_one_key() -> None:
    verified = verify_constitution(CONSTITUTION, Trust.development())
    assert (verified.threshold, verified.trusted_keys) == (1, 1)
    assert (
        load_public_key(CONSTITUTION / "dev" / "development.pub").public_bytes_raw() == DEVELOPMENT_PUBLIC_KEY
    )
