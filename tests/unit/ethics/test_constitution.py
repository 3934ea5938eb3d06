from __future__ import annotations

import base64
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kala.errors import ConstitutionError
from kala.ethics.constitution import (
    DEVELOPMENT_PUBLIC_KEY,
    MAX_FILE_BYTES,
    MAX_WEIGHTS_BYTES,
    WEIGHTS_NAME,
    Trust,
    load_public_key,
    max_bytes,
    recheck_constitution,
    verify_constitution,
)
from kala.ethics.manifest import build_manifest, key_id, parse_manifest
from kala.ethics.signatures import TrustPolicy, sign_manifest, verify_signatures

REPOSITORY = Path(__file__).parents[3]
SHIPPED = REPOSITORY / "constitution"
FILES = {"laws.yaml": b"laws: []\n", "hard_blocks/law0.yaml": b"law: 0\n"}


def write_public(path: Path, key: Ed25519PrivateKey) -> Path:
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    path.write_bytes(pem)
    return path


def write_signed(directory: Path, *keys: Ed25519PrivateKey, files: dict[str, bytes] = FILES) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    manifest = build_manifest(files, "1.0")
    (directory / "manifest.json").write_bytes(manifest)
    (directory / "manifest.sig").write_bytes(b"".join(sign_manifest(manifest, key) for key in keys))


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def directory(tmp_path: Path, key: Ed25519PrivateKey) -> Path:
    path = tmp_path / "constitution"
    path.mkdir()
    write_signed(path, key)
    return path


@pytest.fixture
def trust(tmp_path: Path, key: Ed25519PrivateKey) -> Trust:
    return Trust.pinned(write_public(tmp_path / "trusted.pem", key))


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    copy = tmp_path / "shipped"
    shutil.copytree(SHIPPED, copy)
    return copy


def test_the_shipped_constitution_holds_under_the_development_key_and_shows_a_banner() -> None:
    verified = verify_constitution(SHIPPED, Trust.development())
    assert verified.development
    assert verified.banner is not None
    assert "laws.yaml" in verified.files
    assert verified.digest == parse_manifest((SHIPPED / "manifest.json").read_bytes()).digest


def test_a_constitution_signed_by_a_pinned_key_holds_without_a_banner(directory: Path, trust: Trust) -> None:
    verified = verify_constitution(directory, trust)
    assert verified.banner is None
    assert dict(verified.files) == FILES
    assert verified.version == "1.0"


def test_the_development_key_in_the_repository_is_the_one_pinned_in_the_code() -> None:
    assert load_public_key(SHIPPED / "dev" / "development.pub").public_bytes_raw() == DEVELOPMENT_PUBLIC_KEY


def test_pinned_trust_refuses_the_development_key(tmp_path: Path) -> None:
    pinned = tmp_path / "development.pub"
    shutil.copy(SHIPPED / "dev" / "development.pub", pinned)
    with pytest.raises(ConstitutionError, match=r"development\.pub: this is the public development key"):
        verify_constitution(SHIPPED, Trust.pinned(pinned))


def test_development_trust_refuses_every_other_key(directory: Path) -> None:
    with pytest.raises(ConstitutionError, match=r"manifest\.sig: signed by .*none of these is a trusted key"):
        verify_constitution(directory, Trust.development())


def test_pinned_trust_refuses_the_shipped_constitution(trust: Trust) -> None:
    with pytest.raises(ConstitutionError, match=r"manifest\.sig"):
        verify_constitution(SHIPPED, trust)


@pytest.mark.parametrize("trusts_shipped", [True, False], ids=["development", "pinned"])
def test_replacing_laws_manifest_signature_and_shipped_key_together_still_stops_it(
    shipped: Path, tmp_path: Path, trusts_shipped: bool
) -> None:
    operator, attacker = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    if not trusts_shipped:
        shutil.rmtree(shipped)
        shipped.mkdir()
        write_signed(shipped, operator)
    trust = (
        Trust.development() if trusts_shipped else Trust.pinned(write_public(tmp_path / "op.pem", operator))
    )
    verify_constitution(shipped, trust)
    files = {
        path.relative_to(shipped).as_posix(): path.read_bytes()
        for path in shipped.rglob("*")
        if path.is_file() and not path.name.startswith("manifest.") and path.parent.name != "dev"
    }
    files["laws.yaml"] = b"laws: [anything goes]\n"
    write_signed(shipped, attacker, files=files)
    (shipped / "dev").mkdir(exist_ok=True)
    write_public(shipped / "dev" / "development.pub", attacker)
    with pytest.raises(ConstitutionError, match=r"manifest\.sig: signed by"):
        verify_constitution(shipped, trust)


def test_a_trusted_key_inside_the_directory_it_protects_is_refused(
    directory: Path, key: Ed25519PrivateKey
) -> None:
    (directory / "dev").mkdir()
    inside = write_public(directory / "dev" / "trusted.pem", key)
    with pytest.raises(ConstitutionError, match=r"trusted\.pem: a trusted key must not come from"):
        verify_constitution(directory, Trust.pinned(inside))


def test_pinned_trust_without_keys_says_which_setting_is_missing(directory: Path) -> None:
    with pytest.raises(ConstitutionError, match="trusted_key_files"):
        verify_constitution(directory, Trust.pinned())


SHIPPED_FILES = sorted(
    path.relative_to(SHIPPED).as_posix()
    for path in SHIPPED.rglob("*")
    if path.is_file() and path.parent.name != "dev"
)


VERIFIERS = pytest.mark.parametrize(
    "verify", [verify_constitution, recheck_constitution], ids=["load", "recheck"]
)


@VERIFIERS
@pytest.mark.parametrize("name", SHIPPED_FILES)
def test_one_changed_byte_stops_the_load_and_names_the_file(
    shipped: Path, name: str, verify: Callable[[Path, Trust], object]
) -> None:
    path = shipped / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConstitutionError, match=name if "manifest" not in name else "manifest"):
        verify(shipped, Trust.development())


@pytest.mark.parametrize("name", SHIPPED_FILES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_any_file_stops_the_load_and_the_recheck(
    shipped: Path, name: str, data: st.DataObject
) -> None:
    path = shipped / name
    original = path.read_bytes()
    content = bytearray(original)
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        for verify in (verify_constitution, recheck_constitution):
            with pytest.raises(ConstitutionError):
                verify(shipped, Trust.development())
    finally:
        path.write_bytes(original)


def test_the_recheck_finds_what_the_load_found() -> None:
    assert recheck_constitution(SHIPPED, Trust.development()) == (
        verify_constitution(SHIPPED, Trust.development()).manifest
    )


def test_weights_may_be_large_and_nothing_else() -> None:
    assert max_bytes(WEIGHTS_NAME) == MAX_WEIGHTS_BYTES >= 40_000_000
    assert max_bytes("classifier/tokenizer.json") == max_bytes("laws.yaml") == MAX_FILE_BYTES
    assert max_bytes("manifest.json") < MAX_FILE_BYTES


def test_a_file_as_large_as_weights_is_loaded_once_and_rechecked_in_little_memory(
    tmp_path: Path, key: Ed25519PrivateKey, trust: Trust
) -> None:
    weights = bytes(24 * 1024 * 1024)
    write_signed(tmp_path / "constitution", key, files=FILES | {WEIGHTS_NAME: weights})
    verified = verify_constitution(tmp_path / "constitution", trust)
    assert verified.files[WEIGHTS_NAME] == weights
    assert dict(verified.without_files().files) == {}
    assert verified.without_files().digest == verified.digest
    tracemalloc.start()
    try:
        recheck_constitution(tmp_path / "constitution", trust)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1024 * 1024


def test_weights_beyond_their_limit_are_refused_though_signed(
    tmp_path: Path, key: Ed25519PrivateKey, trust: Trust
) -> None:
    path = tmp_path / "constitution"
    write_signed(path, key, files=FILES | {WEIGHTS_NAME: bytes(MAX_WEIGHTS_BYTES + 1)})
    for verify in (verify_constitution, recheck_constitution):
        with pytest.raises(ConstitutionError, match=rf"model\.onnx: larger than {MAX_WEIGHTS_BYTES}"):
            verify(path, trust)


def test_nothing_but_the_manifest_is_read_before_its_signatures_hold(directory: Path, tmp_path: Path) -> None:
    (directory / "laws.yaml").write_bytes(bytes(MAX_FILE_BYTES + 1))
    stranger = Trust.pinned(write_public(tmp_path / "stranger.pem", Ed25519PrivateKey.generate()))
    with pytest.raises(ConstitutionError, match=r"manifest\.sig: signed by"):
        verify_constitution(directory, stranger)


@pytest.mark.parametrize("name", [name for name in SHIPPED_FILES if "law3" in name or "manifest" in name])
def test_a_missing_file_stops_the_load_and_is_named(shipped: Path, name: str) -> None:
    (shipped / name).unlink()
    with pytest.raises(ConstitutionError, match=f"{name}: missing"):
        verify_constitution(shipped, Trust.development())


@pytest.mark.parametrize("name", ["extra.yaml", "hard_blocks/law9.yaml", ".hidden", "texts/dev/x"])
def test_an_unexpected_file_stops_the_load_and_is_named(shipped: Path, name: str) -> None:
    (shipped / name).parent.mkdir(exist_ok=True)
    (shipped / name).write_text("x")
    with pytest.raises(ConstitutionError, match=f"{name}: unexpected"):
        verify_constitution(shipped, Trust.development())


def test_a_link_in_place_of_a_file_stops_the_load(shipped: Path, tmp_path: Path) -> None:
    moved = tmp_path / "laws.yaml"
    (shipped / "laws.yaml").rename(moved)
    (shipped / "laws.yaml").symlink_to(moved)
    with pytest.raises(ConstitutionError, match=r"laws\.yaml: neither a plain file nor a folder"):
        verify_constitution(shipped, Trust.development())


def test_a_linked_folder_stops_the_load(shipped: Path, tmp_path: Path) -> None:
    moved = tmp_path / "texts"
    (shipped / "texts").rename(moved)
    (shipped / "texts").symlink_to(moved)
    with pytest.raises(ConstitutionError, match="texts: neither"):
        verify_constitution(shipped, Trust.development())


def test_a_huge_file_is_refused_before_it_fills_the_memory(directory: Path, trust: Trust) -> None:
    (directory / "laws.yaml").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConstitutionError, match=r"laws\.yaml: larger than"):
        verify_constitution(directory, trust)


def test_a_missing_directory_is_named(tmp_path: Path, trust: Trust) -> None:
    with pytest.raises(ConstitutionError, match="nowhere: there is no constitution here"):
        verify_constitution(tmp_path / "nowhere", trust)


def test_signatures_of_strangers_beside_a_trusted_one_do_not_matter(
    tmp_path: Path, key: Ed25519PrivateKey, trust: Trust
) -> None:
    path = tmp_path / "many"
    path.mkdir()
    write_signed(path, Ed25519PrivateKey.generate(), key)
    assert verify_constitution(path, trust).key_ids == (key_id(key.public_key()),)


def test_a_broken_signature_that_claims_a_trusted_key_stops_the_load(
    directory: Path, key: Ed25519PrivateKey, trust: Trust
) -> None:
    forged = base64.b64encode(bytes(64)).decode()
    (directory / "manifest.sig").write_text(f"{key_id(key.public_key())} {forged}\n")
    with pytest.raises(ConstitutionError, match=r"manifest\.json: the signature of key .* does not hold"):
        verify_constitution(directory, trust)


def test_a_signature_made_for_another_purpose_does_not_hold(key: Ed25519PrivateKey) -> None:
    manifest = build_manifest(FILES, "1")
    bare = base64.b64encode(key.sign(manifest)).decode()
    name = key_id(key.public_key())
    with pytest.raises(ConstitutionError, match="does not hold"):
        verify_signatures(manifest, f"{name} {bare}\n".encode(), TrustPolicy({name: key.public_key()}, 1))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "nobody"),
        (b"\xff\n", "not a signature file"),
        (b"abc !!!\n", "not a signature file"),
        (b"0123456789abcdef AAAA\n", "not 64 bytes"),
    ],
    ids=["empty", "not ascii", "not base64", "too short"],
)
def test_a_malformed_signature_file_is_named(
    directory: Path, trust: Trust, content: bytes, problem: str
) -> None:
    (directory / "manifest.sig").write_bytes(content)
    with pytest.raises(ConstitutionError, match=rf"manifest\.sig: .*{problem}"):
        verify_constitution(directory, trust)


def test_a_public_key_file_must_hold_an_ed25519_key(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(ConstitutionError, match=r"key\.pem: not a readable public key"):
        load_public_key(path)
    other = generate_private_key(SECP256R1()).public_key()
    path.write_bytes(
        other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(ConstitutionError, match=r"key\.pem: not an Ed25519 public key"):
        load_public_key(path)


def test_no_other_private_key_is_in_the_repository() -> None:
    key = Ed25519PublicKey.from_public_bytes(DEVELOPMENT_PUBLIC_KEY)
    private = serialization.load_pem_private_key((SHIPPED / "dev" / "development.key").read_bytes(), None)
    assert isinstance(private, Ed25519PrivateKey)
    assert key_id(private.public_key()) == key_id(key)


def test_a_file_that_cannot_be_read_is_named(
    directory: Path, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.open

    def refuse(path: Path, mode: str = "r") -> object:
        if path.is_relative_to(directory / "hard_blocks"):
            raise PermissionError("not yours")
        return original(path, mode)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConstitutionError, match=r"hard_blocks/law0\.yaml: cannot be read: not yours"):
        verify_constitution(directory, trust)
