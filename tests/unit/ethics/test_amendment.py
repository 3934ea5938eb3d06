from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.errors import ConstitutionError, InvalidArgumentError
from kala.ethics.amendment import compare, load_signing_key, prepare, sign, signing_of, write_manifest
from kala.ethics.constitution import (
    Trust,
    VerifiedConstitution,
    read_unverified,
    trust_policy,
    verify_constitution,
)
from kala.ethics.manifest import key_id
from kala.ethics.signatures import Standing
from tests.unit.ethics.conftest import CONSTITUTION, write_public_key

TODAY = dt.date(2026, 11, 21)
NEXT_YEAR = dt.date(2027, 11, 21)


@pytest.fixture(scope="module")
def old() -> VerifiedConstitution:
    return verify_constitution(CONSTITUTION, Trust.development())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The shipped constitution with one word of it edited."""
    path = Path(shutil.copytree(CONSTITUTION, tmp_path / "new"))
    laws = path / "laws.yaml"
    laws.write_bytes(laws.read_bytes().replace(b"name: ", b"name: The law of ", 1))
    return path


@pytest.fixture
def keys() -> list[Ed25519PrivateKey]:
    return [Ed25519PrivateKey.generate() for _ in range(3)]


@pytest.fixture
def trust(tmp_path: Path, keys: list[Ed25519PrivateKey]) -> Trust:
    return Trust.pinned(
        *(write_public_key(tmp_path / f"{number}.pub", key) for number, key in enumerate(keys))
    )


def prepared(old: VerifiedConstitution, copy: Path) -> None:
    prepare(old, copy, version="1.1", review_by=NEXT_YEAR, today=TODAY)


def test_a_prepared_version_is_unsigned_and_names_what_it_amends(
    old: VerifiedConstitution, copy: Path, trust: Trust
) -> None:
    amendment = prepare(old, copy, version="1.1", review_by=NEXT_YEAR, today=TODAY)
    assert (amendment.manifest.version, amendment.manifest.previous) == ("1.1", old.digest)
    assert amendment.manifest.review_by == NEXT_YEAR
    assert [change.path for change in amendment.files] == ["laws.yaml"]
    assert [law.number for law in amendment.laws if law.lines] == [0]
    with pytest.raises(ConstitutionError, match=r"signed by nobody.*0 of the 2"):
        verify_constitution(copy, trust)


def test_each_signature_counts_until_there_are_enough(
    old: VerifiedConstitution, copy: Path, keys: list[Ed25519PrivateKey], trust: Trust
) -> None:
    prepared(old, copy)
    policy = trust_policy(copy, trust)
    missing = [signing_of(copy, policy).missing]
    for key in keys[:2]:
        sign(copy, key)
        missing.append(signing_of(copy, policy).missing)
    assert missing == [2, 1, 0]
    assert signing_of(copy, policy).holds
    verified = verify_constitution(copy, trust)
    assert verified.key_ids == tuple(key_id(key.public_key()) for key in keys[:2])


def test_a_key_that_signs_again_has_one_line(
    old: VerifiedConstitution, copy: Path, keys: list[Ed25519PrivateKey]
) -> None:
    prepared(old, copy)
    for key in (keys[0], keys[1], keys[0]):
        sign(copy, key)
    assert len((copy / "manifest.sig").read_bytes().splitlines()) == 2


def test_preparing_again_forgets_the_signatures(
    old: VerifiedConstitution, copy: Path, keys: list[Ed25519PrivateKey]
) -> None:
    prepared(old, copy)
    sign(copy, keys[0])
    prepared(old, copy)
    assert signing_of(copy, None).standings == {}


def test_a_broken_or_strange_signature_is_said_to_be_one(
    old: VerifiedConstitution, copy: Path, keys: list[Ed25519PrivateKey], trust: Trust
) -> None:
    stranger = Ed25519PrivateKey.generate()
    prepared(old, copy)
    sign(copy, keys[0])
    stale = (copy / "manifest.sig").read_bytes()
    write_manifest(copy, "1.2", read_unverified(copy), review_by=NEXT_YEAR, previous=old.digest)
    (copy / "manifest.sig").write_bytes(stale)
    sign(copy, stranger)
    signing = signing_of(copy, trust_policy(copy, trust))
    assert signing.standings == {
        key_id(keys[0].public_key()): Standing.BROKEN,
        key_id(stranger.public_key()): Standing.STRANGER,
    }
    assert not signing.holds
    sign(copy, keys[0])
    sign(copy, keys[1])
    assert signing_of(copy, trust_policy(copy, trust)).holds


def spoil_changed(copy: Path) -> None:
    (copy / "laws.yaml").write_text("laws: []\n")


def spoil_added(copy: Path) -> None:
    (copy / "extra.yaml").write_text("x")


def spoil_removed(copy: Path) -> None:
    (copy / "texts" / "en.yaml").unlink()


@pytest.mark.parametrize("spoil", [spoil_changed, spoil_added, spoil_removed])
def test_nobody_can_sign_or_show_files_that_changed_since_they_were_prepared(
    old: VerifiedConstitution, copy: Path, keys: list[Ed25519PrivateKey], spoil: Callable[[Path], None]
) -> None:
    prepared(old, copy)
    spoil(copy)
    for act in (
        lambda: sign(copy, keys[0]),
        lambda: signing_of(copy, None),
        lambda: compare(old, copy),
    ):
        with pytest.raises(ConstitutionError, match=r"laws\.yaml|extra\.yaml|en\.yaml"):
            act()
    assert (copy / "manifest.sig").read_bytes() == b""


def test_without_trust_nothing_is_said_to_be_missing_nor_to_hold(
    old: VerifiedConstitution, copy: Path, keys: list[Ed25519PrivateKey]
) -> None:
    prepared(old, copy)
    sign(copy, keys[0])
    signing = signing_of(copy, None)
    assert (signing.missing, signing.holds) == (0, False)


def test_a_maintainer_is_shown_what_was_prepared(old: VerifiedConstitution, copy: Path) -> None:
    amendment = prepare(old, copy, version="1.1", review_by=NEXT_YEAR, today=TODAY)
    assert compare(old, copy) == amendment


def test_a_difference_is_shown_only_from_the_version_that_is_amended(
    old: VerifiedConstitution, copy: Path
) -> None:
    write_manifest(copy, "1.1", read_unverified(copy), review_by=NEXT_YEAR, previous=b"p" * 32)
    with pytest.raises(ConstitutionError, match=f"amends {(b'p' * 8).hex()}, not version {old.version}"):
        compare(old, copy)
    write_manifest(copy, "1.1", read_unverified(copy), review_by=NEXT_YEAR, previous=None)
    with pytest.raises(ConstitutionError, match="amends none"):
        compare(old, copy)


@pytest.mark.parametrize(
    ("version", "review_by", "field"),
    [("1.0.0", NEXT_YEAR, "version"), ("1.1", TODAY, "review_by"), ("1.1", dt.date(2020, 1, 1), "review_by")],
    ids=["same version", "today", "past"],
)
def test_an_amendment_needs_a_name_and_a_date_of_its_own(
    old: VerifiedConstitution, copy: Path, version: str, review_by: dt.date, field: str
) -> None:
    before = (copy / "manifest.json").read_bytes()
    with pytest.raises(InvalidArgumentError) as caught:
        prepare(old, copy, version=version, review_by=review_by, today=TODAY)
    assert caught.value.field == field
    assert (copy / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("version", ["", "x" * 65, "1\x1b[2J"], ids=["empty", "long", "control"])
def test_a_version_that_no_manifest_may_have_is_not_written(
    old: VerifiedConstitution, copy: Path, version: str
) -> None:
    before = (copy / "manifest.json").read_bytes()
    with pytest.raises(ConstitutionError, match="version must be"):
        prepare(old, copy, version=version, review_by=NEXT_YEAR, today=TODAY)
    assert (copy / "manifest.json").read_bytes() == before


def test_laws_that_cannot_be_read_are_not_prepared(old: VerifiedConstitution, copy: Path) -> None:
    (copy / "laws.yaml").write_text("laws: [")
    with pytest.raises(ConstitutionError, match=r"laws\.yaml: not YAML"):
        prepared(old, copy)


def test_a_place_that_cannot_be_written_is_named(old: VerifiedConstitution, copy: Path) -> None:
    (copy / "manifest.sig").unlink()
    (copy / "manifest.sig").mkdir()
    with pytest.raises(ConstitutionError, match=r"manifest\.sig: cannot be written"):
        prepared(old, copy)


def private_pem(key: Ed25519PrivateKey, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def test_a_signing_key_is_a_plain_ed25519_key(tmp_path: Path, keys: list[Ed25519PrivateKey]) -> None:
    path = tmp_path / "my.key"
    path.write_bytes(private_pem(keys[0]))
    assert load_signing_key(path).private_bytes_raw() == keys[0].private_bytes_raw()
    other = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for content, problem in (
        (other, "not an Ed25519 private key"),
        (private_pem(keys[0], b"secret"), "without a password"),
        (b"x", "not a readable private key"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConstitutionError, match=rf"my\.key: .*{problem}"):
            load_signing_key(path)
    path.unlink()
    with pytest.raises(ConstitutionError, match=r"my\.key: not a readable private key"):
        load_signing_key(path)
