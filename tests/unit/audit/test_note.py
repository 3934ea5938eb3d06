"""C2SP notes and checkpoints: the published examples, and every way a note can be wrong."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.merkle import leaf_hash, root_of
from kala.audit.note import MAX_SIGNATURES, Signer, Verifier, decode_base64, key_id, open_note, parse_decimal
from kala.errors import VerificationError

VECTORS = Path(__file__).parents[2] / "vectors" / "audit"
TESSERA = VECTORS / "tessera" / "testdata" / "log"
TESSERA_KEY = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"
SIGNER = Signer.of("kala.test/log", b"1" * 32)


def tessera_checkpoints() -> list[Path]:
    return sorted(
        p for p in TESSERA.rglob("*") if p.is_file() and re.fullmatch(r"checkpoint(\.\d+)?", p.name)
    )


def tessera_leaves() -> list[bytes]:
    bundle = next(p for p in TESSERA.rglob("*") if p.is_file() and "entries" in p.parts and p.name == "15")
    content, leaves = bundle.read_bytes(), []
    while content:
        length = int.from_bytes(content[:2], "big")
        leaves.append(content[2 : 2 + length])
        content = content[2 + length :]
    return leaves


def test_the_published_note_opens_with_its_published_key() -> None:
    example = json.loads((VECTORS / "c2sp" / "examples.json").read_text())["signed_note"]
    assert open_note(example["note"], [Verifier.parse(example["vkey"])]) == "This is an example message.\n"


@pytest.mark.parametrize("name", ["checkpoint_shape", "cosigned_checkpoint_shape"])
def test_a_published_checkpoint_has_the_shape_we_read(name: str) -> None:
    note = json.loads((VECTORS / "c2sp" / "examples.json").read_text())[name]
    checkpoint = Checkpoint.parse(note.rpartition("\n\n")[0] + "\n")
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert note.startswith(checkpoint.text())


def test_every_checkpoint_of_tessera_verifies_and_signs_the_root_of_its_leaves() -> None:
    verifier = Verifier.parse(TESSERA_KEY)
    hashes = [leaf_hash(leaf) for leaf in tessera_leaves()]
    checkpoints = [open_checkpoint(path.read_text(), [verifier]) for path in tessera_checkpoints()]
    assert len(checkpoints) >= 16
    assert {checkpoint.size for checkpoint in checkpoints} == set(range(16))
    assert all(checkpoint.root == root_of(hashes[: checkpoint.size]) for checkpoint in checkpoints)


def test_a_key_survives_its_text_form_even_with_plus_signs_in_its_base64() -> None:
    seeds = (bytes([number]) * 32 for number in range(256))
    signer = next(s for s in (Signer.of("a.b/c", seed) for seed in seeds) if str(s.verifier).count("+") > 2)
    assert Verifier.parse(str(signer.verifier)) == signer.verifier
    assert Signer.parse(signer.private_text()).verifier == signer.verifier
    assert "PRIVATE" not in repr(signer)


def test_a_signed_note_opens_and_names_its_signer() -> None:
    note = SIGNER.sign("hello\n\nworld\n")
    assert open_note(note, [SIGNER.verifier], signed_by="kala.test/log") == "hello\n\nworld\n"


def test_a_changed_byte_anywhere_in_a_note_is_noticed() -> None:
    note = SIGNER.sign(Checkpoint("kala.test/log", 7, b"r" * 32).text())
    for place in range(len(note)):
        changed = note[:place] + chr(ord(note[place]) ^ 1) + note[place + 1 :]
        with pytest.raises(VerificationError):
            open_checkpoint(changed, [SIGNER.verifier])


def test_signatures_of_unknown_keys_are_ignored_but_never_suffice() -> None:
    stranger = Signer.of("stranger.test", b"2" * 32)
    note = SIGNER.sign("text\n") + stranger.sign("text\n").split("\n\n")[1]
    assert open_note(note, [SIGNER.verifier]) == "text\n"
    with pytest.raises(VerificationError, match="not signed by"):
        open_note(stranger.sign("text\n"), [SIGNER.verifier])
    with pytest.raises(VerificationError, match=r"not signed by kala\.test/log"):
        open_note(stranger.sign("text\n"), [stranger.verifier], signed_by="kala.test/log")


def test_a_note_of_a_key_that_was_replaced_says_which_key_is_missing() -> None:
    former = Signer.of("kala.test/log", b"4" * 32)
    with pytest.raises(VerificationError, match=f"another key of that name, {former.verifier.key_id.hex()}"):
        open_note(former.sign("text\n"), [SIGNER.verifier], signed_by="kala.test/log")


def test_one_bad_signature_of_a_known_key_rejects_the_note() -> None:
    witness = Signer.of("witness.test", b"3" * 32)
    good = SIGNER.sign("text\n")
    bad = witness.sign("other\n").split("\n\n")[1]
    with pytest.raises(VerificationError, match=r"witness\.test does not hold"):
        open_note(good + bad, [SIGNER.verifier, witness.verifier])


def test_a_witness_alone_does_not_make_a_checkpoint() -> None:
    witness = Signer.of("witness.test", b"3" * 32)
    note = witness.sign(Checkpoint("kala.test/log", 1, b"r" * 32).text())
    with pytest.raises(VerificationError, match=r"not signed by kala\.test/log"):
        open_checkpoint(note, [SIGNER.verifier, witness.verifier])


def test_sixteen_signatures_are_accepted_and_a_flood_is_not() -> None:
    others = [
        Signer.of(f"w{n}.test", bytes([n]) * 32).sign("text\n").split("\n\n")[1]
        for n in range(MAX_SIGNATURES)
    ]
    assert open_note(SIGNER.sign("text\n") + "".join(others[:15]), [SIGNER.verifier]) == "text\n"
    with pytest.raises(VerificationError, match="more than"):
        open_note(SIGNER.sign("text\n") + "".join(others), [SIGNER.verifier])


SIGNATURE = SIGNER.sign("text\n").split("\n\n")[1]


@pytest.mark.parametrize(
    "note",
    [
        pytest.param("text\n", id="no signature"),
        pytest.param(f"text\n\n{SIGNATURE}"[:-1], id="no last newline"),
        pytest.param(f"te\txt\n\n{SIGNATURE}", id="a control character"),
        pytest.param(f"te\udc80xt\n\n{SIGNATURE}", id="a lone surrogate"),
        pytest.param("text\n\n- kala.test/log AAAA\n", id="another dash"),
        pytest.param("text\n\n\u2014 kala.test/log\n", id="no signature bytes"),
        pytest.param("text\n\n\u2014 kala.test/log AAAA\n", id="a key id alone"),
        pytest.param("text\n\n\u2014 kala.test/log !!!!\n", id="no base64"),
        pytest.param("text\n\n\u2014 ka+la AAAAAAAA\n", id="a plus in the name"),
        pytest.param("", id="empty"),
    ],
)
def test_what_is_no_note_is_rejected(note: str) -> None:
    with pytest.raises(VerificationError):
        open_note(note, [SIGNER.verifier])


@pytest.mark.parametrize(
    "vkey",
    [
        "kala.test/log",
        "kala.test/log+00000000+" + base64.b64encode(b"\x01" + b"k" * 32).decode(),
        "kala.test/log+00000000+" + base64.b64encode(b"\x02" + b"k" * 32).decode(),
        "kala.test/log+00000000+" + base64.b64encode(b"\x01" + b"k" * 31).decode(),
        "kala.test/log+00000000+AQ",
        "ka la+00000000+" + base64.b64encode(b"\x01" + b"k" * 32).decode(),
        "",
    ],
)
def test_a_malformed_key_is_rejected(vkey: str) -> None:
    with pytest.raises(VerificationError):
        Verifier.parse(vkey)
    with pytest.raises(VerificationError):
        Signer.parse("PRIVATE+KEY+" + vkey)
    with pytest.raises(VerificationError):
        Signer.parse(vkey)


@pytest.mark.parametrize(
    "text",
    [
        "a\n1\n",
        "a\n1\n" + base64.b64encode(b"x" * 31).decode() + "\n",
        "a\n01\n" + base64.b64encode(b"x" * 32).decode() + "\n",
        "a\n-1\n" + base64.b64encode(b"x" * 32).decode() + "\n",
        "a\n9223372036854775808\n" + base64.b64encode(b"x" * 32).decode() + "\n",
        "\n1\n" + base64.b64encode(b"x" * 32).decode() + "\n",
        "a\n1\n" + base64.b64encode(b"x" * 32).decode(),
        "a\n1\n" + base64.b64encode(b"x" * 32).decode() + "\n\n",
    ],
)
def test_a_malformed_checkpoint_is_rejected(text: str) -> None:
    with pytest.raises(VerificationError):
        Checkpoint.parse(text)


def test_extension_lines_are_tolerated() -> None:
    text = Checkpoint("a", 1, b"x" * 32).text() + "extension\n"
    assert Checkpoint.parse(text) == Checkpoint("a", 1, b"x" * 32)


@pytest.mark.parametrize("text", ["AA=", "AA", "AB==", "AA==\n", " AA==", "A_=="])
def test_base64_has_one_spelling(text: str) -> None:
    with pytest.raises(VerificationError):
        decode_base64(text, "it")


def test_the_largest_size_is_read() -> None:
    assert parse_decimal("9223372036854775807", "it") == 2**63 - 1


def test_a_key_id_is_the_published_one() -> None:
    verifier = Verifier.parse(TESSERA_KEY)
    assert key_id(verifier.name, verifier.public).hex() == "33d7b496"
