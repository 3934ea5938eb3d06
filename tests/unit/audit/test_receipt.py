"""Receipts: one text and one key prove one entry, and every change to the text is noticed."""

from __future__ import annotations

import pytest

from kala.audit.note import Signer
from kala.audit.receipt import HEADER, MAX_RECEIPT_CHARS, Receipt, verify_receipt
from kala.errors import VerificationError
from tests.fakes.audit_log import ORIGIN, open_log, record, signer

TRUSTED = [signer().verifier]


@pytest.fixture(scope="module")
def receipt(tmp_path_factory: pytest.TempPathFactory) -> str:
    with open_log(tmp_path_factory.mktemp("log") / "audit.db") as log:
        return log.append(*(record(number) for number in range(11)))[6].proof


def test_a_receipt_proves_its_leaf_offline(receipt: str) -> None:
    verified = verify_receipt(receipt, TRUSTED)
    assert (verified.index, verified.checkpoint.size, verified.checkpoint.origin) == (6, 11, ORIGIN)
    assert verified.leaf.receipt_id == f"rcpt_{6:032x}"
    assert Receipt.parse(receipt).text() == receipt


def test_every_changed_character_is_noticed(receipt: str) -> None:
    for place in range(len(receipt)):
        changed = receipt[:place] + chr(ord(receipt[place]) ^ 1) + receipt[place + 1 :]
        with pytest.raises(VerificationError):
            verify_receipt(changed, TRUSTED)


def test_every_cut_is_noticed(receipt: str) -> None:
    for length in range(len(receipt)):
        with pytest.raises(VerificationError):
            verify_receipt(receipt[:length], TRUSTED)


def test_another_key_does_not_verify_it(receipt: str) -> None:
    for other in (Signer.of(ORIGIN, b"x" * 32), Signer.of("other.test", b"x" * 32)):
        with pytest.raises(VerificationError):
            verify_receipt(receipt, [other.verifier])
    with pytest.raises(VerificationError):
        verify_receipt(receipt, [])


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEADER,
        f"{HEADER}\n\n",
        f"{HEADER}\nindex 0\n\nnote",
        f"{HEADER}\nextra AA==\nindex 00\n\nnote",
        f"{HEADER}\nextra AA==\nindex -1\n\nnote",
        f"{HEADER}\nextra A\nindex 0\n\nnote",
        f"{HEADER}\nextra\nindex 0\n\nnote",
        "c2sp.org/tlog-proof@v2\nextra AA==\nindex 0\n\nnote",
        f"{HEADER}\nextra AA==\nindex 0\n" + "A" * 43 + "=\n" * 64 + "\nnote",
        f"{HEADER}\nextra AA==\nindex 0\n" + ("A" * 43 + "=\n") * 64 + "\nnote",
        "x" * (MAX_RECEIPT_CHARS + 1),
    ],
)
def test_what_is_no_receipt_is_rejected(text: str) -> None:
    with pytest.raises(VerificationError):
        verify_receipt(text, TRUSTED)
