"""What entries say is read on request: their form, their times, and what only a newer release can read."""

from __future__ import annotations

import json

import pytest

from kala.audit import canonical
from kala.audit.leaf_check import LeafCheck
from kala.audit.report import TamperedError, UnverifiableError
from tests.fakes.mirrors import real_leaves


def test_the_leaves_of_a_log_are_accepted_in_their_order_and_no_other() -> None:
    check = LeafCheck()
    for index, leaf in enumerate(real_leaves(300)):
        check.take(index, leaf)


def test_a_time_that_goes_back_is_named() -> None:
    value = json.loads(real_leaves(300)[0])
    check = LeafCheck()
    for index, time in enumerate(("2026-01-02T00:00:00.000000Z", "2026-01-02T00:00:00.000000Z")):
        check.take(index, canonical.encode({**value, "recorded_at": time}))
    with pytest.raises(TamperedError, match="entry 2: it was recorded before"):
        check.take(2, canonical.encode({**value, "recorded_at": "2026-01-01T00:00:00.000000Z"}))


@pytest.mark.parametrize("leaf", [b"", b"[]", b"{}", b'{"schema":7}', b'{"schema":"other"}', b"\xff"])
def test_what_no_log_writes_is_named(leaf: bytes) -> None:
    with pytest.raises(TamperedError, match="entry 7: "):
        LeafCheck().take(7, leaf)


def test_another_spelling_of_a_leaf_is_named() -> None:
    spaced = json.dumps(json.loads(real_leaves(300)[0])).encode()
    with pytest.raises(TamperedError, match="entry 7: "):
        LeafCheck().take(7, spaced)


def test_a_schema_of_tomorrow_is_no_verdict_on_the_log() -> None:
    with pytest.raises(UnverifiableError, match=r"entry 7 is spelled by kala\.audit\.leaf\.v2"):
        LeafCheck().take(7, b'{"schema":"kala.audit.leaf.v2"}')
