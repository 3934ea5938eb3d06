"""The pin: a log that shrank or forked is noticed by who remembers what it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.checkpoint_pin import CheckpointPin, load_verifiers
from kala.audit.merkle import consistency_proof
from kala.audit.tile_nodes import TileReader
from kala.audit.v1 import audit_pb2
from kala.errors import FailedPreconditionError, VerificationError
from tests.fakes.audit_log import LogFile, open_log, record, signer


class LogStub:
    """The one RPC of the log that the pin needs, on a real log."""

    def __init__(self, log: LogFile) -> None:
        self.log = log

    async def GetConsistencyProof(  # noqa: N802 - the contract's name
        self,
        request: audit_pb2.GetConsistencyProofRequest,
        timeout: float,  # noqa: ASYNC109 - as gRPC's stubs
    ) -> audit_pb2.GetConsistencyProofResponse:
        assert timeout > 0
        hashes = consistency_proof(
            request.old_size, request.new_size, TileReader(request.new_size, self.log.reader.hashes).node
        )
        return audit_pb2.GetConsistencyProofResponse(hashes=hashes, new_size=request.new_size)


class Pinned:
    """A pin on a log, and what the log last said."""

    def __init__(self, path: Path, log: LogFile) -> None:
        self.path = path
        self.log = log
        self.note: str | None = None
        self.stub = LogStub(log)
        self.pin = CheckpointPin(path, trusted=[signer().verifier], log=self.stub, seen=lambda: self.note)

    def append(self, *numbers: int) -> str:
        self.note = self.log.append(*(record(number) for number in numbers))[-1].note
        return self.note


@pytest.fixture
def pinned(tmp_path: Path) -> Iterator[Pinned]:
    with open_log(tmp_path / "audit.db") as log:
        yield Pinned(tmp_path / "last_checkpoint", log)


async def test_nothing_is_pinned_before_the_first_receipt(pinned: Pinned) -> None:
    await pinned.pin.advance()
    assert not pinned.path.exists()


async def test_the_pin_follows_a_growing_log(pinned: Pinned) -> None:
    for numbers in ((0,), (1, 2, 3), (4,)):
        note = pinned.append(*numbers)
        await pinned.pin.advance()
        assert pinned.path.read_text() == note
    assert pinned.path.stat().st_mode & 0o777 == 0o600


async def test_a_log_that_shrank_is_named_and_the_pin_stays(pinned: Pinned) -> None:
    short, long = pinned.append(0), pinned.append(1)
    await pinned.pin.advance()
    pinned.note = short
    with pytest.raises(VerificationError, match="had 2 entries and now has 1"):
        await pinned.pin.advance()
    assert pinned.path.read_text() == long


async def test_a_log_that_forked_is_named_and_the_pin_stays(pinned: Pinned, tmp_path: Path) -> None:
    seen = pinned.append(0, 1)
    await pinned.pin.advance()
    with open_log(tmp_path / "other.db") as other:
        same_size = other.append(record(7), record(8))[-1].note
        longer = other.append(record(9))[-1].note
        pinned.stub.log = other
        for forked in (same_size, longer):
            pinned.note = forked
            with pytest.raises(VerificationError):
                await pinned.pin.advance()
            assert pinned.path.read_text() == seen


async def test_a_checkpoint_of_a_stranger_is_not_pinned(pinned: Pinned, tmp_path: Path) -> None:
    pinned.append(0)
    with open_log(tmp_path / "other.db", seed=b"o" * 32) as other:
        pinned.note = other.append(record(0))[-1].note
    with pytest.raises(VerificationError):
        await pinned.pin.advance()
    assert not pinned.path.exists()


def test_a_key_file_without_a_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "audit.vkey"
    path.write_text("no key")
    with pytest.raises(FailedPreconditionError, match=r"audit\.vkey"):
        load_verifiers(path)
