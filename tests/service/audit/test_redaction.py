"""Masked content in the log: the commitment is to what was said, what is kept is the masked copy, repeats stay repeats."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable

import pytest

from kala.audit.receipt import verify_receipt
from kala.errors import AlreadyExistsError, NotFoundError
from services.audit.privacy.redaction import Span
from tests.fakes.audit_log import signer
from tests.fakes.audit_privacy import private_log, spoken

ALICE = "a" * 64
SAID = b"I am alice@example.com"


class Finder:
    """Finds one pattern."""

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern)

    def find(self, text: str) -> Iterable[Span]:
        return [found.span() for found in self.pattern.finditer(text)]


async def test_the_words_are_committed_to_and_only_the_masked_copy_is_kept(log_database: str) -> None:
    async with private_log(log_database, finder=Finder(r"\S+@\S+")) as log:
        (receipt,) = (await log.append(spoken(0, ALICE, SAID))).receipts
        salts = {opening.kind: opening.salt for opening in receipt.openings}
        leaf = verify_receipt(receipt.proof, [signer().verifier]).leaf.value
        commitments = {one["kind"]: one["hmac"] for one in leaf["commitments"]}
        assert hmac.new(salts["released"], SAID, "sha256").hexdigest() == commitments["released"]
        assert log.reading.entry(0).payload_kinds == ["released.redacted", "request.redacted"]
        assert log.reading.payload(0, "released.redacted")[1] == b"I am #################"
        with pytest.raises(NotFoundError):
            log.reading.payload(0, "released")


async def test_a_repeat_is_the_same_entry_whatever_is_masked_meanwhile(log_database: str) -> None:
    finder = Finder(r"\S+@\S+")
    async with private_log(log_database, finder=finder) as log:
        (first,) = (await log.append(spoken(0, ALICE, SAID))).receipts
        for pattern in (r"\S+@\S+", "am", "nothing of it"):
            finder.pattern = re.compile(pattern)
            (again,) = (await log.append(spoken(0, ALICE, SAID))).receipts
            assert (again.index, again.created) == (first.index, False)
        with pytest.raises(AlreadyExistsError):
            await log.append(spoken(0, ALICE, SAID[::-1]))
