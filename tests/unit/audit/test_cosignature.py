"""Cosignatures of both kinds: what they say, and every way one can be wrong."""

from __future__ import annotations

import base64

import pytest

from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.cosignature import CosignatureKind, Cosigner, Witness, cosignatures
from kala.audit.note import Signer
from kala.errors import VerificationError

LOG = Signer.of("kala.test/log", b"1" * 32)
TEXT = Checkpoint("kala.test/log", 7, b"r" * 32).text()
KINDS = pytest.mark.parametrize("kind", CosignatureKind, ids=lambda kind: kind.name)
TIME = 1_790_000_000


def cosigner(kind: CosignatureKind, seed: bytes = b"w" * 32, name: str = "witness.test/w1") -> Cosigner:
    return Cosigner.of(name, kind, seed)


@KINDS
def test_a_cosigned_checkpoint_names_its_witness_and_the_time(kind: CosignatureKind) -> None:
    one = cosigner(kind)
    note = LOG.sign(TEXT) + one.line(TEXT, TIME)
    assert cosignatures(note, [one.witness]) == {one.witness: TIME}
    assert open_checkpoint(note, [LOG.verifier]).size == 7


def test_the_ed25519_cosignature_signs_the_bytes_of_the_specification() -> None:
    """With the primitive itself, so that a mistake in our message cannot hide on both sides."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    line = cosigner(CosignatureKind.ED25519).line(TEXT, TIME)
    data = base64.b64decode(line.split(" ")[2])
    assert int.from_bytes(data[4:12], "big") == TIME
    Ed25519PrivateKey.from_private_bytes(b"w" * 32).public_key().verify(
        data[12:], f"cosignature/v1\ntime {TIME}\n{TEXT}".encode()
    )


def test_the_ml_dsa_44_cosignature_signs_the_structure_of_the_specification() -> None:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

    line = cosigner(CosignatureKind.ML_DSA_44).line(TEXT, TIME)
    data = base64.b64decode(line.split(" ")[2])
    message = (
        b"subtree/v1\n\0" + b"\x0fwitness.test/w1" + TIME.to_bytes(8, "big") + b"\x0dkala.test/log"
    ) + (b"\0" * 8 + (7).to_bytes(8, "big") + b"r" * 32)
    MLDSA44PrivateKey.from_seed_bytes(b"w" * 32).public_key().verify(data[12:], message)
    assert len(data) == 4 + 8 + 2_420


@KINDS
def test_keys_survive_their_text_forms(kind: CosignatureKind) -> None:
    one = next(
        c for c in (cosigner(kind, bytes([n]) * 32) for n in range(256)) if str(c.witness).count("+") > 2
    )
    assert Witness.parse(str(one.witness)) == one.witness
    again = Cosigner.parse(one.private_text() + "\n")
    assert cosignatures(LOG.sign(TEXT) + again.line(TEXT, 1), [one.witness]) == {one.witness: 1}
    assert "PRIVATE" not in repr(one)
    assert repr(b"w" * 32) not in repr(cosigner(kind))


@KINDS
@pytest.mark.parametrize(
    "other",
    [
        Checkpoint("kala.test/log", 8, b"r" * 32).text(),
        Checkpoint("kala.test/log", 7, b"s" * 32).text(),
        Checkpoint("kala.test/other", 7, b"r" * 32).text(),
    ],
    ids=["size", "root", "origin"],
)
def test_a_cosignature_of_another_checkpoint_does_not_hold(kind: CosignatureKind, other: str) -> None:
    one = cosigner(kind)
    with pytest.raises(VerificationError, match="does not hold"):
        cosignatures(LOG.sign(TEXT) + one.line(other, TIME), [one.witness])


@KINDS
@pytest.mark.parametrize("place", [4, 11, 12, -1], ids=["time", "last byte of time", "signature", "end"])
def test_a_changed_byte_of_a_cosignature_is_noticed(kind: CosignatureKind, place: int) -> None:
    one = cosigner(kind)
    mark, name, encoded = one.line(TEXT, TIME).split(" ")
    data = bytearray(base64.b64decode(encoded))
    data[place] ^= 1
    line = f"{mark} {name} {base64.b64encode(data).decode()}\n"
    with pytest.raises(VerificationError):
        cosignatures(LOG.sign(TEXT) + line, [one.witness])


@KINDS
def test_a_cut_cosignature_is_malformed(kind: CosignatureKind) -> None:
    one = cosigner(kind)
    mark, name, encoded = one.line(TEXT, TIME).split(" ")
    line = f"{mark} {name} {base64.b64encode(base64.b64decode(encoded)[:-1]).decode()}\n"
    with pytest.raises(VerificationError, match="malformed"):
        cosignatures(LOG.sign(TEXT) + line, [one.witness])


def test_lines_of_unknown_keys_are_passed_over() -> None:
    known, stranger = (cosigner(CosignatureKind.ED25519, seed) for seed in (b"w" * 32, b"x" * 32))
    note = LOG.sign(TEXT) + stranger.line(TEXT, TIME)
    assert cosignatures(note, [known.witness]) == {}


def test_the_two_kinds_of_one_witness_have_different_ids() -> None:
    ids = {cosigner(kind).witness.key_id for kind in CosignatureKind}
    assert len(ids) == 2
    assert LOG.verifier.key_id not in ids


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "witness.test",
        "witness.test+00000000+",
        str(LOG.verifier),
        str(cosigner(CosignatureKind.ED25519).witness).replace("witness.test/w1", "witness.test/w2"),
        str(cosigner(CosignatureKind.ED25519).witness)[:-4],
        "wit ness+00000000+" + base64.b64encode(b"\x04" + b"k" * 32).decode(),
    ],
    ids=["empty", "no key", "no bytes", "a log's key", "another name", "cut", "a space"],
)
def test_what_is_no_witness_key_is_refused(vkey: str) -> None:
    with pytest.raises(VerificationError):
        Witness.parse(vkey)
    with pytest.raises(VerificationError):
        Cosigner.parse(f"PRIVATE+KEY+{vkey}")
    with pytest.raises(VerificationError):
        Cosigner.parse(vkey)


def test_a_name_that_is_too_long_to_be_cosigned_is_refused() -> None:
    with pytest.raises(VerificationError, match="255 bytes"):
        cosigner(CosignatureKind.ML_DSA_44, name="w" * 256)


def test_what_is_no_note_has_no_cosignatures() -> None:
    with pytest.raises(VerificationError, match="not a signed note"):
        cosignatures("text\n", [])
